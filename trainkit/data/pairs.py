"""SentencePairs: a data set of two segments of text each, of which the second one follows the first or not."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit import random as keyed
from trainkit.cache import cached
from trainkit.data.documents import pieces
from trainkit.data.growing_array import GrowingArray
from trainkit.data.mapped_files import MappedFiles
from trainkit.data.token_file import Tokens
from trainkit.data.windows import Windows
from trainkit.errors import DataError

NUM_SPECIAL = 3  # [CLS] A [SEP] B [SEP]
_FORMAT = 1  # of the index: increase it whenever the same tokens and settings would give another one
_STARTS, _LENGTHS, _FIRSTS, _LASTS = "starts.npy", "lengths.npy", "firsts.npy", "lasts.npy"


class SentencePairs(Windows):
    """Windows [CLS] A [SEP] B [SEP], for next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1).

    Documents are divided into pieces that fit into a window, and each piece is in two windows: once with what follows A
    in it as B, and once with the end of a piece of another document. For both, a token is drawn at which the piece is
    divided, and another piece; B is as long as both allow, and A ends where the end of the piece, so long, begins. So
    half of the pairs follow one another, and neither lengths nor where B ends say which. A pair is a function of the
    text, `sequence_length` and its index.

    Items are {"tokens": int64 [T], padded, "segments": int64 [T], 1 for B and its [SEP], "next_sentence_label": int64,
    0 where B follows A and 1 where not}, and `__getitems__(indices)` returns [n, T] and [n].

    Args:
        stream: of token numbers; a document ends at `end`.
        sequence_length: T, tokens in a window.
        start: the first token of a window.
        end: the token after A, and after B.
        pad: fills up a window.
        most: the maximum number of windows, an even choice by a hash; None: all.
        content: a hash of everything that decides the tokens.
        cache: the directory that the index is kept in.

    Raises:
        DataError: for text of a single document.
    """

    is_padded = True

    def __init__(
        self,
        stream: Tokens,
        sequence_length: int,
        *,
        start: int,
        end: int,
        pad: int,
        most: int | None = None,
        content: str,
        cache: Path,
    ) -> None:
        self.stream, self.sequence_length = stream, sequence_length
        self.start, self.end, self.pad, self.content = start, end, pad, content
        self._files = MappedFiles()
        name = f"pairs-{_FORMAT}-{content}-{stream.side}-{sequence_length}"
        self._index = cached(cache, name, lambda aside: _write_index(stream, sequence_length, end, aside))
        self._num_pieces = len(self._array(_STARTS))
        if self._num_pieces and self._array(_LASTS)[0] == self._num_pieces:
            remedy = "give more text, a paragraph or a row for each document"
            raise DataError(
                f"data.documents=pairs: the {stream.side} text is a single document, and pairs that do not follow one "
                f"another need two; {'raise data.held_out, or ' if stream.side == 'held_out' else ''}{remedy}"
            )
        super().__init__(2 * self._num_pieces, most)

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and of the windows, independent of where they are."""
        return f"{self.content}/{self.stream.name} pairs {self.sequence_length} {len(self)}"

    def prefetch(self, indices: NDArray[np.int64]) -> int:
        """Says which windows will be asked for next; returns at once, with the bytes that are still to come."""
        return self.stream.prefetch(*self._spans(self.numbers(indices.tolist())))

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        tokens = np.full((len(indices), self.sequence_length), self.pad, np.int64)
        segments, numbers = np.zeros_like(tokens), self.numbers(indices)
        parts = self.stream.read(*self._spans(numbers))
        rows = zip(tokens, segments, parts[0::2], parts[1::2], strict=True)
        for tokens_T, segments_T, first, second in rows:
            a = len(first)
            last = a + len(second) + 2
            tokens_T[[0, a + 1, last]] = self.start, self.end, self.end
            tokens_T[1 : a + 1] = first
            tokens_T[a + 2 : last] = second
            segments_T[a + 2 : last + 1] = 1
        return {
            "tokens": torch.from_numpy(tokens),
            "segments": torch.from_numpy(segments),
            "next_sentence_label": torch.from_numpy(numbers % 2),
        }

    def _spans(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns where A and B of each window begin in the stream, one after the other, and their lengths."""
        starts, lengths, firsts, lasts = (self._array(name) for name in (_STARTS, _LENGTHS, _FIRSTS, _LASTS))
        piece, is_other = numbers // 2, numbers % 2 == 1
        draws = keyed.words(keyed.key_of("sentence pairs"), torch.from_numpy(numbers), 2).numpy()
        length = lengths[piece].astype(np.int64)
        a = 1 + draws[:, 0] % (length - 1)
        num_others = self._num_pieces - (lasts[piece] - firsts[piece])
        other = (lasts[piece] + draws[:, 1] % num_others) % self._num_pieces
        b = np.minimum(length - a, lengths[other])
        source = np.where(is_other, other, piece)
        begin_a, begin_b = starts[piece] + length - b - a, starts[source] + lengths[source] - b
        return np.stack([begin_a, begin_b], 1).ravel(), np.stack([a, b], 1).ravel()

    def _array(self, name: str) -> NDArray[Any]:
        return self._files.array(self._index / name)


def _write_index(stream: Tokens, sequence_length: int, end: int, directory: Path) -> None:
    """Writes the pieces, in the memory of some documents: those of one are together."""
    kinds = {_STARTS: np.int64, _LENGTHS: np.int32, _FIRSTS: np.int64, _LASTS: np.int64}
    with ExitStack() as stack:
        arrays = {
            name: stack.enter_context(GrowingArray(directory / name, np.dtype(kind))) for name, kind in kinds.items()
        }
        before, num = -1, 0
        for ends in stream.ends_by_part(end):
            if not len(ends):
                continue
            starts, lengths = pieces(ends, sequence_length - NUM_SPECIAL, before)
            is_first = np.ones(len(starts), bool)  # of a document: an `end` is before it
            is_first[1:] = starts[1:] != starts[:-1] + lengths[:-1]
            document, can_be_divided = np.cumsum(is_first), lengths > 1
            starts, lengths, document = starts[can_be_divided], lengths[can_be_divided], document[can_be_divided]
            firsts, lasts = (num + np.searchsorted(document, document, side) for side in ("left", "right"))
            for name, values in ((_STARTS, starts), (_LENGTHS, lengths), (_FIRSTS, firsts), (_LASTS, lasts)):
                arrays[name].append(values)
            before, num = int(ends[-1]), num + len(starts)
