"""Generated data sets: what is written, what a run that was killed goes on with, and what a classifier gains."""

import json
import shutil
import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.test_images import fill
from tests.recipes.gan import make_recipe
from tests.recipes.test_used_elsewhere import GAN, SHORT
from trainkit.cli.main import main
from trainkit.enlarge.classifier import Labelled, is_right, network, train
from trainkit.enlarge.comparison import BOTH, REAL, Comparison, compare
from trainkit.enlarge.generated import Generated
from trainkit.enlarge.pictures import Read
from trainkit.enlarge.samples import of_dataset, of_folder
from trainkit.errors import ConfigError, DataError
from trainkit.recipe import Recipe

MADE_BY = {"run": "runs/a", "position": 8}


class _Painter:
    """In place of a recipe: the image of number n and class c is [n, c, 7] all over."""

    def __init__(self, classes=("cat", "dog", "eel")):
        self.datasets, self.made = SimpleNamespace(classes=classes), []

    def generate(self, numbers, labels=None):
        self.made += numbers
        rows = [[number, label, 7] for number, label in zip(numbers, labels or [0] * len(numbers), strict=True)]
        return torch.tensor(rows, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)


def _write(wanted, output, recipe=None, made_by=MADE_BY):
    recipe = recipe or _Painter()
    there = wanted.write(cast(Any, recipe), output, made_by, progress=False)
    return there, recipe.made


def _pixel(path):
    with Image.open(path) as image:
        return image.getpixel((1, 2))


def test_classes_take_turns_in_folders(tmp_path):
    assert _write(Generated(num=7, start=20), tmp_path / "out") == (0, [20, 21, 22, 23, 24, 25, 26])
    found = {str(path.relative_to(tmp_path / "out")): _pixel(path) for path in (tmp_path / "out").rglob("*.png")}
    names = ("cat", "dog", "eel")
    assert found == {f"{names[i % 3]}/{20 + i:08}.png": (20 + i, i % 3, 7) for i in range(7)}
    read = of_folder(tmp_path / "out", Generated(num=7, start=20), names)
    assert read.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert read.images[torch.arange(7)][:, 0, 0, 0].tolist() == [*range(20, 27)]


def test_labels_in_dataset_json_and_some_classes(tmp_path):
    _write(Generated(num=4, classes=("eel", "cat"), layout="json"), tmp_path)
    written = json.loads((tmp_path / "dataset.json").read_text())
    labels = written["labels"]
    assert written["classes"] == ["cat", "dog", "eel"]
    assert [label for _, label in labels] == [2, 0, 2, 0]
    assert [_pixel(tmp_path / file)[1] for file, _ in labels] == [2, 0, 2, 0]
    with pytest.raises(ConfigError, match=r"--classes dgo: the run has no such class.*Did you mean"):
        _write(Generated(num=4, classes=("dgo",)), tmp_path / "other")
    with pytest.raises(ConfigError, match="it was trained without classes"):
        _write(Generated(num=4, classes=("cat",)), tmp_path / "other", _Painter(()))
    with pytest.raises(ConfigError, match=r"class 'a/b' is no name of a folder: give --labels json"):
        _write(Generated(num=4), tmp_path / "third", _Painter(("a/b", "c")))


def test_what_was_killed_is_continued_and_others_refused(tmp_path):
    _write(Generated(num=5), tmp_path / "out")
    (tmp_path / "out" / "dog" / "00000004.png").unlink()
    assert _write(Generated(num=8), tmp_path / "out") == (4, [4, 5, 6, 7])
    with pytest.raises(ConfigError, match=r"--num=5: .*out holds more images of the same"):
        _write(Generated(num=5), tmp_path / "out")
    with pytest.raises(ConfigError, match="holds images of another generator or with other options"):
        _write(Generated(num=5), tmp_path / "out", made_by={**MADE_BY, "position": 9})
    with pytest.raises(ConfigError, match="holds images of another generator or with other options"):
        _write(Generated(num=5, start=1), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="full is not empty: give another folder"):
        _write(Generated(num=5), tmp_path / "full")
    for name in ("generated.json", "cat"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / name).write_text("no folder, no manifest")
        with pytest.raises(ConfigError):
            _write(Generated(num=5), tmp_path / "mine")
        (tmp_path / "mine").rename(tmp_path / f"was_{name}")


