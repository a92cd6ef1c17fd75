"""Labels: from folders and from dataset.json, beside the pixels, through duplicates, the split and the cache."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from tests.data.test_images import fill, noise, num_caches, small
from trainkit.data import Images
from trainkit.data.square import square
from trainkit.errors import DataError


def labelled(tmp_path: Path, count: int = 12) -> Path:
    """Images in the folders of three classes, and as many labels in dataset.json, counted from the other end."""
    folder = tmp_path / "in"
    for number, name in enumerate(("cat", "dog", "emu")):
        fill(folder / name / "deep", count, start=number * count)
    write_json(folder, {str(path.relative_to(folder)): 9 - number // count for number, path in paths(folder)})
    return folder


def paths(folder: Path) -> list[tuple[int, Path]]:
    return list(enumerate(sorted(folder.rglob("*.png"))))


def write_json(folder: Path, labels: object) -> None:
    labels = [[name, label] for name, label in labels.items()] if isinstance(labels, dict) else labels
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def zipped(folder: Path, root: Path) -> Path:
    path = folder.parent / f"of_{root.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(root))
    return path


def label_of_pixels(images: Images) -> dict[bytes, str]:
    """The name of the class of each image, by its pixels, over both splits."""
    loaded, found = images.load(progress=False), {}
    for side in (loaded.train, loaded.held_out):
        batch = side.__getitems__(list(range(len(side))))
        assert (batch["labels"].dtype, batch["labels"].shape) == (torch.int64, (len(side),))
        for image, label in zip(batch["images"].numpy(), batch["labels"].tolist(), strict=True):
            found[image.tobytes()] = loaded.classes[label]
    return found


def expected(names: list[str], count: int = 12) -> dict[bytes, str]:
    return {square(noise(number), 8, 3).tobytes(): names[number // count] for number in range(count * len(names))}


@pytest.mark.parametrize("kind", ["folder", "zip", "zip of the folder itself"])
def test_folders_and_json_give_each_image_its_class(tmp_path, kind):
    folder = labelled(tmp_path)
    path = folder if kind == "folder" else zipped(folder, folder if kind == "zip" else folder.parent)
    assert label_of_pixels(small(path, tmp_path, labels="folders")) == expected(["cat", "dog", "emu"])
    for labels in ("json", "auto"):
        assert label_of_pixels(small(path, tmp_path, labels=labels)) == expected(["9", "8", "7"])
    assert num_caches(tmp_path) == 2
    loaded = small(path, tmp_path, labels="folders").load(progress=False)
    assert loaded.classes == ("cat", "dog", "emu")
    assert (loaded.facts["classes"], "files not read" in loaded.facts) == (3, False)
    plain = small(path, tmp_path, labels="none").load(progress=False)
    assert plain.classes == () and [*plain.train[0]] == ["images"]
    # Labels move no image to the other side of the split.
    for side, other in ((loaded.train, plain.train), (loaded.held_out, plain.held_out)):
        assert torch.equal(*(data.__getitems__(list(range(len(side))))["images"] for data in (side, other)))


def test_auto_takes_folders_for_nothing_but_folders(tmp_path):
    folder = labelled(tmp_path)
    write_json(folder, None)
    assert small(folder, tmp_path).load(progress=False).classes == ()
    (folder / "dataset.json").write_text('{"name": "of another program"}')
    assert small(folder, tmp_path).load(progress=False).classes == ()
    assert num_caches(tmp_path) == 1


def test_items_batches_levels_and_pickles_have_the_labels(tmp_path):
    train = small(labelled(tmp_path), tmp_path, labels="folders").load(progress=False).train
    batch = train.__getitems__([5, 0, 5])
    collated = default_collate([train[index] for index in (5, 0, 5)])
    assert all(torch.equal(batch[name], collated[name]) for name in ("images", "labels"))
    assert train[0]["labels"].shape == ()
    for data in (train.at(4), pickle.loads(pickle.dumps(train))):
        assert torch.equal(data.__getitems__([5, 0, 5])["labels"], batch["labels"])
    assert np.array_equal(train.labels, train.__getitems__(list(range(len(train))))["labels"])
    assert len(pickle.dumps(train)) < 2000


def test_the_same_pixels_under_two_labels_are_counted(tmp_path, capsys):
    folder = labelled(tmp_path)
    noise(0).save(folder / "cat" / "again.bmp")  # the same class
    noise(1).save(folder / "emu" / "other.bmp")  # another one
    images = small(folder, tmp_path, labels="folders")
    assert label_of_pixels(images) == expected(["cat", "dog", "emu"])
    loaded = images.load()
    assert loaded.facts["duplicates dropped"] == 2
    said = capsys.readouterr().err
    assert "duplicates under another label: 1: the first label in the order of the names is used" in said


def test_an_unreadable_image_moves_no_label(tmp_path):
    folder = labelled(tmp_path)
    (folder / "cat" / "000.png").write_bytes(b"no image")
    (folder / "dog" / "zzz.png").write_bytes(b"no image")
    images = small(folder, tmp_path, labels="folders", on_unreadable="skip")
    assert label_of_pixels(images) == expected(["cat", "dog", "emu"])


def test_labels_that_change_are_seen(tmp_path):
    folder = labelled(tmp_path)
    label_of_pixels(small(folder, tmp_path))
    write_json(folder, {str(path.relative_to(folder)): f"{number % 2}" for number, path in paths(folder)})
    assert set(label_of_pixels(small(folder, tmp_path)).values()) == {"0", "1"}


def test_the_built_in_letters_have_their_characters_as_classes(tmp_path):
    loaded = small(None, tmp_path, channels=1, labels="folders").load(progress=False)
    assert len(loaded.classes) == 62 and loaded.classes[:11] == (*"0123456789", "A")
    assert set(loaded.train.labels) == set(range(62))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["cat/deep/000.png", 1]], r"cat/deep/001\.png, .*003\.png and 32 more images are without a label in dataset"),
        ([["cat/deep/000.png", 1], ["cat/deep/000.png", 2]], r"cat/deep/000\.png has two labels; remove one"),
        ([["cat/deep/000.png", [0.5, 1.0]]], r"must be \[image, class\].* \(not a vector\)"),
        ([["cat/deep/000.png", True]], r"must be \[image, class\]"),
        (["cat/deep/000.png"], r"must be \[image, class\]"),
        ("cat", r'"labels" must be a list'),
    ],
)
def test_labels_that_cannot_be_used_are_one_line(tmp_path, labels, message):
    folder = labelled(tmp_path)
    write_json(folder, labels)
    with pytest.raises(DataError, match=message) as caught:
        small(folder, tmp_path).load(progress=False)
    assert "data.labels=none" in str(caught.value) and "\n" not in str(caught.value)
    assert small(folder, tmp_path, labels="none").load(progress=False).classes == ()


def test_names_of_classes_in_json_are_used(tmp_path):
    folder = labelled(tmp_path)
    labels = {str(path.relative_to(folder)): (0, 2, "fox")[number % 3] for number, path in paths(folder)}
    whole = {"labels": [*labels.items()], "classes": ["cat", "dog", "eel", "fox"]}
    (folder / "dataset.json").write_text(json.dumps(whole))
    loaded = small(folder, tmp_path).load(progress=False)
    assert loaded.classes == ("cat", "eel", "fox") and {*loaded.train.labels} == {0, 1, 2}
    for classes, message in (
        (["cat", "dog"], r"has the class 2, and \"classes\" are 2: cat, dog; change one"),
        (["cat", "dog", "eel"], r"has the class fox, and \"classes\" are 3"),
        (["cat", "cat", "eel", "fox"], r'"classes" must be a list of different names'),
        (4, r'"classes" must be a list of different names'),
    ):
        (folder / "dataset.json").write_text(json.dumps({**whole, "classes": classes}))
        with pytest.raises(DataError, match=message):
            small(folder, tmp_path).load(progress=False)


def test_classes_that_are_missing_are_one_line(tmp_path):
    folder = labelled(tmp_path)
    write_json(folder, {str(path.relative_to(folder)): 3 for _, path in paths(folder)})
    with pytest.raises(DataError, match=r"dataset\.json: all images are of one class \(3\)"):
        small(folder, tmp_path).load(progress=False)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset\.json of data\.path is no JSON"):
        small(folder, tmp_path).load(progress=False)
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"data\.labels=json: data\.path holds no dataset\.json"):
        small(folder, tmp_path, labels="json").load(progress=False)
    noise(99).save(folder / "alone.png")
    with pytest.raises(DataError, match=r"alone\.png is in no folder below data\.path"):
        small(folder, tmp_path, labels="folders").load(progress=False)
    with pytest.raises(DataError, match=r"data\.labels=yes: must be auto, none, folders, json or column"):
        small(folder, tmp_path, labels="yes")
