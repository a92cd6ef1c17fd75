"""What an inspection finds, near-duplicates against all pairs, and the report that it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_images import fill, noise
from trainkit.cli.main import main
from trainkit.data.near_duplicates import groups


def _num_bits(one, other):
    return bin(int(one) ^ int(other)).count("1")


def _stars(hashes, most):
    """By comparing all pairs: those with most neighbours first, and each takes those that none has taken."""
    near = [[i for i, other in enumerate(hashes) if _num_bits(one, other) <= most] for one in hashes]
    taken, found = set(), []
    for i in sorted(range(len(hashes)), key=lambda i: (-len(near[i]), i)):
        if i not in taken:
            found.append([i, *(j for j in near[i] if j not in taken and j != i)])
            taken.update(near[i])
    return sorted((group for group in found if len(group) > 1), key=min)


def test_near_hashes_are_those_of_all_pairs():
    random = np.random.default_rng(0)
    centres = random.integers(0, 2**64, 60, np.uint64, endpoint=False)
    flips = np.uint64(1) << random.integers(0, 64, (60, 4, 3)).astype(np.uint64)
    near = (centres[:, None] ^ np.bitwise_xor.reduce(flips, axis=2)).ravel()
    hashes = random.permutation(np.concatenate([centres, near, centres[:5], random.integers(0, 2**8, 40, np.uint64)]))
    for most in (0, 1, 4):
        found = groups(hashes, most)
        assert found == _stars(hashes, most)
        assert all(_num_bits(hashes[group[0]], hashes[i]) <= most for group in found for i in group)
        kept = {*range(len(hashes))} - {i for group in found for i in group[1:]}
        assert all(_num_bits(hashes[i], hashes[j]) > most for i in kept for j in kept if i < j)


def test_a_chain_is_no_group():
    chain = np.array([(1 << 2 * i) - 1 for i in range(20)], np.uint64)  # two bits from one to the next
    assert groups(chain, most_bits=4) == [[2, 0, 1, 3, 4], *([i, i + 1, i + 2] for i in range(5, 20, 3))]
    assert groups(np.array([], np.uint64)) == [] and groups(np.array([5, 6, 5], np.uint64), 0) == [[0, 2]]


def test_a_hundred_thousand_hashes_take_seconds():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 100_000, np.uint64, endpoint=False)
    hashes[1] = hashes[0] ^ np.uint64(0b1011)
    assert groups(hashes) == [[0, 1]]
    flips = np.uint64(1) << random.integers(0, 64, (1000, 99, 2)).astype(np.uint64)
    alike = np.concatenate([hashes[2:1002, None], hashes[2:1002, None] ^ np.bitwise_xor.reduce(flips, axis=2)], axis=1)
    assert sorted(len(group) for group in groups(alike.ravel())) == [100] * 1000


def messy(folder: Path) -> Path:
    fill(folder / "cats", 6, size=(64, 64))
    smooth = noise(3, (4, 4)).resize((96, 80), Image.Resampling.BICUBIC)
    (folder / "dogs").mkdir()
    smooth.save(folder / "dogs" / "smooth.png")
    smooth.save(folder / "dogs" / "again.bmp")
    smooth.resize((90, 76)).save(folder / "dogs" / "smaller.jpg", quality=80)
    noise(50, (16, 16)).convert("L").save(folder / "dogs" / "small.png")
    (folder / "dogs" / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_everything_is_found_and_reported(tmp_path, capsys):
    folder = messy(tmp_path / "in")
    assert main(["data", "inspect", str(folder), "--labels", "folders", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (found["images"], found["frames"], found["files_not_read"]) == (10, 10, "1 .txt")
    assert [Path(file["name"]).name for file in found["unreadable"]] == ["broken.png"]
    assert found["modes"] == {"RGB": 9, "L": 1} and found["formats"] == {"PNG": 8, "BMP": 1, "JPEG": 1}
    assert found["classes"] == {"cats": 6, "dogs": 4}
    assert [sorted(map(Path, group)) for group in found["duplicates"]] == [
        [Path("dogs/again.bmp"), Path("dogs/smooth.png")]
    ]
    assert [{Path(name).name for name in group} for group in found["near_duplicates"]] == [{"again.bmp", "smaller.jpg"}]
    assert [found["upscaled"][side] for side in ("16", "32", "64", "128")] == [0, 1, 1, 10]
    assert (found["widths"][0], found["widths"][-1], found["resolution"]) == (16, 96, 64)
    assert found["next"] in shown and "data.labels=folders data.on_unreadable=skip" in found["next"]
    assert "broken.png: cannot identify image file" in shown
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * 66 + 2, 3 * 66 + 2)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page and "broken.png" in page


def test_json_is_all_that_is_printed_and_errors_are_one_line(tmp_path, capsys):
    folder = fill(tmp_path / "in", 3, size=(64, 64))
    assert main(["data", "inspect", str(folder), "--json", "--resolution", "32"]) == 0
    assert json.loads(capsys.readouterr().out)["resolution"] == 32
    for words in (["nowhere"], [str(folder), "--resolution", "33"], [str(folder), "--labels", "folders"]):
        assert main(["data", "inspect", *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("trainkit: error") == 1
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    assert main(["data", "inspect", str(folder)]) == 2
    assert "cannot be read as an image" in capsys.readouterr().err


def test_messages_name_options_and_come_before_the_reading(tmp_path, capsys, monkeypatch):
    folder = fill(tmp_path / "in", 1, size=(64, 64))
    assert main(["data", "inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "one image is too few to train on" in said and "trainkit train" not in said
    monkeypatch.setattr("trainkit.data.inspection.inspect", None)  # calling it would fail
    for option, value in (("resolution", "48"), ("labels", "foo"), ("fit", "foo")):
        assert main(["data", "inspect", str(folder), f"--{option}", value]) == 2
        assert f"error: --{option}={value}: must be" in capsys.readouterr().err
    file = next(folder.iterdir())
    for output in (file, file / "new"):
        assert main(["data", "inspect", str(folder), "--output", str(output)]) == 2
        assert f"--output={output} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("grey", [False, True])
def test_what_to_type_next_fits_the_images(tmp_path, capsys, grey):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        noise(number, (40, 40)).convert("L" if grey else "RGB").save(folder / f"{number}.png")
    main(["data", "inspect", str(folder), "--json"])
    command = json.loads(capsys.readouterr().out)["next"]
    keys = f"data.path={folder} data.resolution=32 recipe.resolution=32"
    keys += " data.channels=1 recipe.channels=1" if grey else ""
    assert command == f"trainkit train recipe=progressive_gan {keys}"
