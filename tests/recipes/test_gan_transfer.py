"""Training that starts from the networks of another run: what is taken over, what is new, and what stays frozen."""

import json
import shutil
from functools import partial
from typing import Any

import pytest
import torch

from tests.recipes.gan import make_recipe
from trainkit.checkpoint import find, read_manifest, read_whole
from trainkit.cli.main import main
from trainkit.config import compose
from trainkit.errors import CheckpointError, ConfigError
from trainkit.testing import run_ranks
from trainkit_recipes.progressive_gan.train import ProgressiveGAN
from trainkit_recipes.progressive_gan.transfer import Restored, Transfer

CLASSES = ("cat", "dog", "owl")


def _run(path, classes=(), resolution=8, **settings):
    """A checkpoint of a few steps, whose averages differ from its weights."""
    recipe = make_recipe(classes=classes, resolution=resolution, stable_images=32, fade_images=32, **settings)
    for batch in recipe.batches():
        recipe.train_step(batch)
    shape = {"latent_dim": 8, "fmap_base": 32, "fmap_max": 8, "channels": 3, "resolution": resolution}
    values = {"recipe": recipe.state_dict(), "config": {"recipe": shape}, "step": 6}
    recipe.runtime.save(path, G=recipe.G, D=recipe.D, **values)
    return _tensors(recipe)


