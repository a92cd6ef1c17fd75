"""Masking: the tokens that the model must predict, and what it sees in their place."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import ConfigError

IGNORED = -100  # label of an unused slot; cross_entropy's own default


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


def check_share(share: float) -> None:
    """Raises ConfigError unless 0 < share < 1."""
    if not 0 < share < 1:
        raise ConfigError(f"recipe.mask_share={share}: must be above 0 and below 1; BERT's is 0.15")


class Masking:
    """BERT's masking: of the chosen tokens 80 % become [MASK], 10 % any token, and 10 % stay.

    Special tokens and padding are never chosen. Of a sample with n other tokens, round(share * n) are chosen, and at
    least one if it has any. All randomness is an argument.

    Args:
        tokenizer: with `vocab_size`, `mask` and `special_tokens` (numbers).
        share: the fraction of tokens to choose, in (0, 1).
        device: of the tokens.

    Raises:
        ConfigError: for a share out of range.
    """

    def __init__(self, tokenizer: Any, share: float, device: torch.device) -> None:
        check_share(share)
        self.share, self._mask = share, tokenizer.mask
        is_special = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
        is_special[list(tokenizer.special_tokens)] = True
        self._ordinary = (~is_special).nonzero().squeeze(1).to(device)
        self._is_special = is_special.to(device)

    def num_slots(self, length: int) -> int:
        """Returns K, the most tokens to predict in a sample of a length."""
        return max(1, round(self.share * length))

    def num_draws(self, length: int) -> int:
        """Returns the uniform random numbers that a sample of a length needs."""
        return length + 2 * self.num_slots(length)

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
        scores_BT, action_BK, other_BK = uniform.split((length, num_slots, num_slots), dim=1)
        is_open_BT = ~self._is_special[tokens_BT]
        # Stable, so that ties have the same order on every device.
        chosen_BK = scores_BT.masked_fill(~is_open_BT, 2.0).argsort(dim=1, stable=True)[:, :num_slots]
        num_open_B1 = is_open_BT.sum(dim=1, keepdim=True)
        wanted_B1 = (self.share * num_open_B1.double()).round().clamp(min=1).minimum(num_open_B1)
        is_used_BK = torch.arange(num_slots, device=tokens_BT.device) < wanted_B1

        original_BK = tokens_BT.gather(1, chosen_BK)
        random_BK = self._ordinary[(other_BK * len(self._ordinary)).long()]
        seen_BK = torch.where(action_BK < 0.9, random_BK, original_BK).masked_fill(action_BK < 0.8, self._mask)
        seen_BK = torch.where(is_used_BK, seen_BK, original_BK)
        labels_BK = original_BK.masked_fill(~is_used_BK, IGNORED)
        return Masked(tokens_BT.scatter(1, chosen_BK, seen_BK), chosen_BK, labels_BK)
