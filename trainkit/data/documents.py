"""PackedDocuments: a data set of windows that contain whole documents, each with its number."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit.cache import cached
from trainkit.data.mapped_files import MappedFiles
from trainkit.data.token_file import Tokens
from trainkit.data.windows import Windows

NO_DOCUMENT = -1
"""The number of a document in the entries of a window that are padding."""

_FORMAT = 1  # of the index: increase it whenever the same tokens and settings would give another one
_SHORTEST = 3  # [CLS], a token, [SEP]
_STARTS, _LENGTHS, _PIECES, _BOUNDS = "starts.npy", "lengths.npy", "pieces.npy", "bounds.npy"


class PackedDocuments(Windows):
    """Windows of documents that a model keeps apart.

    A document that does not fit into a window is divided into pieces, which are documents of their own from there on:
    each begins with `start` and ends with `end`, and its number is its place in the text. Short ones share a window.
    Items are {"tokens": int64 [T], "documents": int64 [T], the number of each token's document, -1 for padding}, and
    `__getitems__(indices)` returns [n, T] of both. Windows and numbers are a function of the tokens and of
    `sequence_length` alone; they are computed once, in `cache`.

    Args:
        stream: of token numbers; a document ends at `end`.
        sequence_length: tokens in a window, and at most in a document.
        start: the first token of each document.
        end: the last token of each document.
        pad: fills what the documents of a window leave.
        form: `apart`: as many documents in a window as fit, T = sequence_length; `padded`: one document in each, T is
            the longest of those that are asked for.
        most: the maximum number of windows, an even choice by a hash of their numbers; None: all.
        content: a hash of everything that decides the tokens.
        cache: the directory that the index is kept in.
    """

    def __init__(
        self,
        stream: Tokens,
        sequence_length: int,
        *,
        start: int,
        end: int,
        pad: int,
        form: Literal["apart", "padded"],
        most: int | None = None,
        content: str,
        cache: Path,
    ) -> None:
        self.stream, self.sequence_length, self.form = stream, sequence_length, form
        self.start, self.end, self.pad, self.content = start, end, pad, content
        self._files = MappedFiles()
        self._bounds: NDArray[np.int64] | None = None
        name = f"documents-{_FORMAT}-{content}-{stream.side}-{sequence_length}"
        self._index = cached(cache, name, lambda aside: _write_index(stream, sequence_length, end, aside))
        self.num_documents = len(self._array(_STARTS))
        super().__init__(self.num_documents if form == "padded" else len(self._array(_BOUNDS)) - 1, most)

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and of the windows, independent of where they are."""
        return f"{self.content}/{self.stream.name} {self.form} {self.sequence_length} {len(self)}"

    def document_of(self, numbers_B: NDArray[np.int64], places_BK: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the document of the text, [B, K], that places in pieces are of; of all places in one it is the same.

        Args:
            numbers_B: of the pieces.
            places_BK: in them.
        """
        if self._bounds is None:
            self._bounds = self.stream.ends(self.end)
        documents_B = np.searchsorted(self._bounds, self._array(_STARTS)[numbers_B])
        return np.broadcast_to(documents_B[:, None], places_BK.shape)

    def prefetch(self, indices: NDArray[np.int64]) -> int:
        """Says which windows will be asked for next; returns at once, with the bytes that are still to come."""
        return self.stream.prefetch(*self._spans(np.concatenate(self._by_window(indices.tolist()))))

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        tokens = np.full((len(indices), self.sequence_length), self.pad, np.int64)
        documents = np.full_like(tokens, NO_DOCUMENT)
        by_window = self._by_window(indices)
        parts = iter(self.stream.read(*self._spans(np.concatenate(by_window)))) if by_window else iter(())
        longest = 0
        for row, numbers in enumerate(by_window):
            first = 0
            for number in numbers.tolist():
                part = next(parts)
                last = first + len(part) + 1
                tokens[row, first] = self.start
                tokens[row, first + 1 : last] = part
                tokens[row, last] = self.end
                documents[row, first : last + 1] = number
                first = last + 1
            longest = max(longest, first)
        width = longest if self.form == "padded" else self.sequence_length
        return {"tokens": torch.from_numpy(tokens[:, :width]), "documents": torch.from_numpy(documents[:, :width])}

    def _spans(self, pieces_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where pieces begin in the stream, and their lengths there."""
        return self._array(_STARTS)[pieces_N], self._array(_LENGTHS)[pieces_N].astype(np.int64) - _SHORTEST + 1

    def _by_window(self, indices: list[int]) -> list[NDArray[np.int64]]:
        """The pieces of each window."""
        numbers = self.numbers(indices)
        if self.form == "padded":
            return list(numbers[:, None])
        bounds, found = self._array(_BOUNDS), self._array(_PIECES)
        return [found[bounds[window] : bounds[window + 1]] for window in numbers.tolist()]

    def _array(self, name: str) -> NDArray[Any]:
        return self._files.array(self._index / name)


def pack(lengths: NDArray[Any], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divides documents into windows: the longest first, each into the window that it fills best.

    Args:
        lengths: of the documents, each at most `capacity`.
        capacity: of a window.

    Returns:
        The documents by window, and where in that list each window begins; its end is the next one's beginning.

    Example:
        >>> documents, bounds = pack(np.array([2, 6, 5, 3]), 8)
        >>> [documents[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:])]
        [[0, 1], [2, 3]]
    """
    by_length = np.argsort(-lengths, kind="stable")
    window_of = np.empty(len(lengths), np.int64)
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]  # windows by the space that is left in them
    spaces, num_windows = 0, 0  # a bit for each space that some window has: finding the smallest is one operation
    for document, length in zip(by_length.tolist(), lengths[by_length].tolist(), strict=True):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            window = with_space[space].pop()
            spaces ^= 0 if with_space[space] else 1 << space
        else:
            space, window, num_windows = capacity, num_windows, num_windows + 1
        window_of[document] = window
        with_space[space - length].append(window)
        spaces |= 1 << (space - length)
    documents = np.argsort(window_of, kind="stable")  # in the order of the text within a window
    return documents, np.searchsorted(window_of[documents], np.arange(num_windows + 1))


def _write_index(stream: Tokens, sequence_length: int, end: int, directory: Path) -> None:
    starts, lengths = pieces(stream.ends(end), sequence_length - _SHORTEST + 1)
    lengths += _SHORTEST - 1
    documents, bounds = pack(lengths, sequence_length)
    for name, values in ((_STARTS, starts), (_LENGTHS, lengths), (_PIECES, documents), (_BOUNDS, bounds)):
        np.save(directory / name, values)


def pieces(ends: NDArray[np.int64], room: int, before: int = -1) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Divides the documents of a stream into pieces.

    Args:
        ends: where documents end in the stream, at a token that is in no piece.
        room: tokens in a piece at most.
        before: where the document before them ends; -1: there is none.

    Returns:
        Where each piece begins in the stream, and its length.
    """
    begins = np.concatenate([[before + 1], ends[:-1] + 1])[: len(ends)]
    counts = -(-(ends - begins) // room)  # pieces of each document; an empty one has none
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece in its document
    starts = np.repeat(begins, counts) + number * room
    lengths = np.minimum(np.repeat(ends, counts) - starts, room)
    return starts.astype(np.int64), lengths.astype(np.int32)
