"""Datasets: the training and the held-out data of a run."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from trainkit.cache import cached
from trainkit.data.fingerprint import fingerprint
from trainkit.data.shuffle import Shuffle
from trainkit.data.sides import Entry, LeftOut, Sides
from trainkit.errors import DataError

_IN_MEMORY = (list, tuple, Tensor, np.ndarray, TensorDataset)


@dataclass(frozen=True)
class Datasets:
    """Two data sets that share no sample: one for training and one for evaluation.

    A specification of data (`Text`, `Images`) loads into this. It is also a specification itself, so own data sets can
    be used in its place: `data: {_target_: trainkit.data.Datasets, train: {...}, held_out: {...}}`.

    Args:
        train: map-style, with `__len__` and `__getitem__(index)`; optionally also `__getitems__(indices)`, which
            returns a list of samples to collate, or a tree of tensors (first dimension the samples) that is already a
            batch.
        held_out: the same, for evaluation.
        collate: makes a batch of a list of samples; None: torch's default_collate.
        tokenizer: the tokenizer of text; needed by recipes that print sentences.
        facts: other properties to show to a reader of the run, such as the number of documents.
        classes: the names of the classes, by label; empty: items have no labels.
        shuffle: the order of the training samples, for `batches(..., shuffle=)`.
        cache: where `derived` keeps files, for data whose fingerprint is a hash of all their content; None: nowhere.
    """

    train: Any
    held_out: Any
    collate: Callable[[list[Any]], Any] | None = None
    tokenizer: Any = None
    facts: Mapping[str, int | str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    shuffle: Shuffle = field(default_factory=Shuffle)
    cache: Path | None = None

    def describe(self) -> dict[str, int | str]:
        """Returns the numbers of samples, where a length is known, and the `facts`, by their names in a summary."""
        sets = {"training samples": self.train, "held-out samples": self.held_out}
        return {**{name: len(samples) for name, samples in sets.items() if hasattr(samples, "__len__")}, **self.facts}

    def fingerprints(self) -> dict[str, str]:
        """Returns the fingerprints of the training data and the held-out data."""
        return {"train": fingerprint(self.train), "held_out": fingerprint(self.held_out)}

    def derived(self, name: str, build: Callable[[Path], object]) -> Path | None:
        """Makes files from the training data, once for all runs that have the same.

        Args:
            name: of what is made; it contains everything beside the data that decides the files.
            build: called with the directory to fill.

        Returns:
            The directory; None: they cannot be kept, because there is no `cache`, or it cannot be written.
        """
        if self.cache is None:
            return None
        try:
            return cached(self.cache, f"{name}-{fingerprint(self.train)}", build)
        except DataError:  # it says that of a cache that is only read, or full; a run can do without
            return None

    def load(self, progress: bool = True) -> "Datasets":
        """Returns itself: there is nothing to build."""
        return self

    def sides(self, progress: bool = True) -> Sides | None:
        """Returns the samples of both sides, for an audit; None where they may be random or slow to make.

        Args:
            progress: not used.
        """
        if not _is_in_memory(self.train) or not _is_in_memory(self.held_out):
            return None
        return Sides(
            train=lambda: _entries(self.train, "training sample"),
            held_out=lambda: _entries(self.held_out, "held-out sample"),
            num_train=len(self.train),
            num_held_out=len(self.held_out),
        )

    def without(self, left_out: LeftOut) -> "Datasets":
        """Returns the data sets without these training samples, which are those of `sides`."""
        keys = np.array([entry.key for entry in _entries(self.train, "")], np.uint64)
        kept = np.flatnonzero(~left_out.covers(keys)).tolist()
        if len(kept) == len(keys):
            return self
        is_listed = isinstance(self.train, list | tuple)
        return replace(self, train=[self.train[index] for index in kept] if is_listed else Subset(self.train, kept))


def _is_in_memory(samples: Any) -> bool:
    return isinstance(samples.dataset if isinstance(samples, Subset) else samples, _IN_MEMORY)


def _entries(samples: Any, name: str) -> Iterator[Entry]:
    for number in range(len(samples)):
        sample = samples[number]
        if callable(own := getattr(sample, "entry", None)):
            yield own()
            continue
        digest = hashlib.blake2b(digest_size=8)
        for part in _parts(sample):
            digest.update(part)
        key = int.from_bytes(digest.digest(), "little")
        text = sample if isinstance(sample, str) else None
        yield Entry(key, f"{name} {number}", text=text, pixels=_pixels(sample))


def _parts(sample: Any) -> Iterator[bytes]:
    """Yields the bytes of a tree of tensors, arrays and values, with what tells trees apart."""
    if isinstance(sample, Mapping):
        for name in sample:
            yield f"{name}:".encode(errors="surrogatepass")
            yield from _parts(sample[name])
    elif isinstance(sample, list | tuple):
        yield f"[{len(sample)}]".encode()
        for part in sample:
            yield from _parts(part)
    elif isinstance(sample, Tensor | np.ndarray):
        array = sample.detach().cpu().float().numpy() if isinstance(sample, Tensor) else sample
        yield f"{array.shape}".encode() + (repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    else:
        yield f"{type(sample).__name__} {sample!r}".encode(errors="surrogatepass")


def _pixels(sample: Any) -> NDArray[np.uint8] | None:
    """The pixels of a square picture of bytes; None for another sample."""
    image = sample.get("images") if isinstance(sample, Mapping) else sample
    image = image.numpy() if isinstance(image, Tensor) and not image.is_cuda and image.dtype.itemsize == 1 else image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
        return None
    return image if image.shape[0] in (1, 3) and image.shape[1] == image.shape[2] >= 8 else None
