"""Buckets: a curve of any length in bounded memory, of which no extreme is lost."""

import numpy as np

MAX_BUCKETS = 2000  # of a curve: more than a picture has columns of pixels

_COUNT, _STEP, _MEAN, _LOW_STEP, _LOW, _HIGH_STEP, _HIGH = range(7)


class Buckets:
    """A curve as the mean and both extremes of each bucket of neighbouring points.

    A curve of at most `most` points is kept as it is. Beyond, neighbouring buckets are merged, all of them whenever
    there are too many, so that there are always between a half of `most` and `most`.

    Args:
        most: buckets.

    Example:
        >>> curve = Buckets(most=2)
        >>> curve.extend([1, 2, 3, 4], [0.0, 9.0, 2.0, 3.0])
        >>> curve.points()[1].tolist(), curve.means()[1].tolist()
        ([0.0, 9.0, 2.0, 3.0], [4.5, 2.5])
    """

    def __init__(self, most: int = MAX_BUCKETS) -> None:
        self.most = most
        self._size = 1  # points of each bucket but the last, which may have fewer
        self._rows = np.zeros((0, 7))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_points(self) -> int:
        """Points so far."""
        return int(self._rows[:, _COUNT].sum())

    @property
    def is_thinned(self) -> bool:
        """Whether a bucket holds more than one point."""
        return self._size > 1

    @property
    def last(self) -> tuple[float, float]:
        """The step and value of the last point."""
        return self._last

    def extend(self, steps: np.ndarray | list[int], values: np.ndarray | list[float]) -> None:
        """Appends points.

        Args:
            steps: in ascending order.
            values: finite.
        """
        steps, values = np.asarray(steps, float), np.asarray(values, float)
        if not len(steps):
            return
        self._last = float(steps[-1]), float(values[-1])
        added = np.column_stack([np.ones_like(steps), steps, values, steps, values, steps, values])
        if self._size > 1 and len(self._rows) and (room := int(self._size - self._rows[-1, _COUNT])):
            self._rows[-1] = _merged(np.concatenate([self._rows[-1:], added[:room]]), 1 + len(added[:room]))[0]
            added = added[room:]
        if len(added):
            self._rows = np.concatenate([self._rows, _merged(added, self._size)])
        while len(self._rows) > self.most:
            self._rows, self._size = _merged(self._rows, 2), 2 * self._size

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The steps and values of the lowest and the highest point of each bucket, and of the last point.

        Returns:
            [at most 2 * most + 1] each, in the order of the steps.
        """
        if not self.is_thinned:
            return self._rows[:, _STEP], self._rows[:, _MEAN]
        both = np.concatenate([self._rows[:, [_LOW_STEP, _LOW]], self._rows[:, [_HIGH_STEP, _HIGH]], [self._last]])
        steps, values = np.unique(both, axis=0).T
        order = np.argsort(steps, kind="stable")
        return steps[order], values[order]

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean step and value of each bucket.

        Returns:
            [at most most] each.
        """
        return self._rows[:, _STEP], self._rows[:, _MEAN]


def _merged(rows: np.ndarray, size: int) -> np.ndarray:
    """Every `size` neighbouring rows as one; the last may be of fewer."""
    if size == 1:
        return rows
    starts = np.arange(0, len(rows), size)
    counts = np.add.reduceat(rows[:, _COUNT], starts)
    merged = np.empty((len(starts), 7))
    merged[:, _COUNT] = counts
    for column in (_STEP, _MEAN):
        merged[:, column] = np.add.reduceat(rows[:, column] * rows[:, _COUNT], starts) / counts
    for step, value, sign in ((_LOW_STEP, _LOW, 1.0), (_HIGH_STEP, _HIGH, -1.0)):
        order = np.lexsort((sign * rows[:, value], np.arange(len(rows)) // size))[starts]  # the first of each bucket
        merged[:, step], merged[:, value] = rows[order, step], rows[order, value]
    return merged
