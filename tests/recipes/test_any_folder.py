"""Configuration only: both recipes train on whatever lies in a folder, on any number of processes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.jobs import run

WORDS = (
    "the",
    "a",
    "cat",
    "dog",
    "tree",
    "house",
    "sees",
    "likes",
    "eats",
    "red",
    "old",
    "small",
    "and",
    "under",
    "two",
)
RANKS = [None, pytest.param(1, marks=pytest.mark.nightly), 2, 4]  # no torchrun, and two ranks, stand for one
SHORT = ["tracking=none", "evaluate_every=null", "save_every=null"]
BERT = ["recipe=bert", "recipe.num_steps=6", "recipe.batch_size=8", "schedule.warmup=2", "data.vocab_size=200"]
GAN = [
    "recipe=progressive_gan",
    "recipe.resolution=8",
    "recipe.stable_images=32",
    "recipe.fade_images=32",
    "recipe.fmap_base=64",
    "recipe.fmap_max=16",
    "recipe.latent_dim=8",
    "recipe.evaluation.num_pairs=32",
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    draw, folder = random.Random(0), tmp_path_factory.mktemp("texts")
    for i in range(6):
        paragraphs = [" ".join(draw.choices(WORDS, k=draw.randrange(8, 60))) + "." for _ in range(40)]
        (folder / f"{i}.txt").write_text("\n\n".join(paragraphs))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    draw, folder = random.Random(0), tmp_path_factory.mktemp("pictures")
    for i in range(60):
        picture = Image.new(
            "RGB", (draw.randrange(20, 60), draw.randrange(20, 60)), tuple(draw.choices(range(256), k=3))
        )
        picture.paste(tuple(draw.choices(range(256), k=3)), (5, 5, 5 + draw.randrange(15), 5 + draw.randrange(15)))
        picture.save(folder / f"{i}.{('png', 'jpg', 'bmp')[i % 3]}")
    return folder


def _evaluations(run_dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
def test_any_folder_of_text(ranks, texts, tmp_path):
    result = run([*BERT, *SHORT, f"data.path={texts}", f"run_dir={tmp_path / 'run'}"], ranks)
    assert result.returncode == 0, result.stderr
    told = _evaluations(tmp_path / "run")
    assert told[-1]["step"] == 6 and told[-1]["held_out_loss"] > 0
    assert "held-out" in result.stdout and "bigram" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
def test_any_folder_of_pictures(ranks, pictures, tmp_path):
    result = run([*GAN, *SHORT, f"data.path={pictures}", f"run_dir={tmp_path / 'run'}"], ranks)
    assert result.returncode == 0, result.stderr
    assert _evaluations(tmp_path / "run")[-1]["swd"] > 0
    assert "growth: 8x8 training" in result.stdout
