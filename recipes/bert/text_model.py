"""BertOfTexts: what a trained model says about texts: how well it predicts their words, and what they are like.

Shape suffixes: B texts or windows, T tokens, K masked tokens per window, D hidden size, V vocabulary.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainkit.data import WordPiece
from trainkit.errors import ConfigError
from trainkit_recipes.bert.data import IGNORED, Masked, Masking

if TYPE_CHECKING:
    from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

MASK_SHARE = 0.15
MIN_MASKED = 16
"""Tokens of a text that are predicted at least, where it has so many: of few, the mean is mostly chance."""
MOST_WINDOWS = 8
"""Of a text that are looked at, from its beginning."""

_MOST_ROUNDS = 6
_AT_ONCE = 32  # windows
_SEED = 20


class Window(NamedTuple):
    """A part of a text that is masked.

    Args:
        tokens: with [CLS] and [SEP].
        round: how many times it came before; others of its tokens are masked each time.
    """

    tokens: list[int]
    round: int


class BertOfTexts:
    """Computes losses and embeddings of texts, each a function of the text and the model alone.

    Args:
        recipe: with a trained model and its tokenizer.

    Raises:
        ConfigError: for a tokenizer that takes no text.
    """

    def __init__(self, recipe: "MaskedLanguageModelling") -> None:
        if not isinstance(recipe.tokenizer, WordPiece):
            raise ConfigError(
                f"{type(recipe.tokenizer).__name__} takes no text: give a run with a WordPiece vocabulary"
            )
        self._tokenizer, self._device = recipe.tokenizer, recipe.runtime.device
        self._module: Any = recipe.model.module
        self._room, self._hidden_size = recipe.architecture.max_length - 2, recipe.architecture.hidden_size
        self._masking = Masking(self._tokenizer, MASK_SHARE, torch.device("cpu"))

    def losses(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Computes the mean cross-entropy of masked tokens.

        A text is divided into windows of the longest sequence that the model takes. 15 % of the tokens of each are
        masked as in an evaluation, the same ones each time; of short texts several times, until 16 are.

        Args:
            texts: any.

        Returns:
            float64 [n], in nats a token; NaN of a text without tokens.
        """
        windows, owners = self._windows(texts, repeated=True)
        sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
        for places in _batches(windows):
            masked = [self._masked(windows[place]) for place in places]
            tokens_BT, attended_BT = self._padded([one.tokens_BT[0] for one in masked])
            chosen_BK = _stacked([one.chosen_BK[0] for one in masked], 0).to(self._device)
            labels_BK = _stacked([one.labels_BK[0] for one in masked], IGNORED).to(self._device)
            with self._evaluating():
                logits_BKV = self._module(tokens_BT, chosen_BK, attended_BT).float()
            losses_BK = F.cross_entropy(logits_BKV.transpose(1, 2), labels_BK, ignore_index=IGNORED, reduction="none")
            of = owners[places]
            np.add.at(sums, of, losses_BK.double().sum(dim=1).cpu().numpy())
            np.add.at(counts, of, (labels_BK != IGNORED).sum(dim=1).cpu().numpy())
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Computes the mean of the last layer's hidden states over the tokens of a text.

        Args:
            texts: any.

        Returns:
            float32 [n, D].
        """
        windows, owners = self._windows(texts, repeated=False)
        sums = np.zeros((len(texts), self._hidden_size))
        counts = np.zeros((len(texts), 1))
        for places in _batches(windows):
            tokens_BT, attended_BT = self._padded([torch.tensor(windows[place].tokens) for place in places])
            with self._evaluating():
                hidden_BTD = self._module.encoder(tokens_BT, attended_BT).double()
            seen_BT1 = attended_BT[..., None]
            np.add.at(sums, owners[places], (hidden_BTD * seen_BT1).sum(dim=1).cpu().numpy())
            np.add.at(counts, owners[places], seen_BT1.sum(dim=1).cpu().numpy())
        return (sums / np.maximum(counts, 1)).astype(np.float32)

    def _windows(self, texts: Sequence[str], repeated: bool) -> tuple[list[Window], NDArray[np.int64]]:
        """Windows of tokens with [CLS] and [SEP], and the text that each is of."""
        start, end = self._tokenizer.start, self._tokenizer.end
        windows: list[Window] = []
        owners: list[int] = []
        for owner, tokens in enumerate(self._tokenizer.encode_batch([*texts])):
            parts = [tokens[i : i + self._room] for i in range(0, len(tokens), self._room)][:MOST_WINDOWS]
            rounds = -(-MIN_MASKED // max(1, round(MASK_SHARE * sum(map(len, parts))))) if repeated else 1
            for number in range(min(rounds, _MOST_ROUNDS)):
                windows += [Window([start, *part, end], number) for part in parts]
                owners += [owner] * len(parts)
        return windows, np.array(owners, np.int64)

    def _masked(self, window: Window) -> Masked:
        tokens_1T = torch.tensor([window.tokens])
        name = hashlib.blake2b(np.array([_SEED, window.round, *window.tokens], "<i8").tobytes(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name, "little") >> 1)
        return self._masking(tokens_1T, torch.rand(1, self._masking.num_draws(tokens_1T.shape[1]), generator=generator))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._module.train(was_training)

    def _padded(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        lengths_B1 = torch.tensor([[len(row)] for row in rows])
        tokens_BT = _stacked(rows, self._tokenizer.pad)
        attended_BT = torch.arange(tokens_BT.shape[1]) < lengths_B1
        return tokens_BT.to(self._device), attended_BT.to(self._device)


def _batches(windows: Sequence[Window]) -> Iterator[NDArray[np.int64]]:
    """Yields the places of windows of similar lengths."""
    order = np.argsort([len(window.tokens) for window in windows], kind="stable")
    for start in range(0, len(order), _AT_ONCE):
        yield order[start : start + _AT_ONCE]


def _stacked(rows: list[Tensor], padding: int) -> Tensor:
    """int64 [n, the longest]."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
