"""Two sets of images: every sample of each in its own epochs, and no pair that comes back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainkit.data import Images, SideBySide, Unpaired, UnpairedImages
from trainkit.data.glyphs import Glyphs
from trainkit.errors import ConfigError, DataError


@pytest.mark.parametrize(("num_first", "num_second"), [(7, 3), (3, 7), (6, 6)])
def test_each_set_has_epochs_of_its_own(num_first, num_second):
    data = Unpaired([*range(num_first)], [*range(100, 100 + num_second)])
    assert data.epoch_length == max(num_first, num_second) and len(data) == num_first * num_second
    pairs = [data[index] for epoch in range(20) for index in data.order(3, epoch)]
    for side, num in (("first", num_first), ("second", num_second)):
        values = [pair[side] for pair in pairs]
        epochs = [values[start : start + num] for start in range(0, len(values) - num + 1, num)]
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 2, "each in another order"
    assert len({(pair["first"], pair["second"]) for pair in pairs}) > max(num_first, num_second)
    assert np.array_equal(data.order(3, 1), Unpaired(data.first, data.second).order(3, 1))
    assert not np.array_equal(data.order(3, 1), data.order(4, 1))


def test_sets_that_are_sorted_alike_are_no_pairs():
    data = Unpaired([*range(500)], [*range(500)])
    met = [divmod(index, 500) for index in data.order(0, 0).tolist()]
    assert sum(first == second for first, second in met) < 10


def test_held_out_images_are_as_many_as_the_smaller_set_has():
    assert [*map(SideBySide("abc", "de").__getitem__, range(2))] == [
        {"first": "a", "second": "d"},
        {"first": "b", "second": "e"},
    ]
    assert len(SideBySide("abc", "de")) == 2
    with pytest.raises(DataError, match=r"check data\.second"):
        Unpaired([1], [])


def test_two_folders_and_messages_about_them(tmp_path):
    for name, num in (("first", 9), ("second", 4)):
        (tmp_path / name).mkdir()
        for number in range(num):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    images = Images(resolution=8, held_out=0.25, cache_dir=tmp_path / "cache")
    paths = {name: tmp_path / name for name in ("first", "second")}
    data = UnpairedImages(**paths, images=images).load(progress=False)
    assert (len(data.train.first), len(data.train.second), len(data.held_out)) == (7, 3, 1)
    assert data.describe()["training samples"] == "7 of first, 3 of second"
    assert data.train[4]["second"]["images"].shape == (3, 8, 8)
    (tmp_path / "second" / "x.png").write_text("no picture")
    with pytest.raises(DataError, match=r"data\.second=.*x\.png cannot be read.*set data\.images\.on_unreadable=skip"):
        UnpairedImages(**paths, images=images).load(progress=False)
    with pytest.raises(DataError, match=r"data\.second=/nowhere does not exist; set data\.second to a folder"):
        UnpairedImages(first=tmp_path / "first", second=Path("/nowhere"), images=images)
    with pytest.raises(DataError, match=r"data\.second=null: give both, or neither"):
        UnpairedImages(first=tmp_path / "first", images=images)
    with pytest.raises(ConfigError, match=r"data\.images\.path=.*set data\.first and data\.second"):
        UnpairedImages(images=Images(path=tmp_path / "first"))
    with pytest.raises(ConfigError, match=r"data\.images\.augment=ada: pairs of sets are not augmented"):
        UnpairedImages(images=Images(augment="ada"))


def test_remarks_name_keys_that_there_are(tmp_path, capsys):
    for side in ("first", "second"):
        (tmp_path / side).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 9, len(side))).save(tmp_path / side / f"{number}.png")
    images = Images(resolution=16, held_out=0.5, cache_dir=tmp_path / "cache")
    facts = UnpairedImages(first=tmp_path / "first", second=tmp_path / "second", images=images).load().facts
    said = capsys.readouterr().err
    assert "set data.images.resolution=8" in said and "raise data.images.held_out" in str(facts["note of second"])
    assert "data.resolution" not in said and "data.held_out" not in said
    assert "augment" not in said, "it is refused for pairs of sets"


def test_without_folders_they_are_filled_and_outlined_letters(tmp_path, monkeypatch):
    some = Glyphs(8).names()[:40]
    monkeypatch.setattr(Glyphs, "names", lambda self: some)
    data = UnpairedImages(images=Images(resolution=32, channels=1, held_out=0.1, cache_dir=tmp_path)).load(
        progress=False
    )
    sides = [np.stack([side[i]["images"].numpy() for i in range(30)]) for side in (data.train.first, data.train.second)]
    filled, outlined = (images.astype(float) / 255 for images in sides)
    assert filled[:, 0, 16].max() > 0.9 and outlined[:, 0, 16].max() > 0.9
    assert np.asarray(Glyphs(32, "outlined").open(some[0])).astype(int).max() == 255
    both = np.minimum(np.asarray(Glyphs(32).open(some[0])), np.asarray(Glyphs(32, "outlined").open(some[0])))
    assert both.max() < 200, "an outline is beside the letter, not on it"
    assert Glyphs(32).fingerprint(tmp_path) != Glyphs(32, "outlined").fingerprint(tmp_path)
