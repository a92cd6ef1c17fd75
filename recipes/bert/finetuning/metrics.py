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


def class_counts(truth: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.float64]:
    """Counts what accuracy, macro-F1 and Matthews' correlation are functions of.

    Args:
        truth: int [N].
        predictions: int [N].
        num_classes: C.

    Returns:
        [N, 3*C + 1]: one-hot the right class, the predicted one and, where both agree, that one; and whether they do.
    """
    one_hot = np.eye(num_classes)
    right, found = one_hot[np.asarray(truth, np.int64)], one_hot[np.asarray(predictions, np.int64)]
    both = right * found
    return np.concatenate([right, found, both, both.sum(axis=1, keepdims=True)], axis=1)


def of_class_counts(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Computes the three metrics of sums [..., 3*C + 1] of `class_counts`."""
    num_classes = sums.shape[-1] // 3
    of_truth, of_predictions, both, right = np.split(sums, [num_classes, 2 * num_classes, 3 * num_classes], axis=-1)
    num, right = of_truth.sum(axis=-1), right[..., 0]
    occurring = of_truth + of_predictions
    f1 = 2 * both / np.where(occurring > 0, occurring, 1)
    covariance = right * num - (of_truth * of_predictions).sum(axis=-1)
    spread = (num**2 - np.square(of_truth).sum(axis=-1)) * (num**2 - np.square(of_predictions).sum(axis=-1))
    return {
        "accuracy": right / num,
        "macro_f1": f1.sum(axis=-1) / (occurring > 0).sum(axis=-1),
        "matthews": np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0),
    }


def moments(truth: ArrayLike, predictions: ArrayLike) -> NDArray[np.float64]:
    """Returns what the squared error, R2 and Pearson's correlation are functions of, [N, 7]."""
    x, y = np.asarray(truth, np.float64), np.asarray(predictions, np.float64)
    centre, errors = x.mean(), np.square(x - y)
    x, y = x - centre, y - centre  # squares of large numbers would lose their digits
    return np.stack([errors, x, y, x * x, y * y, x * y, np.ones_like(x)], axis=1)


def of_moments(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Computes the three metrics of sums [..., 7] of `moments`."""
    errors, x, y, xx, yy, xy, num = np.moveaxis(sums, -1, 0)
    of_truth, of_predictions = (np.maximum(a - b * b / num, 0.0) for a, b in ((xx, x), (yy, y)))
    spread, varies = np.sqrt(of_truth * of_predictions), of_truth > 0
    found = 1 - errors / np.where(varies, of_truth, 1)
    return {
        "mse": errors / num,
        "r2": np.where(varies, found, (errors == 0).astype(np.float64)),
        "pearson": np.where(spread > 0, (xy - x * y / num) / np.where(spread > 0, spread, 1), 0.0),
    }


def tag_counts(truth: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Counts of each sentence, [N, 5]: right tags, words, and entities that are true, predicted, and both."""
    rows = []
    for right, predicted in zip(truth, predictions, strict=True):
        ours, theirs = entities(right), entities(predicted)
        num_right = sum(a == b for a, b in zip(right, predicted, strict=True))
        rows.append([num_right, len(right), len(ours), len(theirs), len(ours & theirs)])
    return np.array(rows, np.float64)


def of_tag_counts(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Computes accuracy, and precision, recall and F1 of entities, of sums [..., 5] of `tag_counts`."""
    right, words, num_true, num_predicted, num_both = np.moveaxis(sums, -1, 0)
    shares = {"precision": (num_both, num_predicted), "recall": (num_both, num_true)}
    shares["f1"] = 2 * num_both, num_true + num_predicted
    return {
        "accuracy": right / words,
        **{name: np.where(of > 0, part / np.where(of > 0, of, 1), 0.0) for name, (part, of) in shares.items()},
    }


def _confusions(truth: ArrayLike, predictions: ArrayLike) -> NDArray[np.int64]:
    rows, columns = np.asarray(truth, np.int64), np.asarray(predictions, np.int64)
    size = int(max(rows.max(), columns.max())) + 1
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
