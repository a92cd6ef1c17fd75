"""Masking: the tokens that the model must predict, and what it sees in their place."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trainkit.errors import ConfigError, DataError

IGNORED = -100  # label of an unused slot; cross_entropy's own default
LONGEST_WORD = 16
"""Tokens that are chosen together at most: a longer word is divided. It bounds the number of slots."""
Kind = Literal["tokens", "words", "spans"]
_P, _LONGEST_SPAN = 0.2, 10  # SpanBERT's: words in a span are geometric, up to 10, so that the mean is 3.8


@dataclass(frozen=True)
class Masked:
    """A masked batch.

    Samples with fewer tokens to predict than others leave slots unused, so shapes depend on the sequence length alone
    and nothing waits for the device.

    Args:
        tokens_BT: the tokens that the model sees.
        chosen_BK: positions to predict.
        labels_BK: the original tokens there, or IGNORED.
    """

    tokens_BT: Tensor
    chosen_BK: Tensor
    labels_BK: Tensor


def check_masking(share: float, kind: str) -> None:
    """Raises ConfigError unless 0 < share < 1 and the kind is one of `Kind`."""
    if not 0 < share < 1:
        raise ConfigError(f"recipe.mask_share={share}: must be above 0 and below 1; BERT's is 0.15")
    if kind not in get_args(Kind):
        raise ConfigError(f"recipe.masking={kind}: must be one of {', '.join(get_args(Kind))}")


class Masking:
    """BERT's masking: of the chosen tokens 80 % become [MASK], 10 % any token, and 10 % stay.

    Special tokens and padding are never chosen. Of a sample with n other tokens, round(share * n) are chosen, and at
    least one if it has any. All randomness is an argument.

    With `words` all tokens of a word are chosen or none, and with `spans` words that follow one another (SpanBERT,
    Joshi et al., arXiv 1907.10529): the words of a document are divided into spans of 1 to 10 words, whose number is
    geometric with p = 0.2. The number of chosen tokens is then round(share * n) in expectation, of few tokens perhaps
    none, and every word has the same probability. What becomes of the tokens is drawn for a whole word or span: one
    token of it that stays would tell the rest. (So does SpanBERT. BERT's own whole words are drawn token by token.)

    Args:
        tokenizer: with `vocab_size`, `mask` and `special_tokens` (numbers); for words and spans with `continuations`.
        share: the fraction of tokens to choose, in (0, 1).
        device: of the tokens.
        kind: what is chosen: `tokens`, `words` or `spans`.

    Raises:
        ConfigError: for a share out of range, or an unknown kind.
        DataError: for words or spans of a tokenizer that does not say which tokens continue a word.
    """

    def __init__(self, tokenizer: Any, share: float, device: torch.device, kind: Kind = "tokens") -> None:
        check_masking(share, kind)
        self.share, self.kind, self._mask = share, kind, tokenizer.mask
        is_special = _marked(tokenizer.vocab_size, tokenizer.special_tokens)
        self._ordinary = (~is_special).nonzero().squeeze(1).to(device)
        self._is_special = is_special.to(device)
        if kind != "tokens":
            self._is_continuation = _marked(tokenizer.vocab_size, _continuations(tokenizer, kind)).to(device)
            self._bounds = _geometric(device)

    def num_slots(self, length: int) -> int:
        """Returns K, the most tokens to predict in a sample of a length."""
        num_slots = max(1, round(self.share * length))
        return num_slots if self.kind == "tokens" else min(length, num_slots + LONGEST_WORD - 1)

    def num_draws(self, length: int) -> int:
        """Returns the uniform random numbers that a sample of a length needs."""
        others = {"tokens": 0, "words": 1, "spans": 1 + length}[self.kind]
        return length + 2 * self.num_slots(length) + others

    def __call__(self, tokens_BT: Tensor, uniform: Tensor) -> Masked:
        """Masks a batch.

        Args:
            tokens_BT: int64.
            uniform: [B, num_draws(T)], in [0, 1); the same numbers mask a sample in the same way in any batch.

        Returns:
            The masked batch.
        """
        length = tokens_BT.shape[1]
        num_slots = self.num_slots(length)
        scores_BT, action_BK, other_BK, units = uniform.split(
            (length, num_slots, num_slots, uniform.shape[1] - length - 2 * num_slots), dim=1
        )
        is_open_BT = ~self._is_special[tokens_BT]
        num_open_B1 = is_open_BT.sum(dim=1, keepdim=True)
        wanted_B1 = (self.share * num_open_B1.double()).round().clamp(min=1).minimum(num_open_B1)
        if self.kind == "tokens":
            # Stable, so that ties have the same order on every device.
            chosen_BK = scores_BT.masked_fill(~is_open_BT, 2.0).argsort(dim=1, stable=True)[:, :num_slots]
            is_used_BK = torch.arange(num_slots, device=tokens_BT.device) < wanted_B1
        else:
            chosen_BK, is_used_BK, first_BK = self._units(tokens_BT, is_open_BT, wanted_B1, scores_BT, units)
            action_BK = action_BK.gather(1, first_BK)

        original_BK = tokens_BT.gather(1, chosen_BK)
        random_BK = self._ordinary[(other_BK * len(self._ordinary)).long()]
        seen_BK = torch.where(action_BK < 0.9, random_BK, original_BK).masked_fill(action_BK < 0.8, self._mask)
        seen_BK = torch.where(is_used_BK, seen_BK, original_BK)
        labels_BK = original_BK.masked_fill(~is_used_BK, IGNORED)
        return Masked(tokens_BT.scatter(1, chosen_BK, seen_BK), chosen_BK, labels_BK)

    def _units(
        self, tokens_BT: Tensor, is_open_BT: Tensor, wanted_B1: Tensor, scores_BT: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Chooses words or spans.

        The tokens are laid on a circle, unit by unit in random order, and an arc of the wanted length begins at a
        random token. A word is chosen if its first token is in the arc: each has the probability wanted / n, whatever
        its length, so that the wanted number is the expected one.

        Returns:
            Slots of the arc, which are used, and the first slot of each one's unit, [B, K] each.
        """
        length = tokens_BT.shape[1]
        num_slots, places_T = self.num_slots(length), torch.arange(length, device=tokens_BT.device)
        words_BT, first_BT = self._firsts(tokens_BT, is_open_BT, uniform[:, 1:])
        # Stable: the tokens of a unit, whose scores are equal, stay together and in their order.
        order_BT = scores_BT.gather(1, first_BT).masked_fill(~is_open_BT, 2.0).argsort(dim=1, stable=True)
        slots_K, num_open_B1 = places_T[:num_slots], is_open_BT.sum(dim=1, keepdim=True)
        is_open_BK, round_B1 = slots_K < num_open_B1, num_open_B1.clamp(min=1)
        begin_B1 = (uniform[:, :1].double() * round_B1).long()
        chosen_BK = order_BT.gather(1, torch.where(is_open_BK, (begin_B1 + slots_K) % round_B1, slots_K))
        word_BK = (slots_K - chosen_BK + words_BT.gather(1, chosen_BK)) % round_B1  # the slots of their first tokens
        unit_BK = (slots_K - chosen_BK + first_BT.gather(1, chosen_BK)) % round_B1
        unit_BK = unit_BK.masked_fill(unit_BK >= num_slots, 0)  # the one that the beginning of the arc divides
        return chosen_BK, is_open_BK & (word_BK < wanted_B1), unit_BK

    def _firsts(self, tokens_BT: Tensor, is_open_BT: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the place of the first token of each token's word, and of its unit; any for special tokens."""
        length = tokens_BT.shape[1]
        places_T = torch.arange(length, device=tokens_BT.device)
        follows_BT = torch.zeros_like(is_open_BT)  # a token of the same text
        follows_BT[:, 1:] = is_open_BT[:, :-1]
        is_first_BT = is_open_BT & ~(self._is_continuation[tokens_BT] & follows_BT)
        into_BT = places_T - _latest(is_first_BT, places_T)
        is_first_BT = is_open_BT & (into_BT % LONGEST_WORD == 0)
        words_BT = _latest(is_first_BT, places_T)
        if self.kind == "words":
            return words_BT, words_BT
        words_in_span_BT = torch.bucketize(uniform.double().contiguous(), self._bounds, right=True) + 1
        begins_BT = (words_in_span_BT.cumsum(1) - words_in_span_BT).clamp(max=length - 1)  # numbers of words
        is_begin_BT = torch.zeros_like(is_open_BT).scatter(1, begins_BT, True)
        number_BT = is_first_BT.cumsum(1).sub(1).clamp(min=0)
        is_first_of_span_BT = is_first_BT & (is_begin_BT.gather(1, number_BT) | ~follows_BT)
        return words_BT, _latest(is_first_of_span_BT, places_T)


def _latest(is_here_BT: Tensor, places_T: Tensor) -> Tensor:
    """The last place up to each one that is marked; 0 before the first."""
    return torch.where(is_here_BT, places_T, 0).cummax(dim=1).values


def _marked(size: int, numbers: Any) -> Tensor:
    marked = torch.zeros(size, dtype=torch.bool)
    marked[list(numbers)] = True
    return marked


def _continuations(tokenizer: Any, kind: str) -> Any:
    numbers = getattr(tokenizer, "continuations", None)
    if numbers is None:
        raise DataError(
            f"recipe.masking={kind}: {type(tokenizer).__name__} has no `continuations`, the numbers of the tokens that "
            f"continue a word: add the attribute, or use recipe.masking=tokens"
        )
    return numbers


def _geometric(device: torch.device) -> Tensor:
    """Up to which uniform number a span has 1, 2 ... words, as multiples of 2^-24 as the numbers are."""
    weights = [_P * (1 - _P) ** (number - 1) for number in range(1, _LONGEST_SPAN + 1)]
    bounds = torch.tensor([*accumulate(weights)][:-1], dtype=torch.float64) / sum(weights)
    return ((bounds * 2**24).round() / 2**24).to(device)
