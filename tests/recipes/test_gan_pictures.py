"""Grids of samples and animations of growth."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from trainkit_recipes.progressive_gan.pictures import animate, grid


def test_grid_and_animation(tmp_path):
    picture = grid(torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 4, 4), cell=8)
    assert picture.shape == (18, 28, 3)
    places = [(y, x) for y in (0, 10) for x in (0, 10, 20)]
    assert [int(picture[y, x, 0]) for y, x in places] == [0, 64, 128, 191, 255, 255]  # the last one is empty
    assert [int(picture[y + 7, x + 7, 0]) for y, x in places] == [0, 64, 128, 191, 255, 255]
    assert (picture[8:10] == 255).all() and (picture[:, [8, 9, 18, 19]] == 255).all()  # lines between the cells
    assert grid(torch.zeros(1, 3, 4, 4), cell=8).shape == (8, 8, 3)
    frames = []
    for i in range(3):
        frames.append(tmp_path / f"{i}.png")
        Image.fromarray(np.roll(picture, i, axis=0)).save(frames[-1])
    animate(frames, tmp_path / "a.gif", crop=8, scale=4)
    with Image.open(tmp_path / "a.gif") as made:
        assert isinstance(made, GifImageFile)
        assert made.n_frames == 3 and made.size == (32, 32)


def test_an_animation_is_written_as_it_grows(tmp_path):
    """So no more than one picture is in memory; large ones are shrunk, and all are as large as the first."""
    written = []

    class Frames(list[Path]):
        def __iter__(self):
            for frame in super().__iter__():
                path = tmp_path / "a.tmp.gif"
                written.append(path.stat().st_size if path.exists() else 0)
                yield frame

    sizes = [(2100, 2100), (1050, 1050), (2100, 2100)]
    frames = Frames(tmp_path / f"{number}.png" for number in range(3))
    for number, (frame, size) in enumerate(zip(list(frames), sizes, strict=True)):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        noise[:, : size[0] // 2] = (200, 40 * number, 0)
        Image.fromarray(noise).save(frame, compress_level=1)
    written.clear()
    animate(frames, tmp_path / "a.gif")
    assert 0 <= written[0] < 200_000 < written[1] < written[2] - 200_000, (
        "a frame is in the file before the next is read"
    )
    with Image.open(tmp_path / "a.gif") as made:
        assert isinstance(made, GifImageFile)
        assert (made.n_frames, made.size, made.info["loop"]) == (3, (700, 700), 0)
        for number in range(3):
            made.seek(number)
            assert made.info["duration"] == (2000 if number == 2 else 120)
            assert np.abs(np.subtract(np.asarray(made.convert("RGB"))[350, 100], (200, 40 * number, 0))).max() <= 16
