"""The class-conditional progressive GAN: its networks, and the promises of the unconditional one, which it keeps."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.recipes.gan import SMALL, make_recipe
from trainkit.errors import ConfigError, DataError, UsageError
from trainkit.testing import run_ranks
from trainkit_recipes.progressive_gan.classes import grid_of_classes
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, Widths
from trainkit_recipes.progressive_gan.train import ProgressiveGAN

CLASSES = ("cat", "dog", "owl")
OF_CLASSES = Widths(latent_dim=8, fmap_base=64, fmap_max=16, channels=3, num_classes=3)


def _train(grad_accumulation_steps=1, strategy="ddp", precision="fp64", num_steps=6, **settings):
    """A few steps into the fade to 8x8: weights, averages and the distance."""
    settings = {"stable_images": 32, "fade_images": 96, "classes": CLASSES, **settings}
    recipe = make_recipe(grad_accumulation_steps, 16, precision, strategy, **settings)
    for step, batch in enumerate(recipe.batches(), start=1):
        recipe.train_step(batch)
        if step == num_steps:
            break
    assert recipe.phase.is_fading
    G, D = recipe.G.state_dict(), recipe.D.state_dict()
    tensors = {**G["module"], **{f"D.{k}": v for k, v in D["module"].items()}}
    tensors.update({f"average.{k}": v for k, v in G["average"].items()})
    return {k: v.clone() for k, v in tensors.items()}, recipe.evaluate()["swd"]


def _worst(found, expected):
    largest = max(float(v.abs().max()) for v in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / largest


def test_weights_do_not_depend_on_the_split_or_strategy():
    alone, distance = _train()
    assert {"classes.weight", "D.blocks.4.classes.weight", "average.classes.weight"} <= set(alone)
    for ranks, grad_accumulation_steps, strategy in (
        (2, 1, "ddp"),
        (4, 1, "ddp"),
        (1, 4, "ddp"),
        (2, 2, "fsdp"),
        (2, 1, "hsdp"),
    ):
        results = run_ranks(_train, ranks, grad_accumulation_steps, strategy)
        tensors, swd = results[0]  # where tensors are sharded, rank 0 alone gets whole ones
        assert _worst(tensors, alone) < 1e-10, (ranks, strategy)
        assert swd == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_zero_trains_classes_as_one_process(strategy):
    """In fp32, which is all that DeepSpeed has; by SGD, which does not divide by gradients near zero."""
    settings = {"optimizer": partial(torch.optim.SGD, lr=1e-3), "loss": Loss(drift=0.1)}
    alone, distance = _train(1, "ddp", "fp64", 4, **settings)
    tensors, swd = run_ranks(partial(_train, **settings), 2, 1, strategy, "fp32", 4)[0]
    assert _worst(tensors, alone) < 5e-6
    assert swd == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains(precision):
    tensors, distance = _train(precision=precision, loss=Loss(name="logistic", penalty=1.0))
    assert all(value.isfinite().all() for value in tensors.values()) and distance > 0


def test_the_projection_against_numpy():
    torch.manual_seed(0)
    D: Any = Discriminator(OF_CLASSES, 8).double()
    plain = Discriminator(SMALL, 8).double()
    plain.load_state_dict({k: v for k, v in D.state_dict().items() if "classes" not in k})
    images, labels = torch.randn(4, 3, 8, 8).double(), torch.tensor([2, 0, 1, 2])
    seen = []
    D.blocks["4"].out.register_forward_hook(lambda _, given, __: seen.append(given[0].detach().numpy()))
    added = (D(images, 1.0, labels) - plain(images)).detach().numpy()
    rows = D.blocks["4"].classes.weight.detach().numpy()[labels.numpy()]
    assert np.allclose(added, np.einsum("bc,bc->b", rows, seen[0]) / np.sqrt(rows.shape[1]), rtol=1e-10)
    with pytest.raises(UsageError, match="class-conditional"):
        D(images)


def test_the_input_is_latent_and_class_each_of_length_one():
    G: Any = Generator(OF_CLASSES, 4).double()
    seen = []
    G.blocks["4"].spread.register_forward_hook(lambda _, given, __: seen.append(given[0].detach().numpy()))
    z, labels = torch.randn(5, 8).double(), torch.tensor([0, 1, 2, 1, 0])
    images = G(z, 1.0, labels)
    of_class = G.classes.weight.detach().numpy()[labels.numpy()]
    expected = [x / np.sqrt((x**2).mean(axis=1, keepdims=True)) for x in (z.numpy(), of_class)]
    assert np.allclose(seen[0], np.concatenate(expected, axis=1), atol=1e-7)
    assert not torch.allclose(images, G(z, 1.0, (labels + 1) % 3)), "the class matters"


def test_without_classes_no_layer_is_added():
    torch.manual_seed(3)
    names = {*Generator(SMALL, 8).state_dict(), *Discriminator(SMALL, 8).state_dict()}
    assert not any("classes" in name for name in names)
    torch.manual_seed(3)
    expected = {**Generator(Widths(latent_dim=8, fmap_base=64, fmap_max=16, num_classes=0), 8).state_dict()}
    assert names >= set(expected)
    assert Widths(num_classes=10).num_products(8) - Widths().num_products(8) == 16 * 512 * 512


def test_classes_are_those_of_the_checkpoint():
    recipe = make_recipe(classes=CLASSES)
    state = json.loads(json.dumps(recipe.state_dict()))
    assert state["classes"] == ["cat", "dog", "owl"]
    restored = ProgressiveGAN.restored_arguments(state, None)["data"]
    assert restored.classes == CLASSES and len(restored.train) == 0
    with pytest.raises(ConfigError, match=r"trained on 3 classes \(cat, dog, owl\), and data.path has 2 classes"):
        make_recipe(classes=CLASSES[:2]).load_state_dict(state)
    with pytest.raises(ConfigError, match="has images without classes"):
        make_recipe().load_state_dict(state)
    recipe.load_state_dict({**state, "phase": 1})
    assert recipe.phase.resolution == 8


def test_labels_that_are_missing_or_out_of_range():
    recipe = make_recipe(classes=CLASSES)
    data, rows = recipe.datasets, recipe.datasets.train
    rows.labels = rows.labels + 1
    with pytest.raises(DataError, match=r"the label 3 of an item is none of 0 \.\. 2"):
        rows.labels = rows.labels + 2
        ProgressiveGAN(recipe.runtime, data=data, optimizer=torch.optim.Adam, resolution=8)
    rows.labels = None
    with pytest.raises(DataError, match=r"need items with 'images' and 'labels'; these have \['images'\]"):
        ProgressiveGAN(recipe.runtime, data=data, optimizer=torch.optim.Adam, resolution=8)


def test_a_grid_has_classes_by_row():
    for num, num_classes, rows, columns in (
        (64, 10, 10, 6),
        (64, 2, 8, 8),
        (64, 1, 8, 8),
        (64, 500, 16, 4),
        (9, 10, 3, 3),
    ):
        numbers, labels, found = grid_of_classes(num, num_classes)
        assert (len(labels), found) == (rows * columns, columns), (num, num_classes)
        assert len(numbers) <= num and labels == sorted(labels)
        assert len({*zip(numbers, labels, strict=True)}) == len(numbers), "no image twice"
        assert all(len({*labels[row * columns :][:columns]}) == 1 for row in range(rows))
        assert len({*labels}) == min(num_classes, rows)
    sampler = make_recipe(classes=CLASSES).sampler(Generator(OF_CLASSES, 4).double())
    images, columns = sampler.shown(16)
    assert images.shape == (16, 3, 4, 4) and columns == 4
    expected = sampler.module(sampler.latents([0]), 1.0, torch.tensor([2]))
    assert torch.allclose(images[12], expected[0]), "the last row has the last class and the first latent"
