"""NeighbourCounts: predictions without a network, from counts of neighbouring tokens in the training text."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

FREQUENCIES = "token frequencies"
MOST_FREQUENT = "most frequent token"
LEFT_BIGRAM = "best left-neighbour bigram"
TWO_SIDED = "two-sided neighbours"
FORMAT = 1  # of the files: increase it whenever the same text would give others
_DENSE = 4  # numbers a count, up to which all of them are counted


@dataclass(frozen=True)
class NeighbourCounts:
    """Predicts a token from its true neighbours, even where those are masked for a model.

    MOST_FREQUENT ignores them. LEFT_BIGRAM is the token that most often follows the left one. TWO_SIDED is the token
    that is most often between the two. A combination that was not in the training text falls back to the previous
    baseline. FREQUENCIES gives every token the probability that it has in the training text, whatever is around it.

    Args:
        pad: the token beside the ends of a window.
        losses_V: float64, the cross-entropy of each token.
        after: the most frequent token by the left one.
        between: the same by left * V + right.
    """

    pad: int
    losses_V: Tensor
    after: "_MostFrequent"
    between: "_MostFrequent"

    @classmethod
    def of(cls, windows: Iterable[Tensor], tokenizer: Any) -> "NeighbourCounts":
        """Counts.

        Args:
            windows: int64 [n, sequence_length] each; neighbours are counted within a window.
            tokenizer: with `pad`, `vocab_size` and `special_tokens`.
        """
        vocab_size, special = tokenizer.vocab_size, torch.tensor(tokenizer.special_tokens)
        triples = [_triples(tokens_BT.cpu(), tokenizer.pad, special) for tokens_BT in windows]
        left, middle, right = (torch.cat(column) for column in zip(*triples, strict=True))
        counts_V = torch.bincount(middle, minlength=vocab_size)
        return cls(
            pad=tokenizer.pad,
            # A token that was never seen counts as seen once: its loss is finite.
            losses_V=-((counts_V + 1).double() / (len(middle) + vocab_size)).log(),
            after=_MostFrequent.of(left, middle, vocab_size),
            between=_MostFrequent.of(left * vocab_size + right, middle, vocab_size),
        )

    def save(self, directory: Path) -> None:
        """Writes files that `load` reads.

        Args:
            directory: to write to.
        """
        for name, values in (("losses", self.losses_V), ("after", self.after.pairs), ("between", self.between.pairs)):
            np.save(directory / f"{name}.npy", values.numpy())

    @classmethod
    def load(cls, directory: Path, tokenizer: Any) -> "NeighbourCounts":
        """Reads what `save` has written; only what is looked up is read from the disk.

        Args:
            directory: of the files.
            tokenizer: of the same text.
        """
        losses_V, after, between = (
            torch.from_numpy(np.load(directory / f"{name}.npy", mmap_mode="c"))  # c: a tensor must be writable
            for name in ("losses", "after", "between")
        )
        return cls(tokenizer.pad, losses_V, _MostFrequent(after), _MostFrequent(between))

    def predictions(self, tokens_BT: Tensor, chosen_BK: Tensor) -> dict[str, Tensor]:
        """Predicts tokens.

        Args:
            tokens_BT: int64, unmasked.
            chosen_BK: int64, the positions to predict.

        Returns:
            int64 [B, K] by name of the baseline.
        """
        left_BT, _, right_BT = _neighbours(tokens_BT.cpu(), self.pad)
        chosen_BK = chosen_BK.cpu()
        left, right = left_BT.gather(1, chosen_BK), right_BT.gather(1, chosen_BK)
        frequent = torch.full_like(left, int(self.losses_V.argmin()))
        after = self.after.look_up(left, otherwise=frequent)
        between = self.between.look_up(left * len(self.losses_V) + right, otherwise=after)
        return {MOST_FREQUENT: frequent, LEFT_BIGRAM: after, TWO_SIDED: between}

    def losses(self, tokens: Tensor) -> Tensor:
        """Returns float64 of the same shape: the cross-entropy of FREQUENCIES, which ignores neighbours."""
        return self.losses_V[tokens.cpu()]


@dataclass(frozen=True)
class _MostFrequent:
    """For each key, the value that occurred with it most often; the smallest of equally frequent ones.

    Args:
        pairs: int64 [2, n], keys in their order and their values.
    """

    pairs: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, vocab_size: int) -> "_MostFrequent":
        """Counts values below `vocab_size`."""
        pairs, counts = _counted((keys * vocab_size + values).numpy())
        of_pairs = pairs // vocab_size
        starts = np.flatnonzero(np.diff(of_pairs, prepend=-1))  # of each key
        most = np.repeat(np.maximum.reduceat(counts, starts), np.diff(starts, append=len(pairs)))
        best = np.flatnonzero(counts == most)  # several of a key where they are equally frequent
        best = best[np.diff(of_pairs[best], prepend=-1) > 0]
        return cls(torch.from_numpy(np.stack([of_pairs[best], pairs[best] % vocab_size])))

    def look_up(self, keys: Tensor, otherwise: Tensor) -> Tensor:
        """Returns the values of `keys`, and `otherwise` for unknown keys."""
        known, values = self.pairs
        found = torch.searchsorted(known, keys.contiguous()).clamp(max=len(known) - 1)
        return torch.where(known[found] == keys, values[found], otherwise)


def _neighbours(tokens_BT: Tensor, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    padded = F.pad(tokens_BT, (1, 1), value=pad)
    return padded[:, :-2], tokens_BT, padded[:, 2:]


def _triples(tokens_BT: Tensor, pad: int, special: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, middle, right = _neighbours(tokens_BT, pad)
    ordinary = ~torch.isin(middle, special)
    return left[ordinary], middle[ordinary], right[ordinary]


def _counted(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different numbers in their order, and how often each occurs."""
    if len(numbers) and numbers.max() < _DENSE * len(numbers):  # faster than sorting
        counts = np.bincount(numbers)
        found = np.flatnonzero(counts)
        return found, counts[found]
    return np.unique(numbers, return_counts=True)
