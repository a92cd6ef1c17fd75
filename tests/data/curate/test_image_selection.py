"""`trainkit data select` of images: what each rule drops, and what is written."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_images import noise
from trainkit.cli.main import main
from trainkit.data.curate.diversity import lowest_share, similarities
from trainkit.data.curate.image_features import ImageFeatures
from trainkit.data.decoding import Decoded
from trainkit.data.images import Images


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
    for number in range(6):
        noise(number, (64, 64)).save(folder / "cats" / f"{number}.png")
    noise(2, (64, 64)).save(folder / "dogs" / "same.bmp")
    smooth = noise(3, (4, 4)).resize((96, 80), Image.Resampling.BICUBIC)
    smooth.save(folder / "dogs" / "smooth.png")
    smooth.resize((90, 76)).save(folder / "dogs" / "smooth.jpg", quality=80)
    noise(50, (16, 16)).save(folder / "dogs" / "small.png")
    (folder / "dogs" / "broken.png").write_bytes(b"no image")
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    labels = [[name, int("dogs" in name)] for name in names]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "classes": ["cats", "dogs"]}))
    return folder


def select(source, *rules, to="out"):
    target = source.parent / to
    assert main(["data", "select", str(source), "--to", str(target), *map(str, rules)]) == 0
    names = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    return [name for name in names if name not in ("selection.json", "dataset.json")], json.loads(
        (target / "selection.json").read_text()
    )


def test_each_rule_drops_what_it_says(pictures):
    kept, selection = select(pictures, "--min-side", 32, "--drop-exact", "--drop-near")
    assert [step["rule"] for step in selection["steps"]] == [
        *("broken", "below 32 pixels", "exact duplicates", "near-duplicates")
    ]
    assert [step["dropped"] for step in selection["steps"]] == [1, 1, 1, 1]
    assert [step["before"] for step in selection["steps"]] == [11, 10, 9, 8]
    assert len([name for name in kept if "smooth" in name]) == 1 and len(kept) == 7
    assert "dogs/same.bmp" not in kept and {f"cats/{number}.png" for number in range(6)} <= {*kept}
    assert all((pictures / name).read_bytes() == (pictures.parent / "out" / name).read_bytes() for name in kept)
    labels = json.loads((pictures.parent / "out" / "dataset.json").read_text())
    assert [name for name, _ in labels["labels"]] == kept and labels["classes"] == ["cats", "dogs"]
    images = Images(path=pictures.parent / "out", resolution=16, cache_dir=pictures.parent / "cache", held_out=0.3)
    assert len(images.load(progress=False).classes) == 2


def test_a_zip_file_gives_the_same(pictures):
    with zipfile.ZipFile(pictures.parent / "pictures.zip", "w") as file:
        for path in sorted(pictures.rglob("*.*")):
            file.write(path, f"top/{path.relative_to(pictures)}")
    rules = ("--min-side", 32, "--drop-exact", "--drop-near")
    kept, selection = select(pictures.parent / "pictures.zip", *rules, to="from_zip")
    assert (kept, selection["content"]) == (lambda found: (found[0], found[1]["content"]))(select(pictures, *rules))


def test_links_and_lists(pictures):
    kept, _ = select(pictures, "--drop-exact", "--form", "links", to="links")
    assert all((pictures / name).samefile(pictures.parent / "links" / name) for name in kept)
    listed, selection = select(pictures, "--drop-exact", "--form", "list", to="list")
    assert listed == ["kept.txt"] and selection["form"] == "list"
    assert (pictures.parent / "list" / "kept.txt").read_text().splitlines() == kept


def test_diversity_is_that_of_the_features(pictures):
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs pip install 'trainkit[features]'")
    kept, selection = select(pictures, "--diverse", 0.7)
    images = Images(path=pictures, labels="none", on_unreadable="skip")
    decoder, source = images.decoder(224), images.source()
    names = [name for name in source.names() if "broken" not in name]
    decoded = [one for name in names if isinstance(one := decoder.decode(source, name), Decoded)]
    pixels = np.stack([np.broadcast_to(one.frames[0], (3, 224, 224)) for one in decoded])
    similarity = similarities(ImageFeatures()(pixels))
    is_kept = lowest_share(similarity, 0.7)
    assert kept == [name for name, is_left in zip(names, is_kept, strict=True) if is_left] and len(kept) == 7
    assert selection["steps"][1]["similarity"] == pytest.approx(float(similarity[is_kept].max()), abs=1e-3)


def test_a_function_sees_images(pictures, tmp_path, monkeypatch):
    (tmp_path / "my_images.py").write_text("def is_wide(image): return image.width > image.height\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kept, _ = select(pictures, "--function", "my_images:is_wide", "--trust")
    assert kept == ["dogs/smooth.jpg", "dogs/smooth.png"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--min-side", "0"], "--min-side=0: must be 1 or more"),
        (["--form", "copy"], "Did you mean 'copies'"),
        (["--loss-of", "run"], "--loss-of: is about text"),
        (["--min-side", "5000"], "no image is left: below 5,000 pixels dropped the last 10"),
    ],
)
def test_a_mistake_is_one_line(pictures, arguments, says, capsys):
    assert main(["data", "select", str(pictures), "--to", str(pictures.parent / "out"), *arguments]) == 2
    assert re.search(says, capsys.readouterr().err) and not (pictures.parent / "out").exists()


@pytest.mark.parametrize(("name", "code"), [("../outside.png", 0), ("/tmp/outside.png", 2)])  # the first is hidden
def test_a_zip_file_cannot_write_elsewhere(tmp_path, name, code):
    noise(0, (8, 8)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.write(tmp_path / "a.png", "a.png")
        file.writestr(name, (tmp_path / "a.png").read_bytes())
    assert main(["data", "select", str(tmp_path / "bad.zip"), "--to", str(tmp_path / "out" / "er")]) == code
    assert not [*tmp_path.rglob("outside.png")] and not Path("/tmp/outside.png").exists()
