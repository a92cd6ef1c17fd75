"""Columns: tensors, arrays and lists of one length, from which samples are taken by index."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from trainkit.errors import ConfigError


def columns_of(source: Any) -> Any | None:
    """Checks a data source, and returns its columns if it consists of columns.

    A tensor or an array, a tuple that contains one, a dict and a TensorDataset are columns; a list is a list of
    samples, as it is for torch's own DataLoader.

    Args:
        source: columns or a map-style data set.

    Returns:
        A tree of columns; None for a map-style data set.

    Raises:
        ConfigError: for what is neither, and for columns of different lengths.
    """
    if isinstance(source, TensorDataset):
        source = source.tensors
    is_columns = isinstance(source, Tensor | np.ndarray | Mapping) or (
        isinstance(source, tuple) and any(isinstance(part, Tensor | np.ndarray) for part in source)
    )
    if not is_columns:
        _require_map_style(source)
        return None
    lengths: dict[str, int] = {}
    _measure(source, "", lengths)
    if len(set(lengths.values())) != 1:
        found = ", ".join(f"{name or 'it'} {length}" for name, length in lengths.items()) or "nothing"
        raise ConfigError(f"the columns of a data source differ in their number of samples: {found}")
    return source


def num_samples_of(source: Any) -> int:
    """Returns the number of samples in `source`: the first dimension of columns, `len` of a data set."""
    columns = columns_of(source)
    while isinstance(columns, tuple | Mapping):
        columns = next(iter(columns.values() if isinstance(columns, Mapping) else columns))
    return len(source if columns is None else columns)


def take(columns: Any, indices: Tensor) -> Any:
    """Takes samples of columns by index.

    Args:
        columns: a tree of columns.
        indices: int64 [n], on the CPU.

    Returns:
        The same tree with tensors [n, ...], and lists of strings.

    Example:
        >>> take({"x": torch.arange(10), "word": ["a", "b", "c", "d"]}, torch.tensor([3, 1]))
        {'x': tensor([3, 1]), 'word': ['d', 'b']}
    """
    if isinstance(columns, Tensor):
        return columns.index_select(0, indices if columns.is_cpu else indices.to(columns.device))
    if isinstance(columns, np.ndarray):
        return _from_array(columns[indices.numpy()])
    if isinstance(columns, list):
        # An empty local batch has the type and shape of one that is not empty.
        items = [columns[index] for index in indices.tolist() or [0]]
        return default_collate(items) if len(indices) else samples(default_collate(items), 1, slice(0))
    if type(columns) is tuple:  # the fast path for most batches
        return tuple([take(part, indices) for part in columns])
    return _rebuilt(columns, lambda part: take(part, indices))


def samples(tree: Any, num: int, where: slice) -> Any:
    """Takes a slice of the samples of a batch.

    A list of tensors or tuples that all have `num` entries is columns, as torch's default_collate makes them; any other
    list of `num` entries contains one per sample. A value without a first dimension (number, string, None) is returned
    as it is.

    Args:
        tree: a tree of tensors, arrays and lists whose first dimension is the samples.
        num: the number of samples in the batch.
        where: the samples to take.

    Returns:
        The same tree with those samples.

    Raises:
        ConfigError: for a tensor or array whose first dimension is not `num`.
    """
    if isinstance(tree, Tensor | np.ndarray):
        if tree.ndim == 0:
            return tree
        if len(tree) == num:
            return tree[where]
    elif isinstance(tree, Mapping):
        return {key: samples(value, num, where) for key, value in tree.items()}
    elif isinstance(tree, list | tuple):
        if any(isinstance(part, Tensor | np.ndarray | tuple) for part in tree) and all(
            _is_column(part, num) for part in tree
        ):
            return _rebuilt(tree, lambda part: samples(part, num, where))
        if len(tree) == num and not hasattr(tree, "_fields"):
            return tree[where]
        if any(isinstance(part, Tensor | np.ndarray | list | tuple | Mapping) for part in tree):
            return _rebuilt(tree, lambda part: samples(part, num, where))
        return tree
    else:
        return tree
    raise ConfigError(
        f"a batch of {num} samples holds a {type(tree).__name__} of shape {[*tree.shape]}, which cannot be divided "
        f"into micro-batches: its first dimension must be the samples; let collate return that, or a list with one "
        f"entry per sample"
    )


def one_by_one(columns: Any, indices: list[int]) -> list[Any]:
    """Takes samples of columns as a list, for a collate function.

    Args:
        columns: a tree of columns.
        indices: of the samples.

    Returns:
        One tree per sample.

    Example:
        >>> one_by_one({"x": [10, 20, 30]}, [2, 0])
        [{'x': 30}, {'x': 10}]
    """

    def pick(tree: Any, index: int) -> Any:
        if isinstance(tree, Mapping | tuple):
            return _rebuilt(tree, lambda part: pick(part, index))
        return tree[index]

    return [pick(columns, index) for index in indices]


def _is_column(part: Any, num: int) -> bool:
    if isinstance(part, Mapping):
        return True
    return isinstance(part, Tensor | np.ndarray | list | tuple) and (getattr(part, "ndim", 1) == 0 or len(part) == num)


def _rebuilt(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {key: function(value) for key, value in tree.items()}
    parts = [function(part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _from_array(array: Any) -> Any:
    if array.dtype.kind in "OUS":  # torch has no such type: strings stay strings, objects are converted
        return default_collate(array.tolist()) if len(array) else []
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _measure(tree: Any, name: str, lengths: dict[str, int]) -> None:
    """Fills in the number of samples of each column by its name."""
    if isinstance(tree, Mapping | tuple):
        parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, part in parts:
            _measure(part, f"{name}[{key!r}]", lengths)
    elif isinstance(tree, list) or (isinstance(tree, Tensor | np.ndarray) and tree.ndim and not _is_foreign(tree)):
        lengths[name] = len(tree)
    else:
        raise ConfigError(
            f"column {name or 'of a data source'} is a {type(tree).__name__} of {getattr(tree, 'dtype', 'no dtype')}: "
            f"it must be a tensor, an array or a list of numbers or text, with the samples as first dimension; of a "
            f"dict of data sets, give one of them"
        )


def _is_foreign(column: Any) -> bool:
    """Whether torch has no such dtype: times, records."""
    return isinstance(column, np.ndarray) and column.dtype.kind in "MmV"


def _require_map_style(source: Any) -> None:
    kind = type(source).__name__
    advice = None
    if hasattr(source, "iloc"):
        advice = "give a dict of its columns: {name: frame[name].to_numpy() for name in frame}"
    elif isinstance(source, tuple) and source and all(isinstance(part, list) for part in source):
        advice = "give a dict of the lists, each of them a column, or one list of samples"
    elif not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        advice = "give list(source) where it fits into memory, else write it to files that can be read by index"
    if advice is not None:
        raise ConfigError(
            f"a data source must be a tensor, an array, a tuple or dict of them, or a map-style data set with __len__ "
            f"and __getitem__, so that any sample can be found again after a resume; this is a {kind}: {advice}"
        )
