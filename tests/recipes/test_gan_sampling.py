"""What is drawn from a trained generator: walks, truncation, styles, projections, folders, videos, a page."""

import base64
import io
import json
import re
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from tests.recipes.gan import make_recipe
from trainkit.errors import ConfigError, DataError
from trainkit_recipes.progressive_gan.classes import labels_of_names
from trainkit_recipes.progressive_gan.feature_maps import mean_maps, replaced, truncated, with_style
from trainkit_recipes.progressive_gan.folder import write_folder
from trainkit_recipes.progressive_gan.latents import closed_path, slerp
from trainkit_recipes.progressive_gan.page import NUM_STYLES, PSIS, Shown, page
from trainkit_recipes.progressive_gan.pictures import as_pixels
from trainkit_recipes.progressive_gan.projection import project, read_picture
from trainkit_recipes.progressive_gan.sample import main
from trainkit_recipes.progressive_gan.video import require_format, write_video

CLASSES = ("cat", "dog/wolf")


def _sampler(classes=(), **settings):
    """Of a generator of 8x8 with random weights."""
    recipe = make_recipe(classes=classes, **settings)
    recipe.load_state_dict({**recipe.state_dict(), "phase": 2})
    return recipe.sampler(recipe.G.module)


def _keeper() -> tuple[list[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """A list, and a function that appends to it what it is given, and returns that."""
    seen: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    return seen, keep


def test_slerp_is_a_rotation_at_constant_speed():
    first, second = torch.randn(2, 1, 16, dtype=torch.float64)
    a, b = (x.numpy()[0] / np.linalg.norm(x.numpy()) for x in (first, second))
    whole = np.arccos(a @ b)
    for weight in (0.0, 0.25, 0.9, 1.0):
        found = slerp(first, second, weight).numpy()[0] / 4.0  # the root of 16: the mean square is 1
        assert np.linalg.norm(found) == pytest.approx(1.0)
        assert np.arccos(np.clip(a @ found, -1, 1)) == pytest.approx(weight * whole, abs=1e-6)
    assert torch.allclose(slerp(first, 3 * first, 0.5), slerp(first, second, 0.0))
    frames = closed_path(torch.randn(3, 16, dtype=torch.float64), 12)
    assert frames.shape == (12, 16)
    steps = [float((frames[i] * frames[(i + 1) % 12]).mean()) for i in range(12)]
    assert [round(x, 6) for x in steps] == [round(steps[i // 4 * 4], 6) for i in range(12)], "no jump, no seam"


@pytest.mark.parametrize("classes", [(), CLASSES])
def test_truncation_draws_towards_the_mean_map(classes):
    sampler = _sampler(classes)
    latents, labels = sampler.latents(range(200)), [i % 2 for i in range(200)] if classes else None
    assert truncated(sampler, 1.0) is sampler
    maps = mean_maps(sampler, 200)
    for label in range(max(1, len(classes))):
        seen, keep = _keeper()
        with replaced(sampler.module, {4: keep}):
            sampler.images(latents, [label] * 200 if classes else None)
        assert np.allclose(maps[label].numpy(), torch.cat(seen).numpy().mean(axis=0))
    spread = []
    for psi in (1.0, 0.5, 0.0):
        images = truncated(sampler, psi, maps).images(latents, labels)
        spread.append(float(images[::2].std(dim=0).mean()))
    assert spread[0] > spread[1] > spread[2] and spread[2] < 1e-12, "one image of a class"
    assert not classes or float((images[0] - images[1]).abs().max()) > 1e-6, "another one of another class"
    with pytest.raises(ConfigError, match=r"truncation 1.5: must be 0 .* \.\. 1"):
        truncated(sampler, 1.5)


def test_a_style_is_the_statistics_of_channels():
    sampler = _sampler()
    coarse, fine = sampler.latents(range(6)), sampler.latents(range(6, 12))
    seen, keep = _keeper()
    with replaced(sampler.module, {8: keep}):
        sampler.images(fine)
    mixed = with_style(sampler, coarse, fine, 8)
    assert torch.allclose(with_style(sampler, coarse, coarse, 4), sampler.images(coarse), atol=1e-6)
    own = sampler.images(coarse)
    assert (mixed - own).abs().mean() > 0.01
    maps = seen[0].numpy()
    with replaced(sampler.module, {8: keep}):
        with_style(sampler, coarse, fine, 8)
    # The hook that watches was there first, and sees the map before it is changed: the image tells of it after.
    weight = sampler.module.to_image["8"]
    changed = seen[-1].numpy()
    expected = (changed - changed.mean(axis=(2, 3), keepdims=True)) / changed.std(axis=(2, 3), keepdims=True)
    expected = expected * maps.std(axis=(2, 3), keepdims=True) + maps.mean(axis=(2, 3), keepdims=True)
    with torch.no_grad():
        assert torch.allclose(weight(torch.from_numpy(expected)), mixed, atol=1e-4)
    with pytest.raises(ConfigError, match="style from 16x16 on: must be one of 4, 8"):
        with_style(sampler, coarse, fine, 16)


def test_a_generated_picture_is_found_again():
    for classes, label in (((), None), (CLASSES, 1)):
        sampler = _sampler(classes)
        picture = sampler.images(sampler.latents([5000]), None if label is None else [label])[0].clamp(-1, 1)
        found = project(sampler, picture, num_candidates=128, num_starts=3, num_steps=100)
        assert found.distance < 2e-3 and found.psnr > 54 and found.label == label
        again = sampler.images(found.latent_Z[None], None if label is None else [label])[0]
        assert float((again.clamp(-1, 1) - picture).div(2).square().mean().sqrt()) == pytest.approx(found.distance)
        assert found.distances == tuple(sorted(found.distances)) and len(found.distances) == 3
        assert all(p.grad is None for p in sampler.module.parameters())


def test_a_picture_is_read_as_the_generator_needs_it(tmp_path):
    pixels = np.zeros((16, 24, 4), np.uint8)
    pixels[:, 12:] = (255, 0, 0, 255)  # the left half is transparent, which becomes white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 8, 3)
    assert picture.shape == (3, 8, 8)
    assert picture[:, 0, 0].tolist() == [1, 1, 1] and picture[:, 0, 7].tolist() == [1, -1, -1]
    assert read_picture(tmp_path / "a.png", 8, 1).shape == (1, 8, 8)
    Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", 8, 3)[:, 3, 3].tolist() == pytest.approx([100 / 127.5 - 1] * 3)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(DataError, match=r"b\.png cannot be read as an image"):
        read_picture(tmp_path / "b.png", 8, 3)


def test_a_folder_can_be_trained_on(tmp_path):
    sampler = _sampler(CLASSES)
    write_folder(sampler, tmp_path / "made", 70, start=3, classes=CLASSES)
    written = json.loads((tmp_path / "made" / "dataset.json").read_text())
    assert written["classes"] == [*CLASSES] and len(written["labels"]) == 70
    assert written["labels"][:2] == [["dog_wolf/00000003.png", 1], ["cat/00000004.png", 0]]
    assert {str(p.relative_to(tmp_path / "made")) for p in (tmp_path / "made").rglob("*.png")} == {
        name for name, _ in written["labels"]
    }
    with Image.open(tmp_path / "made" / "cat" / "00000072.png") as opened:
        expected = as_pixels(sampler.images(sampler.latents([72]), [0]))[0]
        assert np.abs(np.asarray(opened).astype(int) - expected).max() <= 1  # another batch size
    with pytest.raises(ConfigError, match="made: it exists and is not empty"):
        write_folder(sampler, tmp_path / "made", 1, classes=CLASSES)
    write_folder(_sampler(channels=1), tmp_path / "grey", 2)
    assert sorted(p.name for p in (tmp_path / "grey").iterdir()) == ["00000000.png", "00000001.png"]
    with Image.open(tmp_path / "grey" / "00000000.png") as opened:
        assert opened.mode == "L"
    write_folder(sampler, tmp_path / "one", 3, classes=CLASSES, labels=[1])
    assert [p.name for p in sorted((tmp_path / "one").iterdir())] == ["dataset.json", "dog_wolf"]


def test_a_video_has_every_frame(tmp_path, monkeypatch):
    frames = [np.full((33, 47, 3), 20 * number, np.uint8) for number in range(10)]
    for name in ("a.webp", "a.gif"):
        write_video(iter(frames), tmp_path / name, 20)
        with Image.open(tmp_path / name) as made:
            assert (made.n_frames, made.size) == (10, (47, 33))  # type: ignore[attr-defined]
            made.seek(7)
            assert abs(int(np.asarray(made.convert("RGB"))[16, 20, 0]) - 140) <= 4
    av = pytest.importorskip("av")
    write_video(iter(frames), tmp_path / "a.mp4", 20)
    with av.open(str(tmp_path / "a.mp4")) as made:
        decoded = [frame.to_ndarray(format="rgb24") for frame in made.decode(video=0)]
        assert made.streams.video[0].average_rate == 20
    assert len(decoded) == 10 and decoded[0].shape == (34, 48, 3), "an odd size is padded, as yuv420p needs"
    assert [abs(int(frame[10, 10, 0]) - 20 * number) <= 6 for number, frame in enumerate(decoded)] == [True] * 10
    with pytest.raises(ConfigError, match=r"a\.avi: must end with one of \.mp4"):
        require_format(tmp_path / "a.avi")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"needs PyAV: pip install 'trainkit\[video\]'; or write .*a\.webp"):
        require_format(tmp_path / "a.mp4")


def test_a_page_holds_all_that_it_shows():
    text = page(_sampler(CLASSES), Shown("<run> & co", "8x8", CLASSES, (0, 1)))
    assert "&lt;run&gt; &amp; co" in text and "@@" not in text
    assert not re.search(r"https?://|src=\"(?!data)|@import", text), "no network"
    data = json.loads(re.search(r"const data = (.*);\n", text)[1])  # type: ignore[index]
    assert data["classes"] == [*CLASSES] and len(data["walks"]) == 2 * len(PSIS)
    assert {*data["styles"]} == {"own", "4", "8"}
    columns = int(np.ceil(np.sqrt(data["frames"])))
    for url, side in ((data["walks"][0], columns), (data["styles"]["8"], NUM_STYLES)):
        kind, content = url.split(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as sheet:
            assert sheet.size == (side * 8, side * 8)
    assert len(text) < 200_000 and len(page(_sampler(), Shown("run", "8x8"))) < len(text)


def test_classes_are_typed_by_name_or_label():
    assert labels_of_names("dog/wolf,0", CLASSES) == [1, 0]
    with pytest.raises(ConfigError, match=r"'cet' is none of the 2 classes \(cat, dog/wolf\).*cat"):
        labels_of_names("cet", CLASSES)
    with pytest.raises(ConfigError, match="trained on images without classes; leave it out"):
        labels_of_names("cat", ())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fps", "3"],
        ["--folder", "made", "--output", "a.png"],
        ["--video", "a.gif", "--output", "a.png"],
        ["--mix", "8", "--fps", "5"],
        ["--project", "a.png", "--num", "4"],
        ["--project", "a.png", "--truncation", "0.7"],
        ["--page", "a.html", "--truncation", "0.7"],
        ["--page", "a.html", "--num", "4"],
    ],
)
def test_an_option_that_changes_nothing_is_refused(tmp_path, capsys, arguments):
    assert main([str(tmp_path), *arguments]) == 2
    drawn = arguments[0] if len(arguments) > 2 else "a grid"
    said = capsys.readouterr().err
    assert f"{' '.join(arguments[-2:])}: changes nothing about {drawn}; leave it out" in said and said.count("\n") == 1


def test_no_pictures_are_no_default_number(tmp_path, capsys):
    assert main([str(tmp_path), "--folder", str(tmp_path / "made"), "--num", "0"]) == 2
    assert "--num 0 --start 0: there must be 1 or more" in capsys.readouterr().err and not (tmp_path / "made").exists()
