"""The progressive GAN trained: the same on any split, after a kill, and to its last picture."""

import json

import pytest
from PIL import Image

from tests.jobs import run
from tests.recipes.gan import make_recipe
from tests.training.test_resume import assert_killed_equals_whole
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.sample import main, sample

TRAINED_SHORTLY = [
    "experiment=glyphs",
    "recipe.fmap_base=32",
    "recipe.fmap_max=8",
    "recipe.latent_dim=8",
    "recipe.resolution=8",
    "recipe.evaluation.num_shown=4",
    "recipe.evaluation.num_directions=16",
    "recipe.evaluation.num_pairs=32",
    "recipe.evaluation.num_images=32",  # each passes the feature network at 224 pixels
    "evaluate_every=1000",
    "log_every=1",
    "on_leak=ignore",  # to audit the built-in letters takes longer than all else here
]


def _train(grad_accumulation_steps=1, loss=None):
    """Ten steps, the last eight of them in the fade to 8x8; all weights, averages and the distance."""
    recipe = make_recipe(grad_accumulation_steps, loss=loss)
    for step, batch in enumerate(recipe.batches()):
        metrics = recipe.train_step(batch)
        if step == 9:
            break
    assert recipe.phase.is_fading and 0 < float(metrics["fade"]) < 1
    tensors = {**recipe.G.state_dict()["module"], **{f"D.{k}": v for k, v in recipe.D.state_dict()["module"].items()}}
    tensors.update({f"average.{k}": v for k, v in recipe.G.state_dict()["average"].items()})
    return {k: v.clone() for k, v in tensors.items()}, recipe.evaluate()["swd"]


@pytest.mark.parametrize("loss", [None, Loss(name="logistic", penalty_every=3)])
def test_weights_do_not_depend_on_the_split_in_mid_fade(loss):
    alone, distance = _train(1, loss)
    largest = max(float(v.abs().max()) for v in alone.values())
    for ranks, grad_accumulation_steps in ((2, 1), (4, 1), (1, 4), (2, 2)):
        for tensors, swd in run_ranks(_train, ranks, grad_accumulation_steps, loss):
            worst = max(float((tensors[name] - alone[name]).abs().max()) for name in alone)
            assert worst / largest < 1e-10, (ranks, grad_accumulation_steps)
            assert swd == pytest.approx(distance, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_killed_in_mid_fade_and_resumed_gives_the_same_bits(tmp_path, ranks):
    arguments = [
        *TRAINED_SHORTLY,
        "recipe.stable_images={4: 160, 8: 64, 16: 64}",  # numbers for keys, which are strings in a manifest
        "recipe.fade_images={8: 960, 16: 160}",
        "recipe.loss.penalty_every=3",  # does not divide the steps between checkpoints
        "save_every=20",
        "recipe.evaluation.at_end=[]",  # of three jobs; the next test measures everything
    ]
    assert_killed_equals_whole(tmp_path, arguments, ranks, kill_from_step=40)


@pytest.mark.slow
def test_a_run_ends_with_pictures_and_can_be_sampled_from(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    arguments = [*TRAINED_SHORTLY, "recipe.stable_images=64", "recipe.fade_images=64", "evaluate_every=4"]
    done = run([*arguments, "tracking.wandb=null", f"run_dir={run_dir}"], 2)
    assert done.returncode == 0, done.stderr
    for phase in ("4x4 training", "8x8 fading in", "8x8 training"):
        assert f"growth: {phase}" in done.stdout
    for name in ("growth.gif", "growth_one_latent.gif", "curve.png", "metrics.jsonl", "config.yaml"):
        assert (run_dir / name).stat().st_size > 0
    values = json.loads((run_dir / "measured.json").read_text())["values"]
    for metric in ("swd", "frechet_", "kernel_", "precision_", "recall_", "density_", "coverage_", "copied"):
        assert any(name.startswith(metric) for name in values["trained generator"]), metric
    sample(run_dir, num=9, output=tmp_path / "grid.png")

    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (196, 196)
    assert main([str(run_dir), "--page", str(tmp_path / "a.html")]) == 0
    assert main([str(run_dir), "--video", str(tmp_path / "a.webp"), "--seconds", "0.2", "--num", "4"]) == 0
    assert main([str(run_dir), "--mix", "4", "--num", "3", "--output", str(tmp_path / "mix.png")]) == 0
    assert main([str(run_dir), "--folder", str(tmp_path / "folder"), "--num", "5"]) == 0
    assert len([*(tmp_path / "folder").iterdir()]) == 5
    picture_of_folder = str(tmp_path / "folder" / "00000003.png")
    assert main([str(run_dir), "--project", picture_of_folder, "--output", str(tmp_path / "found.png")]) == 0
    sizes = {"a.webp": (514, 514), "mix.png": (262, 262), "found.png": (514, 256)}
    for name, size in sizes.items():
        with Image.open(tmp_path / name) as picture:
            assert picture.size == size, name
    assert main([str(run_dir), "--classes", "cat"]) == 2
    with pytest.raises(ConfigError, match="names no picture format"):
        sample(run_dir, num=9, output=tmp_path / "grid.xyz")
