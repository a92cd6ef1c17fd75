"""Fingerprint: a short hash by which two processes, or two starts of a run, find that they read the same data."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

_NUM_LOOKED_AT = 32  # samples of a tensor, elements of a list
_NUM_BYTES = 1 << 16  # of a file, at its start and at its end


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


@runtime_checkable
class _Splits(Protocol):
    """A `Datasets`, whose module imports this one."""

    train: Any
    held_out: Any


def fingerprint(source: Any) -> str:
    """32 hexadecimal digits that depend on what `source` holds, and neither on where it lies nor on the process.

    source: what `runtime.batches` takes, a `Datasets`, or the path of a file or a folder. An object that has a
        `fingerprint`, a string or a method that returns one, says it itself.

    Fast, and so not exhaustive: of tensors, arrays and lists it takes type, shape and 32 evenly spaced samples; of
    files their relative names, sizes, first and last 64 KiB; of other data sets the class and the number of samples,
    since their samples may be random or slow to make.
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
        _add_all(digest, "mapping", *(part for key in source for part in (str(key), source[key])))
    elif isinstance(source, list | tuple):
        _add_all(digest, "sequence", len(source), *(source[index] for index in _spread(len(source))))
    elif isinstance(source, _Splits):
        _add_all(digest, "data sets", source.train, source.held_out)
    elif isinstance(source, TensorDataset):
        _add_all(digest, "tensors", *source.tensors)
    elif isinstance(source, Subset):
        _add_all(digest, "subset", source.dataset, np.asarray(source.indices))
    elif isinstance(source, ConcatDataset):
        _add_all(digest, "concatenation", *source.datasets)
    elif source is None or isinstance(source, str | bytes | bool | int | float | complex | np.generic):
        digest.update(f"{type(source).__name__} {source!r};".encode(errors="surrogatepass"))
    else:
        num = len(source) if hasattr(source, "__len__") else "?"
        digest.update(f"{type(source).__qualname__} {num};".encode())


def _add_all(digest: _Digest, kind: str, *parts: Any) -> None:
    digest.update(f"{kind} {len(parts)}:".encode())
    for part in parts:
        _add(digest, part)


def _add_tensor(digest: _Digest, tensor: Tensor) -> None:
    digest.update(f"tensor {tensor.dtype} {[*tensor.shape]}:".encode())
    if tensor.layout == torch.strided and tensor.numel() and not tensor.is_meta:
        looked_at = tensor.detach()[_spread(len(tensor))] if tensor.ndim else tensor.detach()
        digest.update(looked_at.cpu().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().tobytes())


def _add_array(digest: _Digest, array: Any) -> None:
    digest.update(f"array {array.dtype} {[*array.shape]}:".encode())
    looked_at = array[_spread(len(array))] if array.ndim else array
    if array.dtype.hasobject:
        _add(digest, looked_at.tolist())
    else:
        digest.update(looked_at.tobytes())


def _spread(num: int) -> list[int]:
    """At most `_NUM_LOOKED_AT` of `num` indices, evenly spaced, the first and the last among them."""
    if num <= _NUM_LOOKED_AT:
        return list(range(num))
    return [index * (num - 1) // (_NUM_LOOKED_AT - 1) for index in range(_NUM_LOOKED_AT)]


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
    """The files below `path` in an order that depends on their names alone, hidden ones aside."""
    for directory, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(files) if not name.startswith("."))
