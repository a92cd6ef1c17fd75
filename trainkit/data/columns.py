"""Columns: tensors, arrays and lists of one length, of which samples are taken by index; and samples of a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from trainkit.errors import ConfigError


def columns_of(source: Any) -> Any | None:
    """A tree of columns where `source` is one, checked; None where it is a map-style data set.

    A tensor or an array, a tuple with one in it, a dict and a TensorDataset are columns; a list is a list of samples,
    as it is to torch's own DataLoader. Raises ConfigError for what is neither.
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
    """How many samples `source` holds: columns count their first dimension, data sets say `len`."""
    columns = columns_of(source)
    while isinstance(columns, tuple | Mapping):
        columns = next(iter(columns.values() if isinstance(columns, Mapping) else columns))
    return len(source if columns is None else columns)


def take(columns: Any, indices: Tensor) -> Any:
    """The samples `indices` (int64 [n], on the CPU) of a tree of columns: tensors [n, ...], and lists of strings."""
    if isinstance(columns, Tensor):
        return columns.index_select(0, indices if columns.is_cpu else indices.to(columns.device))
    if isinstance(columns, np.ndarray):
        return _from_array(columns[indices.numpy()])
    if isinstance(columns, list):
        # A share without samples has the type and shape of one that has some.
        items = [columns[index] for index in indices.tolist() or [0]]
        return default_collate(items) if len(indices) else samples(default_collate(items), 1, slice(0))
    if type(columns) is tuple:  # the shortest way for what most batches are
        return tuple([take(part, indices) for part in columns])
    return _rebuilt(columns, lambda part: take(part, indices))


def samples(tree: Any, num: int, where: slice) -> Any:
    """The samples `where` of a batch of `num`: a tree of tensors, arrays and lists whose first dimension they are.

    A list of tensors or of tuples that all have `num` entries is columns, as torch's default_collate makes them; any
    other list of `num` has a sample in each place. What has no first dimension (numbers, strings, None) belongs to
    all. Raises ConfigError for what cannot be cut.
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
        f"a batch of {num} samples holds a {type(tree).__name__} of shape {[*tree.shape]}, which cannot be cut into "
        f"micro-batches or empty shares: its first dimension must be the samples; let collate give it that, or a list "
        f"with one entry a sample"
    )


def one_by_one(columns: Any, indices: list[int]) -> list[Any]:
    """The samples `indices` of a tree of columns as a list, for a collate function."""

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
    if array.dtype.kind in "OUS":  # torch has no such type: texts stay texts, objects become what they hold
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
            f"allowed are tensors, arrays and lists whose first dimension is the samples, of numbers or text; of a "
            f"dict of data sets, give one of them"
        )


def _is_foreign(column: Any) -> bool:
    """Of a type that torch has not: times, records."""
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
            f"a data source is a tensor, an array, a tuple or dict of them, or a map-style data set with __len__ and "
            f"__getitem__, so that any sample can be found again after a resume; this is a {kind}: {advice}"
        )
