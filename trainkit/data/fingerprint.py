"""Fingerprint: a short hash that shows whether two processes, or two starts of a run, read the same data."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from trainkit.data.datasets import Datasets

_NUM_HASHED = 32  # samples of a tensor, elements of a list
_NUM_BYTES = 1 << 16  # of a file, at its start and at its end


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def fingerprint(source: Any) -> str:
    """Hashes the content of a data source, independent of its location and of the process.

    Fast, and so not exhaustive: of tensors, arrays and lists it takes type, shape and 32 evenly spaced samples; of
    files their relative names, sizes, first and last 64 KiB; of other data sets the class and the number of samples,
    since their samples may be random or slow to make.

    Args:
        source: anything that `runtime.batches` takes, a `Datasets`, or the path of a file or folder. An object with a
            `fingerprint`, a string or a method that returns one, provides its own.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> fingerprint([1, 2, 3]) == fingerprint([1, 2, 3]) != fingerprint([1, 2, 4])
        True
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, source)
    return digest.hexdigest()


def _add(digest: _Digest, source: Any) -> None:
    own = getattr(source, "fingerprint", None)
    if own is not None:
        _add_all(digest, "own", str(own() if callable(own) else own))
    elif isinstance(source, Tensor):
        _add_tensor(digest, source)
    elif isinstance(source, np.ndarray):
        _add_array(digest, source)
    elif isinstance(source, Path):
        _add_path(digest, source)
    elif isinstance(source, Mapping):
        _add_all(digest, "mapping", *(entry for key in source for entry in (str(key), source[key])))
    elif isinstance(source, list | tuple):
        _add_all(digest, "sequence", len(source), *(source[index] for index in _spread(len(source))))
    elif isinstance(source, Datasets | Dataset):
        _add_dataset(digest, source)
    elif source is None or isinstance(source, str | bytes | bool | int | float | complex | np.generic):
        digest.update(f"{type(source).__name__} {source!r};".encode(errors="surrogatepass"))
    else:
        _add_class(digest, source)


def _add_dataset(digest: _Digest, source: Any) -> None:
    if isinstance(source, Datasets):
        _add_all(digest, "data sets", source.train, source.held_out)
    elif isinstance(source, TensorDataset):
        _add_all(digest, "tensors", *source.tensors)
    elif isinstance(source, Subset):
        _add_all(digest, "subset", source.dataset, np.asarray(source.indices))
    elif isinstance(source, ConcatDataset):
        _add_all(digest, "concatenation", *source.datasets)
    else:
        _add_class(digest, source)


def _add_class(digest: _Digest, source: Any) -> None:
    num = len(source) if hasattr(source, "__len__") else "?"
    digest.update(f"{type(source).__qualname__} {num};".encode())


def _add_all(digest: _Digest, kind: str, *parts: Any) -> None:
    digest.update(f"{kind} {len(parts)}:".encode())
    for part in parts:
        _add(digest, part)


def _add_tensor(digest: _Digest, tensor: Tensor) -> None:
    digest.update(f"tensor {tensor.dtype} {[*tensor.shape]}:".encode())
    if tensor.layout == torch.strided and tensor.numel() and not tensor.is_meta:
        hashed = tensor.detach()[_spread(len(tensor))] if tensor.ndim else tensor.detach()
        digest.update(hashed.cpu().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().tobytes())


def _add_array(digest: _Digest, array: Any) -> None:
    digest.update(f"array {array.dtype} {[*array.shape]}:".encode())
    hashed = array[_spread(len(array))] if array.ndim else array
    if array.dtype.hasobject:
        _add(digest, hashed.tolist())
    else:
        digest.update(hashed.tobytes())


def _spread(num: int) -> list[int]:
    """Returns at most `_NUM_HASHED` of `num` indices, evenly spaced, with the first and the last."""
    if num <= _NUM_HASHED:
        return list(range(num))
    return [index * (num - 1) // (_NUM_HASHED - 1) for index in range(_NUM_HASHED)]


def _add_path(digest: _Digest, path: Path) -> None:
    for file in _files(path) if path.is_dir() else [path]:
        name = os.fsencode(file.relative_to(path)) if path.is_dir() else os.fsencode(path.suffix)
        size = file.stat().st_size
        digest.update(name + f" {size}:".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_NUM_BYTES))
            opened.seek(max(opened.tell(), size - _NUM_BYTES))
            digest.update(opened.read(_NUM_BYTES))


def _files(path: Path) -> Iterator[Path]:
    """Yields the files below `path`, without hidden ones, in an order that depends on their names alone."""
    for directory, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(files) if not name.startswith("."))
