"""What can be guessed without a network: counts of neighbouring tokens in the training text."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_FREQUENT = "most frequent token"
LEFT_BIGRAM = "best left-neighbour bigram"
TWO_SIDED = "two-sided neighbours"


class NeighbourCounts:
    """Guesses a token from its true neighbours, even where those are masked from a model.

    MOST_FREQUENT ignores them. LEFT_BIGRAM is the token that most often follows the left one. TWO_SIDED is the token
    that most often stands between the two, else LEFT_BIGRAM's. What was never seen falls back to the one before.
    """

    def __init__(self, windows: Iterable[Tensor], tokenizer: object) -> None:
        """windows: int64 [n, sequence_length] each; neighbours are counted within a window."""
        self._pad: int = tokenizer.pad  # type: ignore[attr-defined]
        self._vocab_size: int = tokenizer.vocab_size  # type: ignore[attr-defined]
        special = torch.tensor(tokenizer.special_tokens)  # type: ignore[attr-defined]
        parts = [self._triples(tokens_BT.cpu(), special) for tokens_BT in windows]
        left, middle, right = (torch.cat(part) for part in zip(*parts, strict=True))
        self._frequent = int(torch.bincount(middle).argmax())
        self._after = _Commonest(left, middle, self._vocab_size)
        self._between = _Commonest(left * self._vocab_size + right, middle, self._vocab_size)

    def guesses(self, tokens_BT: Tensor, chosen_BK: Tensor) -> dict[str, Tensor]:
        """By name, int64 [B, K]: guesses at `chosen_BK` of the unmasked `tokens_BT`."""
        left_BT, _, right_BT = self._neighbours(tokens_BT.cpu())
        chosen_BK = chosen_BK.cpu()
        left, right = left_BT.gather(1, chosen_BK), right_BT.gather(1, chosen_BK)
        frequent = torch.full_like(left, self._frequent)
        after = self._after.look_up(left, otherwise=frequent)
        between = self._between.look_up(left * self._vocab_size + right, otherwise=after)
        return {MOST_FREQUENT: frequent, LEFT_BIGRAM: after, TWO_SIDED: between}

    def _neighbours(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padded = F.pad(tokens_BT, (1, 1), value=self._pad)
        return padded[:, :-2], tokens_BT, padded[:, 2:]

    def _triples(self, tokens_BT: Tensor, special: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, middle, right = self._neighbours(tokens_BT)
        ordinary = ~torch.isin(middle, special)
        return left[ordinary], middle[ordinary], right[ordinary]


class _Commonest:
    """For each key, the value that came with it most often; of equals the smallest."""

    def __init__(self, keys: Tensor, values: Tensor, vocab_size: int) -> None:
        pairs, counts = torch.unique(keys * vocab_size + values, return_counts=True)
        by_count = torch.argsort(counts, descending=True, stable=True)
        by_key = by_count[torch.argsort(pairs[by_count] // vocab_size, stable=True)]
        keys, values = pairs[by_key] // vocab_size, pairs[by_key] % vocab_size
        is_first = torch.ones_like(keys, dtype=torch.bool)
        is_first[1:] = keys[1:] != keys[:-1]
        self._keys, self._values = keys[is_first], values[is_first]

    def look_up(self, keys: Tensor, otherwise: Tensor) -> Tensor:
        places = torch.searchsorted(self._keys, keys.contiguous()).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[places] == keys, self._values[places], otherwise)
