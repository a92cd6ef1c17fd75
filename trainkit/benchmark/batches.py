"""The batches that a measurement trains on, and what is in them."""

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from trainkit.data.batch import Batch
from trainkit.recipe import Recipe

TOKENS = "tokens"


def batches_of(recipe: Recipe) -> Iterator[Batch]:
    """Batches to measure, without end. Collective: every rank must call.

    Of a recipe whose parts are stages, such as the resolutions of a growing network, those of the last stage; its few
    dearest batches repeat, so that their loading is not measured.
    """
    stages = recipe.stages()
    if not stages:
        return recipe.batches(0)
    return _repeated(recipe, dearest(recipe))


def dearest(recipe: Recipe) -> list[Batch]:
    """The dearest batches of a recipe, but for the first, in which the optimizer has no state. Collective."""
    stages = recipe.stages()
    if stages:
        return list(recipe.dearest_batches_of([*stages][-1]))[1:]
    batches = recipe.dearest_batches()
    next(batches)
    return [next(batches)]


def _repeated(recipe: Recipe, batches: list[Batch]) -> Iterator[Batch]:
    for batch in cycle(batches):
        recipe.runtime.stream.visit(batch)
        yield batch


def stage_of(recipe: Recipe) -> str | None:
    """The name of the stage that is measured; None: the recipe has none."""
    stages = recipe.stages()
    return stages[[*stages][-1]].name if stages else None


def contents(batch: Batch, padding: int | None) -> dict[str, Tensor]:
    """What a rank's batch holds, beside samples.

    Args:
        batch: of this rank.
        padding: the token that fills up; None: none does.

    Returns:
        The number of `tokens`, padding left out, or of `images`; empty: neither. On the device, so that nothing waits.
    """
    data: Any = batch.data
    tokens = data.get(TOKENS) if isinstance(data, Mapping) else None
    if isinstance(tokens, Tensor) and tokens.dim() == 2 and not tokens.is_floating_point():
        return {TOKENS: (tokens != padding).sum() if padding is not None else torch.tensor(tokens.numel())}
    pictures = [leaf for leaf in tree_leaves(data) if isinstance(leaf, Tensor) and leaf.dim() == 4]
    return {"images": torch.tensor(sum(len(leaf) for leaf in pictures))} if pictures else {}


def padding_of(recipe: Recipe) -> int | None:
    """The token with which the data of a recipe are filled up; None: not known."""
    tokenizer = getattr(recipe.datasets, "tokenizer", None)
    pad = getattr(tokenizer, "pad", None)
    return pad if isinstance(pad, int) else None
