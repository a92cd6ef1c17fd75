"""Images: every source and mode, the pyramid, the split, the cache, and what cannot be read."""

import io
import json
import multiprocessing
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.present import present
from trainkit.data import Images, Pyramid
from trainkit.data.glyphs import Glyphs
from trainkit.data.pyramid import levels, resolutions
from trainkit.data.square import square
from trainkit.errors import ConfigError, DataError


def noise(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """An image (width, height) that is like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def fill(folder: Path, count: int = 40, size: tuple[int, int] = (24, 16), start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        noise(number, size).save(folder / f"{number:03}.png")
    return folder


def small(path: Path | None, tmp_path: Path, **settings: Any) -> Images:
    return Images(**{"path": path, "resolution": 8, "held_out": 0.2, "cache_dir": tmp_path / "cache", **settings})


def everything(dataset: Pyramid) -> np.ndarray:
    return dataset.__getitems__(list(range(len(dataset))))["images"].numpy()


def both_sides(images: Images) -> np.ndarray:
    """All pixels, in an order that does not depend on the split."""
    loaded = images.load(progress=False)
    pixels = np.concatenate([everything(loaded.train), everything(loaded.held_out)])
    return pixels[np.lexsort(pixels.reshape(len(pixels), -1).T)]


def summary(tmp_path: Path) -> dict[str, Any]:
    (file,) = (tmp_path / "cache").glob("images-*/summary.json")
    return json.loads(file.read_text())


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.tiff", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.JPG", {"format": "JPEG", "quality": 95, "subsampling": 0}, 6),
        ("a.gif", {}, 40),  # 256 colours
    ],
)
def test_every_format_gives_the_same_pixels(tmp_path, name, settings, tolerance):
    smooth = noise(3, (3, 3)).resize((24, 24), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / name, **settings)
    noise(1).save(tmp_path / "other.png")
    expected = square(smooth, 8, 3).astype(int)
    found = both_sides(small(tmp_path, tmp_path / "c")).astype(int)
    assert len(found) == 2
    assert min(np.abs(image - expected).max() for image in found) <= tolerance


def test_a_folder_is_searched_at_any_depth_but_for_hidden_files(tmp_path):
    fill(tmp_path / "in" / "a" / "b", 3)
    fill(tmp_path / "in" / "c", 2, start=3)
    fill(tmp_path / "in" / ".hidden", 1, start=5)
    (tmp_path / "in" / "._000.png").write_bytes(b"left by a Mac")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    expected = np.stack([square(noise(number), 8, 3) for number in range(5)])
    found = both_sides(small(tmp_path / "in", tmp_path))
    assert np.array_equal(found, expected[np.lexsort(expected.reshape(5, -1).T)])


def test_a_zip_file_holds_what_the_folder_holds(tmp_path):
    folder = fill(tmp_path / "in" / "deep", 20).parent
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/deep/._000.png", b"left by a Mac")
        archive.writestr("labels.csv", "a,b")
    zipped, plain = (both_sides(small(path, tmp_path)) for path in (tmp_path / "in.zip", folder))
    assert len(zipped) == 20
    assert np.array_equal(zipped, plain)


def test_the_built_in_letters_are_all_there_and_different(tmp_path):
    loaded = Images(resolution=16, channels=1, cache_dir=tmp_path / "cache").load(progress=False)
    assert summary(tmp_path)["images"] == len(loaded.train) + len(loaded.held_out)
    assert len(loaded.train) + len(loaded.held_out) + summary(tmp_path)["duplicates"] == 62 * 12 * 4
    assert summary(tmp_path)["duplicates"] < 100
    pixels = everything(loaded.train).astype(float)
    assert pixels.max(axis=(1, 2, 3)).min() > 100  # each has ink
    assert pixels.mean(axis=(1, 2, 3)).min() > 0.02 * 255
    assert pixels.mean(axis=(1, 2, 3)).max() < 0.8 * 255  # and black around it
    assert 0.02 < len(loaded.held_out) / len(loaded.train) < 0.09


def test_a_letter_has_the_size_given_and_is_centered():
    glyphs = Glyphs(128)
    names = glyphs.names()
    assert len(names) == len(set(names)) == 62 * 12 * 4
    for name in names[::97]:
        image = glyphs.open(name)
        left, top, right, bottom = present(image.point(lambda value: 255 * (value > 127)).getbbox())
        share = float(name.rsplit("/", 1)[1])
        assert abs(max(right - left, bottom - top) - share * image.width) < 0.05 * image.width
        assert abs((left + right) / 2 - 64) < 6
        assert abs((top + bottom) / 2 - 64) < 6


def test_images_smaller_than_the_resolution_are_scaled_up(tmp_path):
    assert square(noise(0, (3, 3)), 16, 3).shape == (3, 16, 16)


# -- the pyramid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_every_level_is_the_average_of_the_largest_rounded_once(tmp_path, channels):
    folder = fill(tmp_path / "in", 12, size=(64, 64))
    loaded = small(folder, tmp_path, resolution=64, channels=channels).load(progress=False)
    for dataset in (loaded.train, loaded.held_out):
        everyone = list(range(len(dataset)))
        top = dataset.__getitems__(everyone)["images"]
        assert top.dtype == torch.uint8
        assert top.shape == (len(dataset), channels, 64, 64)
        for resolution in (4, 8, 16, 32, 64):
            level = dataset.at(resolution)
            assert (level.resolution, level.channels, len(level)) == (resolution, channels, len(dataset))
            expected = F.avg_pool2d(top.double(), 64 // resolution).round()
            assert torch.equal(level.__getitems__(everyone)["images"].double(), expected)


def test_levels_of_the_largest_resolution_are_exact():
    image = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024), np.uint8)
    *_, smallest = levels(image)
    expected = F.avg_pool2d(torch.from_numpy(image).double(), 256).round()
    assert np.array_equal(smallest, expected.numpy())
    assert [level.shape[-1] for level in levels(image)] == resolutions(1024)[::-1]


def test_items_batches_and_pickles_agree(tmp_path):
    train = small(fill(tmp_path / "in"), tmp_path).load(progress=False).train
    batch = train.__getitems__([5, 0, 5])["images"]
    assert torch.equal(batch, torch.stack([train[i]["images"] for i in (5, 0, 5)]))
    assert train.__getitems__([])["images"].shape == (0, 3, 8, 8)
    assert torch.equal(train[-1]["images"], train[len(train) - 1]["images"])
    with pytest.raises(IndexError):
        train[len(train)]
    for dataset in (train, train.at(4)):
        pickled = pickle.dumps(dataset)
        assert len(pickled) < 2000  # and none of the pixels
        assert np.array_equal(everything(pickle.loads(pickled)), everything(dataset))
    batch.zero_()  # a copy: what is on disk stays
    assert everything(train).any()


def test_a_resolution_that_is_not_kept_is_named(tmp_path):
    train = small(fill(tmp_path / "in"), tmp_path).load(progress=False).train
    for resolution in (2, 6, 16):
        with pytest.raises(ConfigError, match=rf"{resolution}: the data has 4, 8; set data\.resolution"):
            train.at(resolution)


# -- the split ---------------------------------------------------------------------------------------------------------


def test_the_same_pixels_are_one_image_and_never_on_both_sides(tmp_path):
    folder = fill(tmp_path / "in", 60)
    for number in range(0, 60, 3):  # other files and formats, the same pixels
        noise(number).save(folder / f"copy{number}.bmp")
    loaded = small(folder, tmp_path).load(progress=False)
    train, held_out = ({image.tobytes() for image in everything(side)} for side in (loaded.train, loaded.held_out))
    assert not train & held_out
    assert len(train) + len(held_out) == len(loaded.train) + len(loaded.held_out) == 60
    assert summary(tmp_path) == {"images": 60, "duplicates": 20, "unreadable": [], "upscaled": 0, "profiles_ignored": 0}
    assert 3 <= len(held_out) <= 24


def test_more_images_move_none_to_the_other_side(tmp_path):
    def sides() -> list[set[bytes]]:
        loaded = small(folder, tmp_path).load(progress=False)
        return [{image.tobytes() for image in everything(side)} for side in (loaded.train, loaded.held_out)]

    folder = fill(tmp_path / "in", 50)
    before = sides()
    fill(folder, 50, start=50)
    after = sides()
    assert before[0] < after[0]
    assert before[1] < after[1]


def test_two_images_make_one_on_either_side_and_one_is_too_few(tmp_path):
    folder = fill(tmp_path / "in", 2)
    loaded = small(folder, tmp_path, held_out=0.01).load(progress=False)
    assert (len(loaded.train), len(loaded.held_out)) == (1, 1)
    (folder / "001.png").write_bytes((folder / "000.png").read_bytes())
    with pytest.raises(DataError, match=r"holds 1 different images .*add more"):
        small(folder, tmp_path).load(progress=False)


# -- what cannot be read -----------------------------------------------------------------------------------------------


def broken_files() -> dict[str, bytes]:
    png, jpeg = encoded(noise(100, (64, 64))), encoded(noise(101, (64, 64)), "JPEG")
    return {"cut.png": png[: len(png) // 2], "cut.jpg": jpeg[: len(jpeg) // 2], "empty.png": b"", "text.webp": b"hello"}


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("name", broken_files())
def test_an_unreadable_image_is_an_error_or_skipped_and_counted(tmp_path, capsys, name, zipped):
    path = fill(tmp_path / "in", 6)
    (path / name).write_bytes(broken_files()[name])
    if zipped:
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            for file in path.iterdir():
                archive.write(file, f"deep/{file.name}")
        path = tmp_path / "in.zip"
    for _ in range(2):  # an error leaves nothing behind that the next run could take for a cache
        with pytest.raises(DataError, match=rf"{path}: .*{name} cannot be read .*on_unreadable=skip") as caught:
            small(path, tmp_path).load(progress=False)
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("images-*"))

    for _ in range(2):  # built, and found
        loaded = small(path, tmp_path, on_unreadable="skip").load()
        assert len(loaded.train) + len(loaded.held_out) == 6
        assert "1 unreadable images skipped, 6 read" in capsys.readouterr().err
    with pytest.raises(DataError, match=f"{name} cannot be read"):  # that cache holds is not all there is
        small(path, tmp_path).load(progress=False)


def test_a_damaged_member_of_a_zip_file_is_named(tmp_path):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", encoded(noise(number)))
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF  # inside the pixels of 0.png: only the checksum tells
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        small(path, tmp_path).load(progress=False)


def test_a_link_to_nothing_is_an_unreadable_image(tmp_path):
    folder = fill(tmp_path / "in", 4)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        small(folder, tmp_path).load(progress=False)
    assert len(both_sides(small(folder, tmp_path, on_unreadable="skip"))) == 4


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_huge_images_and_files_are_left_alone(tmp_path, monkeypatch, zipped):
    folder = fill(tmp_path / "in", 4)
    Image.new("1", (2000, 1000)).save(folder / "wide.png")
    Image.new("RGB", (700, 500)).save(folder / "heavy.bmp")  # 1,050,054 bytes
    if zipped:
        with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
        monkeypatch.setattr(zipfile.ZipFile, "read", _refuse_heavy(zipfile.ZipFile.read))
    path = tmp_path / "in.zip" if zipped else folder
    limits = {"max_pixels": 1_999_999, "max_file_mb": 1}
    loaded = small(path, tmp_path, on_unreadable="skip", **limits).load(progress=False)
    assert (loaded.facts["images"], loaded.facts["unreadable images"]) == (4, 2)
    says = r"heavy\.bmp cannot be read .*1,050,054 bytes, and data\.max_file_mb=1"
    with pytest.raises(DataError, match=says):
        small(path, tmp_path, **limits).load(progress=False)
    (folder / "heavy.bmp").unlink()
    with pytest.raises(DataError, match=r"wide\.png .*2000 x 1000 pixels, and data\.max_pixels=1999999"):
        small(folder, tmp_path, max_pixels=1_999_999).load(progress=False)


def _refuse_heavy(read):
    def checked(archive, name, *args):
        assert name != "heavy.bmp", "its size is known before it is read"
        return read(archive, name, *args)

    return checked


def test_links_are_followed_and_what_is_not_read_is_counted(tmp_path, capsys):
    folder, elsewhere = fill(tmp_path / "in", 3), fill(tmp_path / "elsewhere", 3, start=3)
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    for name in ("a.heic", "b.heic", "notes.md"):
        (folder / name).write_bytes(b"")
    loaded = small(folder, tmp_path).load()
    assert loaded.facts["images"] == 6
    assert loaded.facts["files not read"] == "2 .heic, 1 .md"
    told = capsys.readouterr().err
    assert "trainkit: files not read: 2 .heic, 1 .md" in told
    assert "held-out images are too few to measure well" in told


def test_the_held_out_sample_has_its_size_and_is_not_trained_on(tmp_path):
    folder = fill(tmp_path / "in", 60)
    whole = small(folder, tmp_path, held_out=0.5, held_out_samples=None).load(progress=False)
    some = small(folder, tmp_path, held_out=0.5, held_out_samples=7).load(progress=False)
    assert np.array_equal(everything(some.train), everything(whole.train))
    assert len(some.held_out) == 7 < len(whole.held_out)
    assert {i.tobytes() for i in everything(some.held_out)} < {i.tobytes() for i in everything(whole.held_out)}
    assert some.describe()["held-out images"] == len(whole.held_out)
    first = {image.tobytes() for image in everything(whole.held_out)[:7]}
    assert {image.tobytes() for image in everything(some.held_out)} != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 48}, r"data\.resolution=48: must be one of 4, 8, .*1024"),
        ({"resolution": 2}, r"data\.resolution=2: must"),
        ({"resolution": 2048}, r"data\.resolution=2048: must"),
        ({"channels": 4}, r"data\.channels=4: must be 1 \(grey\) or 3"),
        ({"held_out": 0.0}, r"data\.held_out=0\.0: must be above 0"),
        ({"held_out_samples": 0}, r"data\.held_out_samples=0: must be at least 1, or null"),
        ({"max_pixels": 0}, r"data\.max_pixels=0: must be 1 to 178956970"),
        ({"max_file_mb": 0}, r"data\.max_file_mb=0: must be at least 1"),
        ({"on_unreadable": "ignore"}, r"data\.on_unreadable=ignore: must be error or skip"),
        ({"num_workers": 0}, r"data\.num_workers=0: must be at least 1"),
    ],
)
def test_wrong_settings_are_named_at_once(settings, message):
    with pytest.raises(DataError, match=message) as caught:
        Images(**settings)
    assert "\n" not in str(caught.value)


def test_paths_without_images_are_named_at_once(tmp_path):
    def message(path: Path) -> str:
        with pytest.raises(DataError) as caught:
            Images(path=path)
        assert f"data.path={path}" in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist; set data.path to" in message(tmp_path / "no")
    (tmp_path / "in").mkdir()
    assert "is empty; put images there" in message(tmp_path / "in")
    for name in ("a.txt", "b.txt", "c.csv", "noname"):
        (tmp_path / "in" / name).write_text("x")
    assert "found 2 .txt, 1 .csv, 1 without a suffix; set data.path" in message(tmp_path / "in")
    noise(0).save(tmp_path / "one.png")
    assert "is one image; set data.path to a folder" in message(tmp_path / "one.png")
    assert "is not a zip file" in message(tmp_path / "in" / "a.txt")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    assert "is not a zip file" in message(tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    assert "found 1 .txt" in message(tmp_path / "none.zip")


# -- the cache ---------------------------------------------------------------------------------------------------------


def num_caches(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").glob("images-*")))


def test_a_second_load_decodes_nothing_and_content_decides(tmp_path, monkeypatch):
    folder = fill(tmp_path / "in", 10)
    before = both_sides(small(folder, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("trainkit.data.decoding.plain", None)  # calling it would fail
        assert np.array_equal(both_sides(small(folder, tmp_path)), before)
        small(folder, tmp_path, held_out=0.5).load(progress=False)  # the same pixels, cut elsewhere
        (folder / "000.png").touch()
        folder = folder.rename(tmp_path / "moved")
        assert np.array_equal(both_sides(small(folder, tmp_path)), before)
    assert num_caches(tmp_path) == 1
    for settings in ({"resolution": 4}, {"channels": 1}):
        small(folder, tmp_path, **settings).load(progress=False)
    assert num_caches(tmp_path) == 3


def test_a_file_that_changes_under_its_size_and_time_is_seen(tmp_path):
    folder = fill(tmp_path / "in", 10)
    for number, value in enumerate((10, 20)):
        path = folder / "flat.bmp"  # uncompressed, so every colour takes as many bytes
        Image.new("RGB", (8, 8), (value, value, value)).save(path)
        os.utime(path, ns=(10**18, 10**18))
        assert (both_sides(small(folder, tmp_path)) == value).all(axis=(1, 2, 3)).sum() == 1
        assert num_caches(tmp_path) == number + 1


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    folder = fill(tmp_path / "in", 10)

    def no_space(*_: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trainkit.data.images.PyramidWriter.append", no_space)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); free some"):
            small(folder, tmp_path).load(progress=False)
    assert not [path for path in (tmp_path / "cache").iterdir() if "images-" in path.name]
    assert len(both_sides(small(folder, tmp_path))) == 10


def _load(arguments: tuple[Path, Path]) -> bytes:
    return both_sides(small(*arguments)).tobytes()


def test_processes_that_race_find_one_whole_cache(tmp_path):
    folder = fill(tmp_path / "in", 30)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(_load, [(folder, tmp_path)] * 3, chunksize=1)
    assert found[0] == found[1] == found[2] == _load((folder, tmp_path))
    assert num_caches(tmp_path) == 1
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]
