"""Metrics of predictions against the truth; numbers of the whole held-out data, in numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(truth: ArrayLike, predictions: ArrayLike) -> float:
    """Returns the share of equal entries."""
    return float((np.asarray(truth) == np.asarray(predictions)).mean())


def macro_f1(truth: ArrayLike, predictions: ArrayLike) -> float:
    """Returns the mean of F1 over the classes that occur in the truth or among the predictions.

    Example:
        >>> macro_f1([0, 0, 1], [0, 1, 1])
        0.6666666666666666
    """
    table = _confusions(truth, predictions).astype(np.float64)
    occurring = table.sum(axis=0) + table.sum(axis=1)
    f1 = 2 * np.diag(table)[occurring > 0] / occurring[occurring > 0]
    return float(f1.mean())


def matthews(truth: ArrayLike, predictions: ArrayLike) -> float:
    """Returns Matthews' correlation of two or more classes; 0 where truth or predictions are of one class.

    Example:
        >>> matthews([0, 0, 1, 1], [0, 0, 1, 0])
        0.5773502691896258
    """
    table = _confusions(truth, predictions).astype(np.float64)
    num, of_truth, of_predictions = table.sum(), table.sum(axis=1), table.sum(axis=0)
    covariance = np.trace(table) * num - of_truth @ of_predictions
    spread = (num**2 - of_truth @ of_truth) * (num**2 - of_predictions @ of_predictions)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def r2(truth: ArrayLike, predictions: ArrayLike) -> float:
    """Returns the share of the truth's variance that is predicted; of a constant truth 1 where it is met, else 0.

    Example:
        >>> r2([1, 2, 3], [1, 2, 4])
        0.5
    """
    right, found = np.asarray(truth, np.float64), np.asarray(predictions, np.float64)
    left, whole = np.square(right - found).sum(), np.square(right - right.mean()).sum()
    return float(1 - left / whole) if whole > 0 else float(left == 0)


def pearson(truth: ArrayLike, predictions: ArrayLike) -> float:
    """Returns the linear correlation; 0 where one side is constant."""
    x, y = (array - array.mean() for array in (np.asarray(truth, np.float64), np.asarray(predictions, np.float64)))
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0


def spearman(truth: ArrayLike, predictions: ArrayLike) -> float:
    """Returns the correlation of the ranks, equal values having their mean rank; 0 where one side is constant.

    Example:
        >>> spearman([1, 2, 3], [10, 20, 25])
        1.0
    """
    return pearson(_ranks(truth), _ranks(predictions))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Returns the entities in the tags of a sentence, as conlleval reads IOB1, IOB2 and IOBES.

    Args:
        tags: `O`, or a prefix of B, I, E, S and a type, as in `B-PER`.

    Returns:
        (type, first word, last word) of each.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('LOC', 3, 3), ('LOC', 4, 4), ('PER', 0, 1)]
    """
    found: set[tuple[str, int, int]] = set()
    before, kind_before, start = "O", "", 0
    for number, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        is_inside = before != "O" and prefix in ("I", "E") and kind == kind_before and before not in ("E", "S")
        if before != "O" and not is_inside:
            found.add((kind_before, start, number - 1))
        if prefix != "O" and not is_inside:
            start = number
        before, kind_before = prefix, kind
    return found


def entity_scores(truth: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns precision, recall and F1 over the entities of all sentences; one counts where type and place agree."""
    num_true = num_predicted = num_both = 0
    for right, predicted in zip(truth, predictions, strict=True):
        ours, theirs = entities(right), entities(predicted)
        num_true, num_predicted, num_both = (
            num_true + len(ours),
            num_predicted + len(theirs),
            num_both + len(ours & theirs),
        )
    return {
        "precision": num_both / num_predicted if num_predicted else 0.0,
        "recall": num_both / num_true if num_true else 0.0,
        "f1": 2 * num_both / (num_true + num_predicted) if num_true + num_predicted else 0.0,
    }


def _confusions(truth: ArrayLike, predictions: ArrayLike) -> NDArray[np.int64]:
    rows, columns = np.asarray(truth, np.int64), np.asarray(predictions, np.int64)
    size = int(max(rows.max(), columns.max())) + 1
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
