"""MixedSamples: the samples of several data sets, of which each is drawn in proportion to its weight."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trainkit.data.columns import columns_of, num_samples_of, one_by_one, take
from trainkit.data.fingerprint import fingerprint
from trainkit.data.merging import merged
from trainkit.data.mixture_order import LEAST_SHARE, MixtureOrder
from trainkit.data.shuffle import Shuffle
from trainkit.errors import ConfigError, nearest
from trainkit.random import key_of

Weights = Mapping[str, float] | Sequence[float] | None


class MixedSamples(Dataset[Any]):
    """The samples of several data sets, one set after the other; `order_of` is the order that mixes them.

    Args:
        sources: columns or map-style data sets, by name.
        weights: see `Mixture`.

    Raises:
        ConfigError: for weights that cannot be, empty sources, and sources whose samples are too different.
    """

    def __init__(self, sources: Mapping[str, Any], weights: Weights = None) -> None:
        self.names, self.lengths = list(sources), {name: _length(name, source) for name, source in sources.items()}
        self.shares = dict(zip(self.names, shares_of(self.lengths, weights), strict=True))
        self.sources: list[Any] = [
            _Columns(source) if columns_of(source) is not None else source for source in sources.values()
        ]
        self._ends = np.cumsum(list(self.lengths.values()))
        self.is_padded = any(getattr(source, "is_padded", True) for source in self.sources)
        self._require_alike()
        if all(hasattr(source, "__getitems__") for source in self.sources):
            self.__getitems__ = self._at_once
        if all(callable(getattr(source, "document_of", None)) for source in self.sources):
            self.document_of = self._document_of

    def _require_alike(self) -> None:
        lengths = {name: getattr(s, "sequence_length", None) for name, s in zip(self.names, self.sources, strict=True)}
        if len(set(lengths.values())) > 1:
            raise ConfigError(f"sources of a mixture must have one sequence_length, and these have {lengths}")
        self.sequence_length = next(iter(lengths.values()))
        for name, source in zip(self.names, self.sources, strict=True):
            if getattr(source, "num_documents", None) is not None:
                raise ConfigError(
                    f"{name} keeps documents apart, which a mixture cannot: set documents=joined, which has windows "
                    f"over the documents one after the other"
                )

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def fingerprint(self) -> str:
        """Hash of the sources and of their shares."""
        parts = [
            f"{name} {self.shares[name]} {fingerprint(s)}" for name, s in zip(self.names, self.sources, strict=True)
        ]
        return "mixture " + " ".join(parts)

    def order_of(self, seed: int, shuffle: Shuffle) -> MixtureOrder:
        """Returns the order that mixes the sources, each in epochs of its own.

        Args:
            seed: of the run.
            shuffle: of the samples of each source.
        """
        orders = [
            shuffle.order(self.lengths[name], key_of(seed, "source", name), source)
            for name, source in zip(self.names, self.sources, strict=True)
        ]
        return MixtureOrder(list(self.shares.values()), orders, seed)

    def epochs(self, position: int) -> dict[str, float]:
        """Returns the passes over each source before a position, by its name.

        Its expectation: the count itself, `MixtureOrder.counts`, differs by a few samples.
        """
        return {name: float(share) * position / self.lengths[name] for name, share in self.shares.items()}

    def facts(self) -> dict[str, int | str]:
        """Returns the share and the size of each source, in words, by their names in a summary."""
        every = {name: math.ceil(self.lengths[name] / share) for name, share in self.shares.items()}
        return {
            f"share of {name}": f"{100 * float(share):.4g} %, an epoch every {every[name]:,} samples"
            for name, share in self.shares.items()
        }

    def prefetch(self, indices: NDArray[np.int64]) -> int:
        """Tells each source which of its samples will be asked for next; returns the bytes that are still to come."""
        coming = 0
        for source, _, own in self._by_source(indices):
            if callable(tell := getattr(self.sources[source], "prefetch", None)):
                coming = max(coming, tell(own) or 0)
        return coming

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        [(source, _, own)] = self._by_source(np.array([index % len(self)]))
        return self.sources[source][int(own[0])]

    def _at_once(self, indices: list[int]) -> Any:
        by_source = self._by_source(np.asarray(indices, np.int64))
        parts = {self.names[source]: self.sources[source].__getitems__(own.tolist()) for source, _, own in by_source}
        return merged(parts, [where for _, where, _ in by_source], len(indices))

    def _document_of(self, indices_B: NDArray[np.int64], places_BK: NDArray[np.int64]) -> NDArray[np.int64]:
        documents_BK = np.empty(places_BK.shape, np.int64)
        for source, where, own in self._by_source(indices_B):
            # A number of its own for each document of each source.
            documents = self.sources[source].document_of(own, places_BK[where])
            documents_BK[where] = documents * len(self.sources) + source
        return documents_BK

    def _by_source(self, indices: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """The number of each source that is asked, the places of its samples in `indices`, and their own indices."""
        of = np.searchsorted(self._ends, indices, side="right")
        found = []
        for source in np.unique(of).tolist():
            where = np.flatnonzero(of == source)
            begin = int(self._ends[source]) - self.lengths[self.names[source]]
            found.append((source, where, indices[where] - begin))
        return found


class _Columns:
    """Columns as a data set."""

    def __init__(self, columns: Any) -> None:
        self.columns = columns_of(columns)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.columns)

    def __len__(self) -> int:
        return num_samples_of(self.columns)

    def __getitem__(self, index: int) -> Any:
        return one_by_one(self.columns, [index])[0]

    def __getitems__(self, indices: list[int]) -> Any:
        return take(self.columns, torch.tensor(indices))


def _length(name: str, source: Any) -> int:
    try:
        length = num_samples_of(source)
    except ConfigError as error:
        raise ConfigError(f"source {name} of a mixture: {error}") from error
    if not length:
        raise ConfigError(f"source {name} of a mixture is empty: nothing to train on; check its path, or leave it out")
    return length


def shares_of(lengths: Mapping[str, int], weights: Weights) -> list[Fraction]:
    """Returns the share of each source in all samples, exactly; their sum is 1.

    Args:
        lengths: samples of each source, by name.
        weights: see `Mixture`.

    Raises:
        ConfigError: naming the weight that cannot be.

    Example:
        >>> shares_of({"a": 10, "b": 20}, {"a": 3, "b": 1})
        [Fraction(3, 4), Fraction(1, 4)]
    """
    values = [Fraction(value) for value in require_weights(list(lengths), weights) or lengths.values()]
    shares = [value / sum(values) for value in values]
    for name, share in zip(lengths, shares, strict=True):
        if share < LEAST_SHARE:
            raise ConfigError(
                f"the weight of {name} is {float(share):.2g} of the sum, less than one sample in {1 / LEAST_SHARE:,.0f}"
                f": raise weights.{name}, or leave the source out"
            )
    return shares


def require_weights(names: Sequence[str], weights: Weights) -> list[float] | None:
    """Returns the weights of sources in their order; None where none are given.

    Args:
        names: of the sources.
        weights: by name, or in the order of the sources.

    Raises:
        ConfigError: for another number of weights, another name, and a value that is no number above 0.
    """
    if not names:
        raise ConfigError(
            "sources={}: must name the sources of a mixture; set sources={first: {path: ...}, second: {path: ...}}"
        )
    if weights is None:
        return None
    needs = f"must be a number above 0 for each of {', '.join(names)}"
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise ConfigError(f"weights={[*weights]}: {needs}; set {len(names)} weights")
        weights = dict(zip(names, weights, strict=True))
    for name in weights:
        if name not in names:
            raise ConfigError(f"weights.{name}: there is no such source.{nearest(name, names)} {needs.capitalize()}")
    for name in names:
        value: Any = weights.get(name)
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"weights.{name}={value}: {needs}; set weights.{name}, or leave the source out")
    return [float(weights[name]) for name in names]
