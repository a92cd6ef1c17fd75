"""The exporter of a generator: an ONNX file that translates images of any size that is a multiple of 4."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from trainkit.export import Dynamic, Export, OnnxModel, write_onnx
from trainkit_recipes.translation_gan.evaluation import Side

if TYPE_CHECKING:
    from trainkit_recipes.translation_gan.train import TranslationGAN

_MOST_IMAGES = 16


def to_onnx(recipe: "TranslationGAN", side: Side, export: Export) -> Iterator[str]:
    """Writes an ONNX file of a generator, with its averaged weights unless `export.averaged` is false.

    Args:
        recipe: with the trained engines.
        side: that it translates to.
        export: where to, and of which run.

    Yields:
        Lines for the user.
    """
    engine, shape = recipe.generators[side], recipe.shape
    draw, size = torch.Generator().manual_seed(0), recipe.shape.resolution
    images = [torch.rand(num, shape.channels, size, size, generator=draw) * 2 - 1 for num in (2, 1, _MOST_IMAGES)]
    averaged = export.averaged is None or export.averaged
    with engine.averaged() if averaged else nullcontext(engine.module) as module:
        model = OnnxModel(
            module=module,
            inputs={"images": images[0]},
            outputs=("translated",),
            dynamic={"images": {0: Dynamic("batch", _MOST_IMAGES)}},
            checks=[{"images": other} for other in images[1:]],
            metadata={"to": side, "resolution": str(size)},
        )
        yield from write_onnx(model, export)
    yield f"images [batch, {shape.channels}, {size}, {size}] of -1 .. 1, translated to the {side} side"
