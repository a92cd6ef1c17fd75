"""Near-duplicates of pictures: exact, cropped and re-encoded copies among glyphs and photos of scikit-learn."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from trainkit.audit import audit
from trainkit.audit.pictures import _views
from trainkit.audit.sheet import write_sheet
from trainkit.data import Entry, Sides
from trainkit.data.near_duplicates import perceptual_hash


@pytest.fixture(scope="module")
def pictures():
    """Tiles of two photos that share no pixel: 128 pixels of a side, some of little but sky."""
    from sklearn.datasets import load_sample_images

    tiles = []
    for photo in load_sample_images().images:
        for top in range(0, photo.shape[0] - 63, 64):
            tiles += [photo[top : top + 64, left : left + 64] for left in range(0, photo.shape[1] - 63, 64)]
    kept = [Image.fromarray(tile) for tile in tiles if tile.std() > 20]
    random.Random(0).shuffle(kept)
    assert len(kept) > 80
    return kept


def pixels(picture):
    return np.asarray(picture.resize((64, 64), Image.Resampling.BOX)).transpose(2, 0, 1)


def cropped(picture, draw):
    side = round(picture.width * draw.uniform(0.87, 0.95))
    left, top = (draw.randint(0, picture.width - side) for _ in range(2))
    return picture.crop((left, top, left + side, top + side))


def re_encoded(picture, draw):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=draw.randint(50, 80))
    return Image.open(file).convert("RGB")


def sides(train, held_out):
    def entries(pictures):
        return [
            Entry(hash(pixels(one).tobytes()) % 2**64, f"{number}.png", pixels=pixels(one))
            for number, one in enumerate(pictures)
        ]

    return Sides(train=lambda: iter(entries(train)), held_out=lambda: iter(entries(held_out)))


def test_planted_leaks_are_found(pictures):
    draw = random.Random(1)
    held_out, train = pictures[:40], pictures[40:]
    first = len(train)
    planted = [*held_out, *(cropped(one, draw) for one in held_out), *(re_encoded(one, draw) for one in held_out)]
    report = audit(sides([*train, *planted], held_out))
    found = {int(leak.train.removesuffix(".png")): int(leak.held_out.removesuffix(".png")) for leak in report.leaks}
    recalls = [sum(first + start + number in found for number in range(40)) / 40 for start in (0, 40, 80)]
    assert recalls[0] == 1 and recalls[1] >= 0.9 and recalls[2] >= 0.9
    right = [place for place, number in found.items() if place >= first and (place - first) % 40 == number]
    assert len(right) >= 0.99 * len(found)


def test_a_flat_picture_is_like_its_copies_only():
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("white", "#fefefe", "black")]
    report = audit(sides(flat, [flat[0]]))
    assert report.train == {"exact": 1}


def test_another_colour_is_another_picture(pictures):
    channels = pictures[0].split()
    assert audit(sides([Image.merge("RGB", channels[::-1])], [pictures[0]])).is_clean


def test_hashes_are_those_of_imagehash(pictures):
    pytest.importorskip("imagehash")
    ours = _views([pixels(one) for one in pictures]).whole.tolist()
    theirs = [perceptual_hash(pixels(one)) for one in pictures]
    bits = [(one ^ other).bit_count() for one, other in zip(ours, theirs, strict=True)]
    assert np.mean(bits) < 4  # another filter makes it small


def test_a_sheet_shows_the_pairs(pictures, tmp_path):
    report = audit(sides(pictures[:9], pictures[:9]))
    assert write_sheet(report.leaks, tmp_path / "sheet.png") == 9
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 140, 2 * 72)
    assert write_sheet([], tmp_path / "none.png") == 0 and not (tmp_path / "none.png").exists()
