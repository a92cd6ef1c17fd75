"""Samples: texts as token numbers, which are padded to the longest of a batch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit.data import Example, WordPiece
from trainkit.errors import DataError
from trainkit_recipes.bert.data import IGNORED


@dataclass(frozen=True)
class Tokens:
    """The tokens of one text, or of two.

    Args:
        numbers: int32 [length], [CLS] text [SEP], or [CLS] text [SEP] pair [SEP].
        first: how many of them are of segment 0.
    """

    numbers: NDArray[np.int32]
    first: int


class Encoder:
    """Converts texts to tokens, and counts those that were cut.

    Args:
        tokenizer: of the model.
        max_length: tokens of a text, [CLS] and [SEP] included.
    """

    def __init__(self, tokenizer: WordPiece, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._counts: dict[str, list[int]] = {}

    def __call__(self, examples: Sequence[Example]) -> list[Tokens]:
        """Encodes the texts of examples; of a pair that is too long, the longer text is cut first.

        Raises:
            DataError: for a text that contains no token.
        """
        first = self.pieces(examples, [text_of(example.text) for example in examples])
        if not is_paired(examples):
            return [self.join(pieces) for pieces in first]
        second = self.pieces(examples, [text_of(example.pair) for example in examples])
        return [self.join(*both) for both in zip(first, second, strict=True)]

    def pieces(self, examples: Sequence[Example], texts: list[str]) -> list[list[int]]:
        """Encodes one text of each example, uncut and without special tokens. Raises DataError as `__call__`."""
        encoded = self.tokenizer.encode_batch(texts)
        for example, pieces in zip(examples, encoded, strict=True):
            require_tokens(example, pieces)
        return encoded

    def join(self, text: Sequence[int], pair: Sequence[int] | None = None) -> Tokens:
        """Adds the special tokens to one text or two, cut to the maximum length."""
        start, end = self.tokenizer.start, self.tokenizer.end
        room = self.max_length - (2 if pair is None else 3)
        kept = min(len(text), max(room - len(pair or ()), (room + 1) // 2)) if pair is not None else room
        others = [] if pair is None else [*pair[: room - kept], end]
        self.count(f"texts cut to recipe.max_length={self.max_length}", len(text) + len(pair or ()) > room)
        first = [start, *text[:kept], end]
        return Tokens(np.array([*first, *others], np.int32), len(first))

    def count(self, what: str, is_so: bool) -> None:
        """Counts one more of what `facts` tells the user, such as a text, and whether it happened to this one."""
        counts = self._counts.setdefault(what, [0, 0])
        counts[0] += is_so
        counts[1] += 1

    def facts(self) -> dict[str, int | str]:
        """Returns how many texts were cut, and what else was counted and happened, as facts of the data."""
        return {what: f"{num:,} of {total:,}" for what, (num, total) in self._counts.items() if num}


def require_tokens(example: Example, pieces: Sequence[int], what: str = "text") -> None:
    """Raises DataError for an example whose text, or what else it is, contains no token."""
    if not pieces:
        raise DataError(f"{example.where}: the {what} has no token of the vocabulary; remove the row")


def text_of(text: Any) -> str:
    """Returns the text of a string or of a list of words."""
    return " ".join(text) if isinstance(text, list) else text


def is_paired(examples: Sequence[Example]) -> bool:
    """Returns whether the examples have a second text."""
    return any(example.pair is not None for example in examples)


class Samples:
    """Encoded examples; a batch of them is padded to its longest, and has these columns.

    `tokens` is int64 [B, T], with `lengths` [B] and, of pairs, `firsts` [B], how many tokens are of segment 0;
    `other_tokens`, `other_lengths` of a second text that is encoded by itself; and the targets.

    Args:
        texts: the tokens of each sample.
        pad: the number of [PAD].
        targets: by name, a tensor [n, ...], or a list of numbers for each token of each sample.
        others: the tokens of a second text of each sample.
        is_paired: whether `texts` are pairs.
        notes: what the task needs to know of the samples.
    """

    def __init__(
        self,
        texts: Sequence[Tokens],
        pad: int,
        targets: Mapping[str, Tensor | list[list[int]]],
        *,
        others: Sequence[Tokens] | None = None,
        is_paired: bool = False,
        notes: Any = None,
    ) -> None:
        self.texts, self.others, self.targets, self.is_paired, self.notes = texts, others, targets, is_paired, notes
        self._pad = pad

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[0] for name, column in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Returns a batch; PyTorch's protocol for fetching many samples at once."""
        batch = _padded([self.texts[index].numbers for index in indices], self._pad)
        if self.is_paired:
            batch["firsts"] = torch.tensor([self.texts[index].first for index in indices])
        if self.others is not None:
            others = _padded([self.others[index].numbers for index in indices], self._pad)
            batch |= {f"other_{name}": column for name, column in others.items()}
        for name, target in self.targets.items():
            if isinstance(target, Tensor):
                batch[name] = target[indices]
            else:
                batch[name] = _padded([np.array(target[index]) for index in indices], IGNORED)["tokens"]
        return batch

    @property
    def fingerprint(self) -> str:
        """Hash of all tokens and targets."""
        digest = hashlib.blake2b(digest_size=16)
        for tokens in (*self.texts, *(self.others or ())):
            digest.update(f"{len(tokens.numbers)} {tokens.first}:".encode() + tokens.numbers.tobytes())
        for name, target in self.targets.items():
            content = target.numpy().tobytes() if isinstance(target, Tensor) else repr(target).encode()
            digest.update(name.encode() + content)
        return digest.hexdigest()


def _padded(rows: list[NDArray[Any]], filler: int) -> dict[str, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.full((len(rows), int(lengths.max())), filler)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.from_numpy(row)
    return {"tokens": padded, "lengths": lengths}