def _tensors(recipe):
    parts = {"G": recipe.G.state_dict(), "D": recipe.D.state_dict()}
    found = {f"{name}.{k}": v.clone() for name, part in parts.items() for k, v in part["module"].items()}
    return found | {f"average.{k}": v.clone() for k, v in parts["G"]["average"].items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "plain"
    return path, _run(path)


@pytest.fixture(scope="module")
def run_of_classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "of_classes"
    return path, _run(path, CLASSES)


def _started(path, strategy="ddp", precision="fp64", num_steps=0, **transfer):
    settings: dict[str, Any] = {"stable_images": 64, "fade_images": 64}
    if strategy.startswith("zero"):
        settings["optimizer"] = partial(torch.optim.SGD, lr=1e-3)
    recipe = make_recipe(1, 16, precision, strategy, transfer=Transfer(weights=path, **transfer), **settings)
    for _, batch in zip(range(num_steps), recipe.batches(), strict=False):
        recipe.train_step(batch)
    return _tensors(recipe)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_networks_and_average_are_those_of_the_run(run, strategy):
    path, trained = run
    precision = "fp32" if strategy.startswith("zero") else "fp64"
    started = run_ranks(_started, 2, path, strategy, precision)[0]
    assert started.keys() == trained.keys()
    assert all(torch.allclose(started[name], trained[name].to(started[name].dtype)) for name in trained)
    assert not torch.equal(trained["average.blocks.4.conv.weight"], trained["G.blocks.4.conv.weight"])
    frozen = partial(_started, freeze_discriminator=1)
    after = run_ranks(frozen, 2, path, strategy, precision, 2)[0]
    kept = {name for name in after if torch.equal(after[name], started[name])}
    wanted = {name for name in after if name.startswith(("D.from_image.8.", "D.blocks.8."))}
    assert kept == wanted and len(wanted) == 6, "frozen are the layers next to the image, and only these"
    alone = _started(path, "single", precision, 2, freeze_discriminator=1)
    if precision == "fp64":
        assert max(float((after[name] - alone[name]).abs().max()) for name in after) < 1e-10


def test_growth_goes_on_at_the_resolution_of_the_run(tmp_path):
    trained = _run(tmp_path / "small", resolution=4)
    transfer = Transfer(weights=tmp_path / "small")
    recipe = make_recipe(transfer=transfer, stable_images=32, fade_images=32)
    assert [(phase.resolution, phase.is_fading) for phase in recipe.phases] == [(4, False), (8, True), (8, False)]
    larger = _started(tmp_path / "small", start_resolution=4)
    assert all(torch.allclose(larger[name], trained[name]) for name in trained)
    started = make_recipe(transfer=Transfer(start_resolution=8), stable_images=32, fade_images=32)
    assert [phase.resolution for phase in started.phases] == [8], "from random weights, without growth"


def test_a_checkpoint_needs_the_run_it_started_from_no_more(run):
    recipe = make_recipe(transfer=Transfer(weights=run[0], freeze_discriminator=1))
    state = json.loads(json.dumps(recipe.state_dict()))
    restored = ProgressiveGAN.restored_arguments(state, None)["transfer"]
    assert restored == Restored(start_resolution=8, freeze_discriminator=1)
    assert make_recipe(transfer=restored).phases == recipe.phases
    assert "transfer" not in make_recipe().state_dict()


def test_classes_are_added_without_a_change_of_the_images(run):
    """A network with classes that starts from one without computes the same, whatever the class."""
    plain = make_recipe(transfer=Transfer(weights=run[0]))
    of_classes = make_recipe(classes=CLASSES, transfer=Transfer(weights=run[0]))
    z, labels = torch.randn(8, 8, dtype=torch.float64), torch.arange(8) % 3
    with torch.no_grad(), plain.G.averaged() as old, of_classes.G.averaged() as new:
        images = old(z)
        assert torch.allclose(new(z, 1.0, labels), images, atol=1e-6)
    scores = [plain.D.module(images), of_classes.D.module(images, 1.0, labels)]
    assert torch.allclose(scores[0], scores[1], atol=1e-6)


def test_classes_are_known_by_name(run_of_classes, run):
    path, trained = run_of_classes
    recipe = make_recipe(classes=("owl", "fox", "cat"), transfer=Transfer(weights=path))
    started = _tensors(recipe)
    for name in ("G.classes.weight", "D.blocks.4.classes.weight", "average.classes.weight"):
        assert torch.allclose(started[name][[0, 2]], trained[name][[2, 0]])
    assert float(started["D.blocks.4.classes.weight"][1].abs().max()) == 0
    assert float(started["G.classes.weight"][1].std()) > 0.1
    assert "2 of 3 classes known" in recipe.start.describe(recipe.datasets.classes)
    without = _tensors(make_recipe(transfer=Transfer(weights=path)))
    assert without.keys() == run[1].keys() and torch.allclose(
        without["D.blocks.8.conv1.weight"], trained["D.blocks.8.conv1.weight"]
    )


def test_weights_imply_the_shape_of_the_networks(run):
    recipe = compose(["recipe=progressive_gan", f"weights={run[0]}", "recipe.fmap_max=16"])["recipe"]
    assert [recipe[name] for name in ("latent_dim", "fmap_base", "fmap_max", "channels", "resolution")] == [
        8,
        32,
        16,
        3,
        32,
    ]
    assert compose(["recipe=progressive_gan", f"weights={run[0]}", "recipe.resolution=4"])["recipe"]["resolution"] == 4
    assert recipe["transfer"]["weights"] == str(run[0])


def test_what_cannot_be_taken_over_is_refused(run, tmp_path):
    path, trained = run
    grey = {"channels": 1}
    with pytest.raises(ConfigError, match=r"resolution=4 is below the 8x8 that growth starts at"):
        make_recipe(resolution=4, transfer=Transfer(weights=path))
    with pytest.raises(
        ConfigError, match=r"'blocks.4.spread.weight' of \[128, 8\], and this run of \[256, 8\]: leave out"
    ):
        make_recipe(fmap_max=16, transfer=Transfer(weights=path))
    with pytest.raises(ConfigError, match=r"freeze_discriminator=2: the trained discriminator has 1 resolutions above"):
        make_recipe(transfer=Transfer(weights=path, freeze_discriminator=2))
    with pytest.raises(ConfigError, match=r"freeze_discriminator=1: layers with random weights would stay so"):
        make_recipe(transfer=Transfer(freeze_discriminator=1))
    with pytest.raises(ConfigError, match=r"freeze_discriminator=1: layers with random weights would stay so"):
        make_recipe(transfer=Transfer(freeze_discriminator=1, start_resolution=8))
    with pytest.raises(ConfigError, match=r"start_resolution=4: .* makes images of 8x8; leave it out"):
        make_recipe(transfer=Transfer(weights=path, start_resolution=4))
    with pytest.raises(ConfigError, match=r"transfer.start_resolution=.*12 must be one of the resolutions"):
        Transfer(start_resolution=12)
    with pytest.raises(CheckpointError, match="nothing: no such directory"):
        make_recipe(transfer=Transfer(weights=tmp_path / "nothing"))
    recipe = make_recipe(transfer=Transfer(weights=path), **grey)
    started = _tensors(recipe)
    assert started["G.to_image.8.weight"].shape[0] == 1
    assert torch.allclose(started["G.blocks.8.conv1.weight"], trained["G.blocks.8.conv1.weight"])
    with pytest.raises(ConfigError, match=r"'from_image.8.weight' .* leave out recipe.channels"):
        make_recipe(transfer=Transfer(weights=path, freeze_discriminator=1), **grey)


def test_a_run_goes_on_when_what_it_started_from_is_gone(run, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(run[0], gone)
    given = ["experiment=glyphs", "data.held_out=0.1", f"weights={gone}", f"run_dir={tmp_path / 'run'}"]
    given += ["recipe.resolution=8", "recipe.evaluation.num_directions=16", "recipe.evaluation.at_end=[]"]
    given += ["recipe.transfer.freeze_discriminator=1", "strategy=single", "device=cpu", "tracking.wandb=null"]
    given += ["on_leak=ignore"]
    assert main(["train", *given, "recipe.stable_images=32"]) == 0
    shutil.rmtree(gone)
    assert main(["train", *given, "recipe.stable_images=64"]) == 0
    last, frozen = find(tmp_path / "run"), "blocks.8.conv1.weight"
    known = read_manifest(last)["values"]["config"]["recipe"]
    assert read_manifest(last)["position"] == 64
    assert [known[name] for name in ("latent_dim", "fmap_base", "fmap_max")] == [8, 32, 8]
    (weights,) = read_whole(last, {f"D.module/{frozen}"}).values()
    assert torch.equal(weights, run[1][f"D.{frozen}"].float())
