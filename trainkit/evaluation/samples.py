"""What metrics are computed from, one held-out sample at a time, so that they can be computed of resamples.

Shape suffixes: N units (samples, documents), F numbers of each, R resamples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainkit.distributed.ranks import Ranks
from trainkit.errors import ConfigError

Array = NDArray[np.float64]
Metrics = Mapping[str, Array]

_MOST_GROUPS = 1024
_COUNTS_AT_ONCE = 1 << 21  # 16 MB


class HeldOutSamples(ABC):
    """Units that are resampled as a whole, and how metrics are computed from how often each one was drawn."""

    unit: str
    """What a unit is, in the plural."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of units, N."""

    @abstractmethod
    def baselines(self) -> Sequence[str]:
        """The names of the baselines that are known for the same units."""

    @abstractmethod
    def metrics(self, counts_RN: Array, baseline: str | None = None) -> Metrics:
        """Computes metrics by name, [R], of the model or of a baseline; `counts_RN`: how often each unit is in each."""

    @abstractmethod
    def without_each(self, baseline: str | None = None) -> Metrics:
        """Computes metrics by name, [N], each of all units but one: the jackknife. Of many units, but a group."""

    def all_once(self, baseline: str | None = None) -> dict[str, float]:
        """Computes metrics of all units, each once."""
        return {name: float(values[0]) for name, values in self.metrics(np.ones((1, len(self))), baseline).items()}

    def binomial(self) -> Mapping[str, tuple[int, int]]:
        """Returns by metric that is a share of the units, how many of how many."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SampleSums(HeldOutSamples):
    """Metrics that are functions of sums over units: means, ratios, F1, correlations.

    Args:
        rows: float [N, F], the numbers of each unit.
        of_sums: from sums [..., F] of rows to metrics by name, [...] each.
        beside: of baselines by name, their rows [N, F] of the same units.
        unit: what a row is of, in the plural.
        shares: by metric that is a mean of zeros and ones, one for each unit: their column in `rows`.

    Raises:
        ConfigError: for rows of another shape.

    Example:
        >>> right = np.array([1, 0, 1, 1])
        >>> samples = SampleSums.means({"accuracy": right}, {"always a": {"accuracy": [1, 0, 0, 1]}})
        >>> {name: values.tolist() for name, values in samples.metrics(np.ones((1, 4))).items()}
        {'accuracy': [0.75]}
    """

    rows: ArrayLike
    of_sums: Callable[[Array], Metrics]
    beside: Mapping[str, ArrayLike] = field(default_factory=dict)
    unit: str = "samples"
    shares: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = np.asarray(self.rows, np.float64)
        if rows.ndim != 2:
            raise ConfigError(f"SampleSums: rows of shape {[*rows.shape]}; give [units, numbers of each]")
        others = {name: np.asarray(values, np.float64) for name, values in self.beside.items()}
        for name, values in others.items():
            if values.shape != rows.shape:
                raise ConfigError(
                    f"SampleSums: rows of {name!r} have shape {[*values.shape]}, those of the model {[*rows.shape]}: "
                    f"give both for the same units"
                )
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "beside", others)

    @classmethod
    def means(
        cls,
        values: Mapping[str, ArrayLike],
        beside: Mapping[str, Mapping[str, ArrayLike]] | None = None,
        *,
        weights: ArrayLike | None = None,
        unit: str = "samples",
    ) -> "SampleSums":
        """Makes those of metrics that are means.

        Args:
            values: by metric, [N], a number for each unit: the mean over it where there are weights.
            beside: by baseline and metric, the same; each baseline has all the metrics.
            weights: [N], such as the tokens of a unit; None: all are 1.
            unit: what a unit is, in the plural.
        """
        names = [*values]
        num = len(np.asarray(values[names[0]]))
        weights_N = np.ones(num) if weights is None else np.asarray(weights, np.float64)

        def rows(given: Mapping[str, ArrayLike]) -> Array:
            columns = {name: np.asarray(given[name], np.float64) for name in names}
            for name, column in columns.items():
                if column.shape != (num,):
                    raise ConfigError(
                        f"SampleSums.means: {name} has shape {[*column.shape]}: give one number a unit, {num}"
                    )
            return np.stack([*(column * weights_N for column in columns.values()), weights_N], axis=1)

        def of_sums(sums: Array) -> Metrics:
            return {name: sums[..., place] / sums[..., -1] for place, name in enumerate(names)}

        is_share = {name: weights is None and _is_binary(values[name]) for name in names}
        return cls(
            rows=rows(values),
            of_sums=of_sums,
            beside={name: rows(others) for name, others in (beside or {}).items()},
            unit=unit,
            shares={name: place for place, name in enumerate(names) if is_share[name]},
        )

    def __len__(self) -> int:
        return len(self._rows(None))

    def baselines(self) -> Sequence[str]:
        """The names in `beside`."""
        return [*self.beside]

    def metrics(self, counts_RN: Array, baseline: str | None = None) -> Metrics:
        """Computes metrics of resamples; see `HeldOutSamples`."""
        return self._of(counts_RN @ self._rows(baseline))

    def without_each(self, baseline: str | None = None) -> Metrics:
        """Computes metrics without each unit; see `HeldOutSamples`."""
        rows = self._rows(baseline)
        return self._of(rows.sum(axis=0) - rows)

    def binomial(self) -> Mapping[str, tuple[int, int]]:
        """Returns counts of the `shares`."""
        rows = self._rows(None)
        return {name: (round(rows[:, place].sum()), len(rows)) for name, place in self.shares.items()}

    def grouped(self, groups_N: NDArray[np.int64]) -> "SampleSums":
        """Returns sums of the units of each group, numbered from 0 on, as the units.

        Args:
            groups_N: the group of each unit.
        """
        num_groups = int(groups_N.max(initial=-1)) + 1

        def summed(rows: Array) -> Array:
            columns = [np.bincount(groups_N, column, num_groups) for column in rows.T]
            return np.stack(columns, axis=1)

        others = {name: summed(self._rows(name)) for name in self.beside}
        return replace(self, rows=summed(self._rows(None)), beside=others, shares={})

    def of_groups(self, groups_N: NDArray[np.int64] | None, unit: str) -> "SampleSums":
        """Returns the same with groups as units, under their name; None: as it is."""
        return self if groups_N is None else replace(self.grouped(groups_N), unit=unit)

    def _rows(self, baseline: str | None) -> Array:
        return np.asarray(self.rows if baseline is None else self.beside[baseline], np.float64)

    def _of(self, sums: Array) -> Metrics:
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have nothing to divide by
            return {name: np.asarray(values, np.float64) for name, values in self.of_sums(sums).items()}


@dataclass(frozen=True, kw_only=True)
class SampleRanks(HeldOutSamples):
    """Spearman's correlation: of the ranks within each resample, equal values having their mean rank.

    Args:
        name: of the metric.
        truth: [N].
        predictions: [N].
        beside: of baselines by name, their predictions [N].
        unit: what a value is of, in the plural; of groups, what a group is.
        groups: [N], numbers from 0 on, of values that are resampled together; None: each by itself.
    """

    name: str
    truth: ArrayLike
    predictions: ArrayLike
    beside: Mapping[str, ArrayLike] = field(default_factory=dict)
    unit: str = "samples"
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(np.asarray(self.truth)) if self.groups is None else int(self.groups.max(initial=-1)) + 1

    def baselines(self) -> Sequence[str]:
        """The names in `beside`."""
        return [*self.beside]

    def metrics(self, counts_RN: Array, baseline: str | None = None) -> Metrics:
        """Computes the correlation in resamples; see `HeldOutSamples`."""
        predictions = self.predictions if baseline is None else self.beside[baseline]
        counts_RN = counts_RN if self.groups is None else counts_RN[:, self.groups]
        ranks = [_ranks(np.asarray(values, np.float64), counts_RN) for values in (self.truth, predictions)]
        totals_R1 = counts_RN.sum(axis=1, keepdims=True)
        x, y = (values - (values * counts_RN).sum(axis=1, keepdims=True) / totals_R1 for values in ranks)
        products = [(counts_RN * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y))]
        spread = np.sqrt(products[1] * products[2])
        return {self.name: np.divide(products[0], spread, out=np.zeros_like(spread), where=spread > 0)}

    def without_each(self, baseline: str | None = None) -> Metrics:
        """Computes the correlation without each unit, or of many without each of 1,024 groups; see `HeldOutSamples`."""
        num = len(self)
        groups = np.arange(num) % min(num, _MOST_GROUPS)  # the skewness of groups is that of units
        at_once, parts = max(1, _COUNTS_AT_ONCE // num), []
        for first in range(0, min(num, _MOST_GROUPS), at_once):
            left_out = np.arange(first, min(first + at_once, num, _MOST_GROUPS))
            parts.append(self.metrics((groups != left_out[:, None]).astype(np.float64), baseline)[self.name])
        return {self.name: np.concatenate(parts)}


def in_order(ranks: Ranks, indices: ArrayLike, rows: ArrayLike) -> Array:
    """Gathers what each rank knows of its samples. Collective: every rank must call.

    Args:
        ranks: of the runtime: `runtime.ranks`.
        indices: [n], of this rank's samples in the held-out data.
        rows: [n, ...], a row for each.

    Returns:
        float64, the rows of all samples in the order of their indices, the same on every rank.
    """
    own = np.asarray(indices, np.int64).reshape(-1), np.asarray(rows, np.float64)
    everyone = ranks.all_gather_object(own)
    filled = [pair for pair in everyone if len(pair[0])] or everyone[:1]  # a rank without a sample knows no shape
    whole = np.concatenate([index for index, _ in filled])
    ordered: Array = np.concatenate([values for _, values in filled])[np.argsort(whole, kind="stable")]
    return ordered


def _ranks(values_N: Array, counts_RN: Array) -> Array:
    """The mean rank of each value among a resample's, [R, N]."""
    _, inverse_N = np.unique(values_N, return_inverse=True)
    order_N = np.argsort(inverse_N, kind="stable")
    starts = np.flatnonzero(np.diff(inverse_N[order_N], prepend=-1))
    alike = np.add.reduceat(counts_RN[:, order_N], starts, axis=1)
    ranks: Array = (np.cumsum(alike, axis=1) - (alike - 1) / 2)[:, inverse_N]
    return ranks


def _is_binary(values: ArrayLike) -> bool:
    array = np.asarray(values, np.float64)
    return bool(np.isin(array, (0.0, 1.0)).all())
