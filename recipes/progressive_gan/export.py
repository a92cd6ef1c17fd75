"""Exporters of a generator, at the fade that its checkpoint has: an ONNX file, and a bundle for small devices."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainkit.export import Bundle, Dynamic, Export, OnnxModel, write_bundle, write_onnx

if TYPE_CHECKING:
    from trainkit_recipes.progressive_gan.train import ProgressiveGAN

_MOST_IMAGES = 64  # of the checks, and of the engine of TensorRT


class AtFade(nn.Module):
    """A generator at one fade, which does not change any more.

    Args:
        generator: the network.
        fade: weight of its newest layers.
    """

    def __init__(self, generator: nn.Module, fade: float) -> None:
        super().__init__()
        self.generator, self.fade = generator, fade

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Maps latents [B, Z], and where there are classes labels [B], to images [B, C, R, R] of about -1 .. 1."""
        return self.generator(latents, self.fade, labels)


def to_onnx(recipe: "ProgressiveGAN", export: Export) -> Iterator[str]:
    """Writes an ONNX file of the generator, with its averaged weights unless `export.averaged` is false.

    Args:
        recipe: with the trained engines.
        export: where to, and of which run.

    Yields:
        Lines for the user.
    """
    with _weights_of(recipe, export) as module:
        yield from write_onnx(_onnx_model(recipe, module), export)
    fade, latent_dim, classes = _fade(recipe), recipe.widths.latent_dim, recipe.datasets.classes
    size = f"{recipe.widths.channels}, {recipe.phase.resolution}, {recipe.phase.resolution}"
    labels = f" and labels [batch], int64 of 0 .. {len(classes) - 1}," if classes else ""
    taken = f"latents [batch, {latent_dim}] of N(0, 1){labels}"
    yield f"{taken} -> images [batch, {size}] of about -1 .. 1, at fade {fade:g}"


def to_edge(recipe: "ProgressiveGAN", export: Export) -> Iterator[str]:
    """Writes a bundle that draws pictures without PyTorch; see `write_bundle`.

    Args:
        recipe: with the trained engines.
        export: where to, of which run, and for whom it is encrypted.

    Yields:
        Lines for the user.
    """
    classes = recipe.datasets.classes
    with _weights_of(recipe, export) as module:
        bundle = Bundle(
            model=_onnx_model(recipe, module),
            task="pictures",
            kind="pictures",
            settings={"latent_dim": recipe.widths.latent_dim, "resolution": recipe.phase.resolution},
            files={"labels.json": json.dumps(classes, ensure_ascii=False)},
            usage="A line is a seed, a whole number"
            + (", a tab and the name of a class" if classes else "")
            + "; its picture is written to the working directory.",
            example=f"1\t{classes[0]}" if classes else "1",
        )
        yield from write_bundle(bundle, export)


def _weights_of(recipe: "ProgressiveGAN", export: Export) -> AbstractContextManager[nn.Module]:
    averaged = export.averaged is None or export.averaged
    return recipe.G.averaged() if averaged else nullcontext(recipe.G.module)


def _fade(recipe: "ProgressiveGAN") -> float:
    return recipe.phase.fade(recipe.runtime.position)


def _onnx_model(recipe: "ProgressiveGAN", module: nn.Module) -> OnnxModel:
    fade, latent_dim = _fade(recipe), recipe.widths.latent_dim
    generator = torch.Generator().manual_seed(0)
    examples = [{"latents": torch.randn(num, latent_dim, generator=generator)} for num in (4, 1, _MOST_IMAGES)]
    if classes := recipe.datasets.classes:
        for example in examples:
            example["labels"] = torch.randint(len(classes), (len(example["latents"]),), generator=generator)
    return OnnxModel(
        module=AtFade(module, fade),
        inputs=examples[0],
        outputs=("images",),
        dynamic={name: {0: Dynamic("batch", _MOST_IMAGES)} for name in examples[0]},
        checks=examples[1:],
        metadata={
            "fade": f"{fade:g}",
            "resolution": str(recipe.phase.resolution),
            **({"classes": json.dumps(classes)} if classes else {}),
        },
    )
