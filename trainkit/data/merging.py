"""Merging: parts of a batch that were read from several sources become one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit.errors import ConfigError


def merged(parts: Mapping[str, Any], places: Sequence[NDArray[np.int64]], num: int) -> Any:
    """Puts the samples of several parts in their places.

    Args:
        parts: trees of tensors, arrays and lists of one structure, first dimension the samples, by source.
        places: of the samples of each part in the result.
        num: samples in the result.

    Returns:
        A tree of the same structure.

    Raises:
        ConfigError: for parts that differ in structure or shape, naming two sources.

    Example:
        >>> merged({"a": torch.tensor([5, 7]), "b": torch.tensor([6])}, [np.array([0, 2]), np.array([1])], 3)
        tensor([5, 6, 7])
    """
    names, trees = list(parts), list(parts.values())
    first = trees[0]
    for name, tree in zip(names[1:], trees[1:], strict=True):
        if _structure(tree) != _structure(first):
            raise ConfigError(
                f"the samples of {names[0]} and {name} cannot be in one batch: {_structure(first)} and "
                f"{_structure(tree)}; give sources of one kind"
            )
    if isinstance(first, Mapping):
        return {key: merged({n: parts[n][key] for n in names}, places, num) for key in first}
    if isinstance(first, tuple):
        entries = [merged({n: parts[n][number] for n in names}, places, num) for number in range(len(first))]
        return type(first)(*entries) if hasattr(first, "_fields") else tuple(entries)
    if isinstance(first, Tensor):
        whole = first.new_empty((num, *first.shape[1:]))
        for tree, where in zip(trees, places, strict=True):
            whole[torch.from_numpy(where)] = tree
        return whole
    if isinstance(first, np.ndarray):
        array = np.empty((num, *first.shape[1:]), first.dtype)
        for tree, where in zip(trees, places, strict=True):
            array[where] = tree
        return array
    items: list[Any] = [None] * num
    for tree, where in zip(trees, places, strict=True):
        for place, item in zip(where.tolist(), tree, strict=True):
            items[place] = item
    return items


def _structure(tree: Any) -> str:
    """What must agree at the top of a tree, in words."""
    if isinstance(tree, Mapping):
        return f"a dict of {', '.join(sorted(map(str, tree)))}"
    if isinstance(tree, tuple):
        return f"a tuple of {len(tree)}"
    if isinstance(tree, Tensor | np.ndarray):
        return f"{tree.dtype} of shape {[*tree.shape[1:]]}"
    return f"a {type(tree).__name__}"
