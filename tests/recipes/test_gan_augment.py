"""The augmenter in training: its probability, D's scores, and the same weights on any split and after a resume."""

import json
import math

import pytest
import torch

from tests.recipes.gan import make_recipe
from trainkit.config import compose
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks
from trainkit_recipes.progressive_gan.augment import Augmentation, Augmenter
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.scores import Scores, overfitting_of

ADA = Augmentation(kind="ada", horizontal_flips=True, probability=0.3, speed_images=640)  # 0.1 a measurement
LOGISTIC = Loss(name="logistic", penalty=0.1)


def _scores(train=1.0, held_out=0.5, fake=0.0, sign=0.5, deviation=0.01):
    return Scores(train=train, held_out=held_out, fake=fake, sign=sign, deviation=deviation)


def _steps(recipe, start=0, last=8):
    """Trains up to a step in the fade to 8x8; the probability after each step."""
    found = []
    for step, batch in enumerate(recipe.batches(start), start // 16):
        found.append(float(recipe.train_step(batch)["augment_probability"].value))
        if step == last:
            break
    return found


def _weights(recipe):
    found = {name: engine.state_dict()["module"] for name, engine in recipe.engines().items()}
    return {f"{name}.{key}": value.clone() for name, module in found.items() for key, value in module.items()}


def _train(grad_accumulation_steps=1, strategy="ddp", precision="fp64", classes=()):
    settings = {"augment": ADA, "stable_images": 64, "classes": classes}
    recipe = make_recipe(grad_accumulation_steps, 16, precision, strategy, **settings)
    probabilities = _steps(recipe, last=9)
    assert recipe.phase.is_fading
    return _weights(recipe), probabilities, recipe.evaluate()


def test_any_split_gives_the_same_weights_and_scores():
    alone, probabilities, metrics = _train()
    assert len(set(probabilities)) > 2, "it moves"
    assert {"d_train_score", "d_held_out_score", "d_fake_score", "augment_probability"} <= metrics.keys()
    largest = max(float(value.abs().max()) for value in alone.values())
    for ranks, grad_accumulation_steps, strategy in ((4, 1, "ddp"), (1, 4, "ddp"), (2, 2, "fsdp")):
        results = run_ranks(_train, ranks, grad_accumulation_steps, strategy)
        weights = results[0][0]  # where tensors are sharded, rank 0 alone gets whole ones
        worst = max(float((weights[name] - alone[name]).abs().max()) for name in alone)
        assert worst / largest < 1e-10, (ranks, strategy)
        for _, other_probabilities, others in results:
            assert other_probabilities == probabilities
            assert others == pytest.approx(metrics, rel=1e-8)


def test_zero3_with_classes_augments_as_one_process():
    """In fp32, which is all that DeepSpeed has."""
    classes = ("a", "b", "c")
    alone, probabilities, metrics = _train(1, "ddp", "fp32", classes)
    results = run_ranks(_train, 2, 1, "zero3", "fp32", classes)
    weights, largest = results[0][0], max(float(value.abs().max()) for value in alone.values())
    assert max(float((weights[name] - alone[name]).abs().max()) for name in alone) / largest < 1e-5
    for _, others, found in results:
        assert others == probabilities
        assert found["d_held_out_score"] == pytest.approx(metrics["d_held_out_score"], rel=0.02)


@pytest.mark.parametrize(("settings", "loss"), [(ADA, Loss()), (ADA, LOGISTIC)])
def test_a_resumed_run_has_the_same_bits(tmp_path, settings, loss):
    whole = make_recipe(augment=settings, loss=loss, stable_images=64)
    expected = _steps(whole)
    first = make_recipe(augment=settings, loss=loss, stable_images=64)
    began = _steps(first, last=5)
    first.runtime.save(tmp_path / "saved", **first.engines())
    state = json.loads(json.dumps(first.state_dict()))
    second = make_recipe(augment=settings, loss=loss, stable_images=64)
    second.load_state_dict(state)
    start = second.runtime.load(tmp_path / "saved", **second.engines()).position
    assert began + _steps(second, start) == expected and len(set(expected)) > 1
    for name, value in _weights(second).items():
        assert torch.equal(value, _weights(whole)[name]), name


def test_without_augmentation_no_bit_changes():
    usual, without = make_recipe(), make_recipe(augment=Augmentation(kind="fixed", probability=0.0))
    for recipe in (usual, without):
        for _, batch in zip(range(4), recipe.batches(), strict=False):
            recipe.train_step(batch)
    assert all(torch.equal(value, _weights(without)[name]) for name, value in _weights(usual).items())
    assert "augment" not in usual.state_dict()


def test_every_image_that_the_discriminator_sees_is_augmented(monkeypatch):
    recipe = make_recipe(augment=Augmentation(kind="fixed", probability=1.0))
    names: list[str] = []
    seen: list[torch.Tensor] = []
    augmented = Augmenter.__call__

    def named(self, images, batch, name):
        names.append(name)
        return augmented(self, images, batch, name)

    monkeypatch.setattr(Augmenter, "__call__", named)
    recipe.D.module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    recipe.train_step(next(recipe.batches()))
    assert names == ["D's real", "D's fake", "G's fake"]
    mixed, real, fake, of_G = seen
    batch = next(recipe.batches())
    assert torch.allclose(mixed, real.lerp(fake, recipe.runtime.rand(batch, name="mix").view(-1, 1, 1, 1)))
    assert of_G.requires_grad, "G's gradient flows through the augmentation"


def test_flips_mirror_half_of_the_training_images():
    recipe = make_recipe(augment=Augmentation(horizontal_flips=True))
    batch = next(recipe.batches())
    images = torch.rand(16, 3, 4, 4)
    flipped = recipe.augmenter.flipped(images, batch)
    is_same = torch.tensor([torch.equal(a, b) for a, b in zip(images, flipped, strict=True)])
    assert 2 < int(is_same.sum()) < 14
    assert torch.equal(flipped[~is_same], images[~is_same].flip(3))
    assert make_recipe().augmenter.flipped(images, batch) is images


def test_the_probability_follows_the_measure_at_its_speed():
    augmenter = make_recipe(augment=Augmentation(kind="ada", speed_images=6400)).augmenter
    for count in range(1, 5):
        augmenter.adapt(_scores(held_out=0.1), 16)  # r_v = 0.9
        assert augmenter.probability == pytest.approx(count * 4 * 16 / 6400)
    for _ in range(40):
        augmenter.adapt(_scores(held_out=0.9), 16)
    assert augmenter.probability == 0.0 and augmenter.overfitting < 0.5
    for _ in range(400):
        augmenter.adapt(_scores(held_out=-2.0), 16)
    assert augmenter.probability == 0.8, "above it augmentation leaks"
    by_sign = make_recipe(loss=LOGISTIC, augment=Augmentation(kind="ada", speed_images=6400)).augmenter
    by_sign.adapt(_scores(sign=0.61, held_out=math.nan), 16)
    assert by_sign.probability > 0 and by_sign.overfitting == 0.61


def test_scores_that_are_not_finite_change_nothing():
    augmenter = make_recipe(augment=Augmentation(kind="ada", speed_images=6400)).augmenter
    augmenter.adapt(_scores(held_out=0.1), 16)
    before = augmenter.state_dict()
    for name in ("train", "held_out", "fake"):
        for value in (math.nan, math.inf, -math.inf):
            augmenter.adapt(_scores(**{name: value}), 16)
    assert augmenter.state_dict() == before and 0 < before["probability"] < 0.1


def test_a_batch_that_is_examined_adapts_nothing(monkeypatch):
    recipe = make_recipe(augment=ADA, stable_images=64)
    monkeypatch.setattr(type(recipe.runtime.guard), "is_examining", True)
    assert set(_steps(recipe, last=3)) == {0.3}


def test_memory_is_tried_with_the_most_augmentation():
    recipe = make_recipe(augment=Augmentation(kind="ada"))
    next(iter(recipe.dearest_batches_of(8)))
    assert recipe.augmenter.probability == 0.8
    fixed = make_recipe(augment=Augmentation(kind="fixed", probability=0.2))
    next(iter(fixed.dearest_batches_of(8)))
    assert fixed.augmenter.probability == 0.2


def test_overfitting_depends_on_no_zero_and_scale():
    assert overfitting_of(3.0, 1.5, 1.0) == 0.75
    assert overfitting_of(*(10.0 + 0.1 * score for score in (3.0, 1.5, 1.0))) == pytest.approx(0.75)
    assert overfitting_of(1.0, 0.0, 2.0) == 0.0


def test_scores_of_an_evaluation_are_means_of_what_d_says():
    recipe = make_recipe(stable_images=32)
    recipe.train_step(next(recipe.batches()))
    metrics = recipe.evaluate()
    held_out = recipe.datasets.held_out.images
    expected = recipe.D.module(torch.nn.functional.avg_pool2d(held_out.double() / 127.5 - 1.0, 2)).mean()
    assert metrics["d_held_out_score"] == pytest.approx(float(expected.detach()), rel=1e-9)
    assert metrics["d_train_score"] != metrics["d_held_out_score"] != metrics["d_fake_score"]


def test_a_discriminator_that_overfits_is_named_once():
    augmenter = make_recipe().augmenter
    assert augmenter.warning(_scores(held_out=0.6)) is None
    assert augmenter.warning(_scores(held_out=0.1, deviation=0.4)) is None, "chance"
    warning = augmenter.warning(_scores(held_out=0.1))
    assert "D overfits" in warning and "data.augment=ada" in warning and "\n" not in warning
    assert augmenter.warning(_scores(held_out=0.1)) is None


def test_data_of_your_own_need_no_keys_of_augmentation(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.yaml").write_text("_target_: trainkit.data.UnpairedImages\n")
    augment = compose(["recipe=progressive_gan", "data=own"], tmp_path)["recipe"]["augment"]
    assert (augment["kind"], augment["horizontal_flips"]) == ("none", False)


@pytest.mark.parametrize(
    ("settings", "loss", "message"),
    [
        ({"kind": "adda"}, "wgan_gp", r"data\.augment=adda: must be one of none, ada, fixed.*ada"),
        ({"kind": "ada", "steer_by": "sign"}, "wgan_gp", r"steer_by=sign with recipe\.loss\.name=wgan_gp.*held_out"),
        ({"probability": 1.5}, "wgan_gp", r"recipe\.augment\.probability=1\.5: must be 0 to 1"),
        ({"target": 1.0}, "wgan_gp", r"recipe\.augment\.target=1\.0"),
        ({"speed_images": 0}, "wgan_gp", r"recipe\.augment\.speed_images=0"),
        ({"probability": 0.2}, "wgan_gp", r"probability=0\.2: nothing uses it with data\.augment=none; set .*=fixed"),
        ({"kind": "fixed", "target": 0.2}, "wgan_gp", r"target=0\.2: nothing uses it with .*=fixed; set .*=ada, or"),
        ({"kind": "fixed", "steer_by": "held_out"}, "wgan_gp", r"steer_by=held_out: nothing uses it"),
        ({"speed_images": 7}, "wgan_gp", r"speed_images=7: nothing uses it with data\.augment=none"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(settings, loss, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe(augment=Augmentation(**settings), loss=Loss(name=loss))
