"""Filled: a sentence whose masked words a model has predicted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import DataError

_NUM_PREDICTIONS = 3


@dataclass(frozen=True)
class Filled:
    """A sentence with the predictions of a model.

    Args:
        text: the sentence with the most probable words.
        predictions: for each [MASK], (token, probability), the most probable first.
    """

    text: str
    predictions: list[list[tuple[str, float]]]

    def __str__(self) -> str:
        options = ("  ".join(f"{token} {100 * share:.0f} %" for token, share in mask) for mask in self.predictions)
        return f"{self.text}   ({' | '.join(options)})"


@torch.no_grad()
def fill(
    model: Callable[[Tensor, Tensor], Tensor], tokenizer: Any, sentence: str, *, max_length: int, device: torch.device
) -> Filled:
    """Predicts each [MASK] in `sentence`, with the others masked. Collective where the model is.

    Args:
        model: (tokens [1, T], masked positions [1, K]) -> logits [1, K, vocabulary].
        tokenizer: of the model.
        sentence: text with at least one [MASK].
        max_length: tokens that the model takes.
        device: of the model.

    Returns:
        The sentence and the predictions.

    Raises:
        DataError: for a sentence without [MASK], or one that is too long.
    """
    tokens = [tokenizer.start, *tokenizer.encode(sentence), tokenizer.end]
    positions = [position for position, token in enumerate(tokens) if token == tokenizer.mask]
    if not positions:
        raise DataError(f"there is no [MASK] in {sentence!r}; write [MASK] where a word is to be predicted")
    if len(tokens) > max_length:
        raise DataError(
            f"{len(tokens)} tokens in {sentence[:40]!r} ..., and the model takes at most {max_length}; shorten it"
        )
    logits_1KV = model(torch.tensor([tokens], device=device), torch.tensor([positions], device=device))
    shares_KN, best_KN = logits_1KV[0].float().softmax(dim=-1).topk(_NUM_PREDICTIONS, dim=-1)
    for position, best_N in zip(positions, best_KN.tolist(), strict=True):
        tokens[position] = best_N[0]
    return Filled(
        tokenizer.decode(tokens[1:-1]),
        [
            [(tokenizer.token(token), share) for token, share in zip(best_N, shares_N, strict=True)]
            for best_N, shares_N in zip(best_KN.tolist(), shares_KN.tolist(), strict=True)
        ],
    )
