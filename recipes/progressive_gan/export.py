"""The exporter of a generator: an ONNX file at the fade that its checkpoint has."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainkit.export import Dynamic, Export, OnnxModel, write_onnx

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
    fade, latent_dim = recipe.phase.fade(recipe.runtime.position), recipe.widths.latent_dim
    generator = torch.Generator().manual_seed(0)
    examples = [{"latents": torch.randn(num, latent_dim, generator=generator)} for num in (4, 1, _MOST_IMAGES)]
    if classes := recipe.datasets.classes:
        for example in examples:
            example["labels"] = torch.randint(len(classes), (len(example["latents"]),), generator=generator)
    averaged = export.averaged is None or export.averaged
    with recipe.G.averaged() if averaged else nullcontext(recipe.G.module) as module:
        model = OnnxModel(
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
        yield from write_onnx(model, export)
    size = f"{recipe.widths.channels}, {recipe.phase.resolution}, {recipe.phase.resolution}"
    labels = f" and labels [batch], int64 of 0 .. {len(classes) - 1}," if classes else ""
    taken = f"latents [batch, {latent_dim}] of N(0, 1){labels}"
    yield f"{taken} -> images [batch, {size}] of about -1 .. 1, at fade {fade:g}"
