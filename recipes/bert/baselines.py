"""NeighbourCounts: predictions without a network, from counts of neighbouring tokens in the training text."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

FREQUENCIES = "token frequencies"
MOST_FREQUENT = "most frequent token"
LEFT_BIGRAM = "best left-neighbour bigram"
TWO_SIDED = "two-sided neighbours"
_DENSE = 4  # numbers a count, up to which all of them are counted


class NeighbourCounts:
    """Predicts a token from its true neighbours, even where those are masked for a model.

    MOST_FREQUENT ignores them. LEFT_BIGRAM is the token that most often follows the left one. TWO_SIDED is the token
    that is most often between the two. A combination that was not in the training text falls back to the previous
    baseline. FREQUENCIES gives every token the probability that it has in the training text, whatever is around it.

    Args:
        windows: int64 [n, sequence_length] each; neighbours are counted within a window.
        tokenizer: with `pad`, `vocab_size` and `special_tokens`.
    """

    def __init__(self, windows: Iterable[Tensor], tokenizer: object) -> None:
        self._pad: int = tokenizer.pad  # type: ignore[attr-defined]
        self._vocab_size: int = tokenizer.vocab_size  # type: ignore[attr-defined]
        special = torch.tensor(tokenizer.special_tokens)  # type: ignore[attr-defined]
        triples = [self._triples(tokens_BT.cpu(), special) for tokens_BT in windows]
        left, middle, right = (torch.cat(column) for column in zip(*triples, strict=True))
        counts_V = torch.bincount(middle, minlength=self._vocab_size)
        self._frequent = int(counts_V.argmax())
        # A token that was never seen counts as seen once: its loss is finite.
        self._losses_V = -((counts_V + 1).double() / (len(middle) + self._vocab_size)).log()
        self._after = _MostFrequent(left, middle, self._vocab_size)
        self._between = _MostFrequent(left * self._vocab_size + right, middle, self._vocab_size)

    def predictions(self, tokens_BT: Tensor, chosen_BK: Tensor) -> dict[str, Tensor]:
        """Predicts tokens.

        Args:
            tokens_BT: int64, unmasked.
            chosen_BK: int64, the positions to predict.

        Returns:
            int64 [B, K] by name of the baseline.
        """
        left_BT, _, right_BT = self._neighbours(tokens_BT.cpu())
        chosen_BK = chosen_BK.cpu()
        left, right = left_BT.gather(1, chosen_BK), right_BT.gather(1, chosen_BK)
        frequent = torch.full_like(left, self._frequent)
        after = self._after.look_up(left, otherwise=frequent)
        between = self._between.look_up(left * self._vocab_size + right, otherwise=after)
        return {MOST_FREQUENT: frequent, LEFT_BIGRAM: after, TWO_SIDED: between}

    def losses(self, tokens: Tensor) -> Tensor:
        """Returns float64 of the same shape: the cross-entropy of FREQUENCIES, which ignores neighbours."""
        return self._losses_V[tokens.cpu()]

    def _neighbours(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padded = F.pad(tokens_BT, (1, 1), value=self._pad)
        return padded[:, :-2], tokens_BT, padded[:, 2:]

    def _triples(self, tokens_BT: Tensor, special: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, middle, right = self._neighbours(tokens_BT)
        ordinary = ~torch.isin(middle, special)
        return left[ordinary], middle[ordinary], right[ordinary]


class _MostFrequent:
    """For each key, the value that occurred with it most often; the smallest of equally frequent ones."""

    def __init__(self, keys: Tensor, values: Tensor, vocab_size: int) -> None:
        pairs, counts = _counted((keys * vocab_size + values).numpy())
        of_pairs = pairs // vocab_size
        starts = np.flatnonzero(np.diff(of_pairs, prepend=-1))  # of each key
        most = np.repeat(np.maximum.reduceat(counts, starts), np.diff(starts, append=len(pairs)))
        best = np.flatnonzero(counts == most)  # several of a key where they are equally frequent
        best = best[np.diff(of_pairs[best], prepend=-1) > 0]
        self._keys, self._values = torch.from_numpy(of_pairs[best]), torch.from_numpy(pairs[best] % vocab_size)

    def look_up(self, keys: Tensor, otherwise: Tensor) -> Tensor:
        """Returns the values of `keys`, and `otherwise` for unknown keys."""
        found = torch.searchsorted(self._keys, keys.contiguous()).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[found] == keys, self._values[found], otherwise)


def _counted(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different numbers in their order, and how often each occurs."""
    if len(numbers) and numbers.max() < _DENSE * len(numbers):  # faster than sorting
        counts = np.bincount(numbers)
        found = np.flatnonzero(counts)
        return found, counts[found]
    return np.unique(numbers, return_counts=True)