def test_a_full_disk_is_one_line_and_leaves_no_part(tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    _write(Generated(num=1), tmp_path)
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        _write(Generated(num=2), tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_what_cannot_be_generated_leaves_no_folder(tmp_path):
    class Silent(_Painter):
        generate = Recipe.generate

    with pytest.raises(ConfigError, match="Silent generates no images"):
        _write(Generated(num=2), tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()
    for num, start, said in ((0, 0, "--num=0"), (1, 2**63, "--start"), (-1, 0, "--num=-1")):
        with pytest.raises(ConfigError, match=said):
            Generated(num=num, start=start)
    with pytest.raises(ConfigError, match="--classes: cat is given twice"):
        Generated(num=2, classes=("cat", "cat"))


def test_a_gan_makes_the_same_image_of_a_number_again():
    recipe = make_recipe()
    together = recipe.generate([3, 8, 5])
    assert together.dtype == torch.uint8 and together.shape == (3, 3, 4, 4)
    alone = torch.cat([recipe.generate([number]) for number in (3, 8, 5)])
    assert (together.int() - alone.int()).abs().max() <= 1  # products of another size round otherwise
    assert not torch.equal(together[0], together[1])


def test_of_a_million_images_those_that_are_needed_are_read(tmp_path):
    _write(Generated(num=6), tmp_path)
    tracemalloc.start()
    generated = of_folder(tmp_path, Generated(num=1_000_000), ("cat", "dog", "eel"))  # most files are not there
    both = generated.with_others(generated)
    assert (
        both.images[torch.tensor([3, 1_000_005, 0, 1_000_000])][:, :2, 0, 0].tolist() == [[3, 0], [5, 2]] + [[0, 0]] * 2
    )
    assert tracemalloc.get_traced_memory()[1] < 20e6, "no names, no pixels"
    tracemalloc.stop()
    assert both.images.shape == (2_000_000, 3, 4, 4) and both.labels[[999_999, 1_000_001]].tolist() == [0, 1]


def test_no_more_images_stay_in_memory_than_fit():
    asked = []

    def read(i):
        asked.append(i)
        return torch.full((3, 2, 2), i, dtype=torch.uint8)

    images = Read(5, read, most_bytes=3 * 12 + 11)
    for _ in range(2):
        assert images[torch.tensor([4, 2, 0, 2])][:, 0, 0, 0].tolist() == [4, 2, 0, 2]
    assert asked == [0, 4, 2, 0, 4], "the first one for the shape, and image 4 twice"
    assert images[torch.tensor([], dtype=torch.int64)].shape == (0, 3, 2, 2)


def _digits(num, seed, noise=40, classes=2):
    """Bars at one of `classes` places in noise: 8x8, grey."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, num)
    images = draw.normal(128, noise, (num, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[0, :, 4 * label : 4 * label + 2] += 60
    return Labelled(torch.from_numpy(images.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels))


def test_the_classifier_learns_and_is_reproducible():
    held_out = _digits(200, 1)
    runs = [is_right(train(_digits(256, 0), 2, num_steps=40, seed=3), held_out) for _ in range(2)]
    assert torch.equal(runs[0], runs[1]) and runs[0].float().mean() > 0.95
    assert [network(3, size, 10)(torch.zeros(2, 3, size, size)).shape for size in (4, 8, 64)] == [(2, 10)] * 3


def test_good_images_help_and_wrong_labels_harm():
    real, held_out = _digits(16, 0, noise=90), _digits(300, 1, noise=90)
    good = compare(real, _digits(400, 2, noise=90), held_out, 2, num_seeds=2, num_epochs=400)
    assert good.verdict().startswith("generated images helped: with them, +")
    assert [row[0] for row in good.rows()] == ["real", "generated", "both"] and good.rows()[2][1] == "416"
    wrong = _digits(400, 2, noise=90)
    harmed = compare(real, Labelled(wrong.images, 1 - wrong.labels), held_out, 2, num_seeds=2, num_epochs=400)
    assert harmed.verdict().startswith("generated images harmed: with them, -")


def test_a_difference_of_chance_is_called_so():
    right = torch.rand(4, 500, generator=torch.Generator().manual_seed(0)) < 0.9
    other = right.clone()
    other[:, 0] = ~other[:, 0]
    found = Comparison({REAL: right, BOTH: other}, {REAL: 1, BOTH: 2})
    assert found.verdict().startswith("no clear difference")
    differences = (other.double() - right.double()).numpy()
    errors = [values.std(ddof=1) / len(values) ** 0.5 for values in (differences.mean(0), differences.mean(1))]
    assert found.standard_error == pytest.approx(max(errors)) and found.gain == pytest.approx(differences.mean())


def test_what_cannot_be_compared():
    real = _digits(8, 0)
    with pytest.raises(DataError, match=r"generated ones of \[1, 4, 4\]"):
        compare(real, Labelled(real.images[..., :4, :4], real.labels), real, 2, num_seeds=1, num_epochs=1)
    for height, width in ((6, 6), (8, 4), (2, 2)):
        odd = Labelled(real.images[..., :height, :width], real.labels)
        with pytest.raises(DataError, match=f"images of {width}x{height}: the classifier takes squares"):
            compare(odd, odd, odd, 2, num_seeds=1, num_epochs=1)
    with pytest.raises(ConfigError, match="--seeds=0"):
        compare(real, real, real, 2, num_seeds=0, num_epochs=1)
    with pytest.raises(DataError, match="no labels"):
        of_dataset([{"images": real.images[0]}], 8)


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    assert main(["data", "augment", str(tmp_path), str(tmp_path / "out"), "--num", "0"]) == 2
    assert "--num=0: must be 1 or more" in capsys.readouterr().err
    for options, said in (
        (["--seeds", "3"], "--seeds 3: has no effect without --compare"),
        (["--epochs", "2"], "--epochs 2.0: has no effect without --compare"),
        (["--seeds", "0", "--compare", "x"], "--seeds=0: must be 1 or more"),
        (["--epochs", "inf", "--compare", "x"], "--epochs=inf: must be 1 or more"),
    ):
        assert main(["data", "augment", str(tmp_path), str(tmp_path / "out"), "--num", "1", *options]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("labels", ["folders", "auto"])
def test_labels_of_the_compared_images_may_lie_elsewhere(tmp_path, capsys, labels):
    """The run has class folders, and the same images dataset.json, or the other way round."""
    for start, name in enumerate(("cat", "dog")):
        fill(tmp_path / "folders" / name, 20, start=20 * start)
    shutil.copytree(tmp_path / "folders", tmp_path / "json" / "all")
    names = sorted(str(path.relative_to(tmp_path / "json")) for path in (tmp_path / "json").rglob("*.png"))
    written = {"labels": [[name, int("dog" in name)] for name in names], "classes": ["cat", "dog"]}
    (tmp_path / "json" / "dataset.json").write_text(json.dumps(written))
    trained, other = ("folders", "json") if labels == "folders" else ("json", "folders")
    given = [*GAN, *SHORT, f"data.path={tmp_path / trained}", f"data.labels={labels}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *given]) == 0
    command = ["data", "augment", str(tmp_path / "run"), str(tmp_path / "out"), "--num", "20"]
    capsys.readouterr()
    assert main([*command, "--compare", str(tmp_path / other), "--seeds", "1", "--epochs", "1"]) == 0
    found = capsys.readouterr().out
    assert "real and generated images" in found or "generated images helped" in found or "harmed" in found
