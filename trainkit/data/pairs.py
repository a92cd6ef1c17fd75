"""SentencePairs: a data set of two segments of text each, of which the second one follows the first or not."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit import random as keyed
from trainkit.cache import cached
from trainkit.data.documents import pieces
from trainkit.data.mapped_files import MappedFiles
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
        path: the file of token numbers; a document ends at `end`.
        dtype: of a token number.
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
        path: Path,
        dtype: np.dtype[Any],
        sequence_length: int,
        *,
        start: int,
        end: int,
        pad: int,
        most: int | None = None,
        content: str,
        cache: Path,
    ) -> None:
        self.path, self.dtype, self.sequence_length = path, dtype, sequence_length
        self.start, self.end, self.pad, self.content = start, end, pad, content
        self._files = MappedFiles()
        name = f"pairs-{_FORMAT}-{content}-{path.stem}-{sequence_length}"
        self._index = cached(cache, name, lambda aside: _write_index(path, dtype, sequence_length, end, aside))
        self._num_pieces = len(self._array(_STARTS))
        if self._num_pieces and self._array(_LASTS)[0] == self._num_pieces:
            remedy = "give more text, a paragraph or a row for each document"
            raise DataError(
                f"data.documents=pairs: the {path.stem} text is a single document, and pairs that do not follow one "
                f"another need two; {'raise data.held_out, or ' if path.stem == 'held_out' else ''}{remedy}"
            )
        super().__init__(2 * self._num_pieces, most)

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and of the windows, independent of where the file is."""
        return f"{self.content}/{self.path.name} pairs {self.sequence_length} {len(self)}"

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        tokens = np.full((len(indices), self.sequence_length), self.pad, np.int64)
        segments = np.zeros_like(tokens)
        stream, numbers = self._files.array(self.path, self.dtype), self.numbers(indices)
        rows = zip(tokens, segments, *self._parts(numbers), strict=True)
        for tokens_T, segments_T, begin_a, a, begin_b, b in rows:
            last = a + b + 2
            tokens_T[[0, a + 1, last]] = self.start, self.end, self.end
            tokens_T[1 : a + 1] = stream[begin_a : begin_a + a]
            tokens_T[a + 2 : last] = stream[begin_b : begin_b + b]
            segments_T[a + 2 : last + 1] = 1
        return {
            "tokens": torch.from_numpy(tokens),
            "segments": torch.from_numpy(segments),
            "next_sentence_label": torch.from_numpy(numbers % 2),
        }

    def _parts(self, numbers: NDArray[np.int64]) -> tuple[list[int], ...]:
        """Returns where A and B of each window begin in the stream, and their lengths: begin_a, a, begin_b, b."""
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
        return begin_a.tolist(), a.tolist(), begin_b.tolist(), b.tolist()

    def _array(self, name: str) -> NDArray[Any]:
        return self._files.array(self._index / name)


def _write_index(path: Path, dtype: np.dtype[Any], sequence_length: int, end: int, directory: Path) -> None:
    starts, lengths = pieces(path, dtype, sequence_length - NUM_SPECIAL, end)
    is_first = np.ones(len(starts), bool)  # of a document: an `end` is before it
    is_first[1:] = starts[1:] != starts[:-1] + lengths[:-1]
    document, can_be_divided = np.cumsum(is_first), lengths > 1
    starts, lengths, document = starts[can_be_divided], lengths[can_be_divided], document[can_be_divided]
    firsts, lasts = (np.searchsorted(document, document, side) for side in ("left", "right"))
    for name, values in ((_STARTS, starts), (_LENGTHS, lengths), (_FIRSTS, firsts), (_LASTS, lasts)):
        np.save(directory / name, values)
