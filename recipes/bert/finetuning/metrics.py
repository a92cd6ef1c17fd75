"""Metrics of predictions against the truth; numbers of the whole held-out data, in numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(truth: ArrayLike, guesses: ArrayLike) -> float:
    """Returns the share of equal entries."""
    return float((np.asarray(truth) == np.asarray(guesses)).mean())


def macro_f1(truth: ArrayLike, guesses: ArrayLike) -> float:
    """Returns the mean of F1 over the classes that occur in the truth or among the guesses.

    Example:
        >>> macro_f1([0, 0, 1], [0, 1, 1])
        0.6666666666666666
    """
    table = _confusions(truth, guesses).astype(np.float64)
    occurring = table.sum(axis=0) + table.sum(axis=1)
    f1 = 2 * np.diag(table)[occurring > 0] / occurring[occurring > 0]
    return float(f1.mean())


def matthews(truth: ArrayLike, guesses: ArrayLike) -> float:
    """Returns Matthews' correlation of two or more classes; 0 where truth or guesses are of one class.

    Example:
        >>> matthews([0, 0, 1, 1], [0, 0, 1, 0])
        0.5773502691896258
    """
    table = _confusions(truth, guesses).astype(np.float64)
    num, of_truth, of_guesses = table.sum(), table.sum(axis=1), table.sum(axis=0)
    covariance = np.trace(table) * num - of_truth @ of_guesses
    spread = (num**2 - of_truth @ of_truth) * (num**2 - of_guesses @ of_guesses)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(truth: ArrayLike, guesses: ArrayLike) -> float:
    """Returns the linear correlation; 0 where one side is constant."""
    x, y = (array - array.mean() for array in (np.asarray(truth, np.float64), np.asarray(guesses, np.float64)))
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0


def spearman(truth: ArrayLike, guesses: ArrayLike) -> float:
    """Returns the correlation of the ranks, equal values having their mean rank; 0 where one side is constant.

    Example:
        >>> spearman([1, 2, 3], [10, 20, 25])
        1.0
    """
    return pearson(_ranks(truth), _ranks(guesses))


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


def entity_scores(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns precision, recall and F1 over the entities of all sentences; one counts where type and place agree."""
    num_true = num_guessed = num_both = 0
    for right, guessed in zip(truth, guesses, strict=True):
        ours, theirs = entities(right), entities(guessed)
        num_true, num_guessed, num_both = num_true + len(ours), num_guessed + len(theirs), num_both + len(ours & theirs)
    return {
        "precision": num_both / num_guessed if num_guessed else 0.0,
        "recall": num_both / num_true if num_true else 0.0,
        "f1": 2 * num_both / (num_true + num_guessed) if num_true + num_guessed else 0.0,
    }


def _confusions(truth: ArrayLike, guesses: ArrayLike) -> NDArray[np.int64]:
    rows, columns = np.asarray(truth, np.int64), np.asarray(guesses, np.int64)
    size = int(max(rows.max(), columns.max())) + 1
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
