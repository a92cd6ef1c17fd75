"""UnitSums: what is counted of masked tokens, summed by the document that they are of.

Tokens of one document resemble one another, so an interval over held-out text is one over documents.
Shape suffixes: B samples, K masked tokens per sample, N tokens, U units, F numbers of each.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainkit import Runtime
from trainkit.data import Batch
from trainkit_recipes.bert.data import IGNORED, Masked


class UnitSums:
    """Sums of numbers by unit, over batches and then over ranks.

    Args:
        num_values: of each token, F.
    """

    def __init__(self, num_values: int) -> None:
        self._num_values = num_values
        self._units: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float64]] = []

    def add(self, units_N: NDArray[np.int64], *values_N: ArrayLike) -> None:
        """Adds tokens.

        Args:
            units_N: of which each is.
            values_N: the F numbers of each.
        """
        units, values = _summed(units_N, np.stack([np.asarray(v, np.float64) for v in values_N], axis=1))
        self._units.append(units)
        self._values.append(values)

    def over_ranks(self, runtime: Runtime) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the units [U] of all ranks in their order, and sums [U, F]. Collective: every rank must call."""
        none = np.empty(0, np.int64), np.empty((0, self._num_values))
        own = np.concatenate([none[0], *self._units]), np.concatenate([none[1], *self._values])
        everyone = runtime.ranks.all_gather_object(_summed(*own))
        return _summed(*(np.concatenate(parts) for parts in zip(*everyone, strict=True)))


def units_of(batch: Batch, masked: Masked, dataset: Any) -> NDArray[np.int64]:
    """Returns the units [N] that the masked tokens in use are of, in the order of `labels[labels != IGNORED]`.

    Args:
        batch: of samples.
        masked: their tokens.
        dataset: that they are from; one with `document_of` says which documents they are of.

    Returns:
        Documents of the text; else the indices of the samples.
    """
    is_used_BK = (masked.labels_BK != IGNORED).cpu().numpy()
    indices_B = batch.indices.numpy()
    if knows_documents(dataset):
        documents_BK: NDArray[np.int64] = dataset.document_of(indices_B, masked.chosen_BK.cpu().numpy())
        return documents_BK[is_used_BK]
    return np.broadcast_to(indices_B[:, None], is_used_BK.shape)[is_used_BK]


def knows_documents(dataset: Any) -> bool:
    """Whether a data set says which document a token is of."""
    return callable(getattr(dataset, "document_of", None))


def _summed(
    units_N: NDArray[np.int64], values_NF: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    units_U, inverse_N = np.unique(units_N, return_inverse=True)
    columns = [np.bincount(inverse_N, column, len(units_U)) for column in values_NF.T]
    return units_U, np.stack(columns, axis=1)
