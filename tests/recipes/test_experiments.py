"""Every experiment of conf/ as a user runs it: trained, verified, resumed, and its checkpoint used; with fewer steps.

What is measured is shortened too, and the experiments that take a cluster are made small. Each is named here. The
built-in letters are not audited, and a feature network does not look at pictures, which takes longer than all else;
tests/audit looks at pictures, and test_gan_training measures all there is at the end of a run.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.jobs import ROOT, newest_tensors, run
from trainkit import checkpoint
from trainkit.checkpoint import store
from trainkit.cli.main import main
from trainkit.errors import CheckpointError

FILL, SAMPLE, TRANSLATE = (
    ROOT / "recipes" / name for name in ("bert/fill.py", "progressive_gan/sample.py", "translation_gan/translate.py")
)
MAIN = ROOT / "trainkit" / "cli" / "main.py"
SELDOM = ["save_every=4", "evaluate_every=null", "schedule.warmup=2"]
FEW_STEPS = ["recipe.num_steps=6", *SELDOM]
SMALL = [
    "data.vocab_size=200", "recipe.batch_size=8", "recipe.model.hidden_size=16",
    "recipe.model.num_layers=2", "recipe.model.num_heads=2", "recipe.model.feed_forward_size=32",
]  # fmt: skip
FEW_IN_EACH = [
    "recipe.phases.phase1={sequence_length: 16, num_steps: 3, batch_size: 8, warmup: 1}",
    "recipe.phases.phase2={sequence_length: 32, num_steps: 3, batch_size: 4, warmup: 1}",
]
WITHOUT_FEATURES = "recipe.evaluation.at_end=[ms_ssim,copying]"
SMALL_GAN = [
    "recipe.resolution=8", "recipe.fmap_max=8", "recipe.latent_dim=8", "recipe.batch_size=16",
    "recipe.stable_images=32", "recipe.fade_images=32", "save_every=3", "evaluate_every=null",
    "recipe.evaluation.num_images=64", "recipe.evaluation.num_directions=16", "recipe.evaluation.num_pairs=32",
    WITHOUT_FEATURES,
]  # fmt: skip
GLYPH_SIZED = [
    "recipe.stable_images={4: 32, 8: 32, 16: 48}", "recipe.fade_images={8: 32, 16: 16}", "save_every=5",
    "evaluate_every=null", "recipe.evaluation.num_images=64", "recipe.evaluation.num_directions=16",
    "recipe.evaluation.num_pairs=32", WITHOUT_FEATURES, "on_leak=ignore",
]  # fmt: skip
PUBLISHED = ("celeba_hq_1024", "celeba_hq_1024_1gpu", "celeba_hq_1024_2gpus", "celeba_hq_1024_4gpus", "cifar10")
SHORT = {
    **dict.fromkeys(PUBLISHED, SMALL_GAN),
    "bert_quickstart": [*FEW_STEPS, "data.held_out=0.001", "recipe.batch_size=8"],
    "bert_24h": [
        *SMALL, "recipe.num_steps=6", "save_every=4", "evaluate_every=null", "data.sequence_length=32",
        "recipe.grad_accumulation_steps=2", "recipe.batch_size_warmup={first: 4, num_samples: 8, num_stages: 1}",
    ],
    "bert_base": [*SELDOM, *SMALL, *FEW_IN_EACH],
    "bert_large": [*SELDOM, *SMALL, *FEW_IN_EACH],
    "glyphs": GLYPH_SIZED,
    "small_pictures": GLYPH_SIZED,
    "outlines": [
        "recipe.networks.resolution=8", "recipe.networks.generator_channels=2", "recipe.networks.num_blocks=1",
        "recipe.networks.discriminator_channels=2", "recipe.pool_size=6", "recipe.num_steps=8", "save_every=4",
        "evaluate_every=null", "recipe.evaluation.num_images=64", "recipe.evaluation.num_directions=16",
        "on_leak=ignore",
    ],
}  # fmt: skip
GANS = ("glyphs", "small_pictures", *PUBLISHED)
NIGHTLY = ("bert_base", "bert_24h", "small_pictures", *PUBLISHED)
"""bert_large and glyphs stand for them; bert_24h is trained below, too."""
ON_TWO_RANKS = ("bert_quickstart", "glyphs", "small_pictures", "outlines")  # as `make train` and the like do


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda"]
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(1500)))
    return path


def _require(done) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_experiment_is_run_here():
    assert set(SHORT) == {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=[pytest.mark.nightly] * (name in NIGHTLY)) for name in SHORT]
)
def test_an_experiment_is_saved_verified_resumed_and_used(experiment, text, tmp_path):
    ranks = 2 if experiment in ON_TWO_RANKS else None
    whole, again = tmp_path / "whole", tmp_path / "again"
    arguments = [f"experiment={experiment}", *SHORT[experiment], "deterministic=true", "tracking=none"]
    arguments += [] if experiment in (*ON_TWO_RANKS, *GANS) else [f"data.path={text}"]
    _require(run([*arguments, f"run_dir={whole}"], ranks))
    said = _require(run(["checkpoint", "verify", whole], script=MAIN))
    middle, last = checkpoint.step_directories(whole / "checkpoints")
    assert said.splitlines() == [f"{middle}: whole", f"{last}: whole"]

    assert "resumed after step" in _require(run([*arguments, f"resume={middle}", f"run_dir={again}"], ranks))
    expected, found = newest_tensors(whole), newest_tensors(again)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    if experiment in GANS:
        _require(run([whole, "--num", "4", "--output", tmp_path / "letters.png"], script=SAMPLE))
        assert (tmp_path / "letters.png").is_file()
    elif experiment == "outlines":
        Image.new("L", (40, 30)).save(tmp_path / "letter.png")
        _require(run([whole, tmp_path / "letter.png", "--output", tmp_path / "out"], script=TRANSLATE))
        assert len([*(tmp_path / "out").iterdir()]) == 1
    else:
        assert "[MASK]" not in _require(run([whole, "alpha [MASK] gamma"], script=FILL)).splitlines()[-1]
    measured = _require(run(["evaluate", whole], script=MAIN))
    assert ("swd" if experiment in (*GANS, "outlines") else "held_out_loss") in measured


def test_a_modern_bert_trains(text, tmp_path):
    shorter = [name for name in SHORT["bert_24h"] if not name.startswith("recipe.num_steps")]
    arguments = ["experiment=bert_24h", *shorter, "recipe.num_steps=3", "tracking=none", f"data.path={text}"]
    assert main(["train", *arguments, f"run_dir={tmp_path}"]) == 0
    model = checkpoint.read_manifest(checkpoint.step_directories(tmp_path / "checkpoints")[-1])["values"]["config"]
    parts = {"positions": "rotary", "feed_forward": "geglu", "norm": "pre", "bias": False, "attention_dropout": 0.0}
    assert parts.items() <= model["recipe"]["model"].items()
    biases = [name for name in newest_tensors(tmp_path) if "bias" in name]
    assert biases and all("head.bias" in name for name in biases)


def test_a_manifest_of_integer_keys_is_read_back(tmp_path):
    """As text, `16` sorts before `4`: the checksum is that of the text."""
    stable = {4: 1, 8: 2, 16: 3}
    written = tmp_path / ".written"
    written.mkdir()
    nothing: dict[str, Any] = {"position": 0, "engines": {}, "tensors": {}, "files": {}}
    store.complete(written, tmp_path / "whole", {**nothing, "values": {"stable": stable}})
    assert store.read_manifest(tmp_path / "whole")["values"]["stable"] == {str(key): stable[key] for key in stable}
    changed = (tmp_path / "whole" / store.MANIFEST).read_text().replace('"16": 3', '"16": 4')
    (tmp_path / "whole" / store.MANIFEST).write_text(changed)
    with pytest.raises(CheckpointError, match="is damaged"):
        store.read_manifest(tmp_path / "whole")
