"""Tokens: a long stream of token numbers, in one file or elsewhere, of which windows are read."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.mapped_files import MappedFiles

_SCANNED_AT_ONCE = 1 << 22  # tokens


class Tokens(ABC):
    """A stream of token numbers, documents one after the other; picklable.

    Attributes: `name`, such as train.bin; `dtype` of a token number; `num_tokens`.
    """

    name: str
    dtype: np.dtype[Any]
    num_tokens: int

    @property
    def side(self) -> str:
        """Which split it is of, `train` or `held_out`."""
        return self.name.partition(".")[0]

    @abstractmethod
    def read(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Reads spans of the stream, all at once.

        Args:
            starts: of the spans.
            lengths: of the spans, which lie within the stream.
        """

    @abstractmethod
    def ends_by_part(self, end: int) -> Iterator[NDArray[np.int64]]:
        """Yields the places at which documents end, some at a time.

        Args:
            end: the token after each document.
        """

    def ends(self, end: int) -> NDArray[np.int64]:
        """Returns the places at which documents end, all at once; see `ends_by_part`."""
        return np.concatenate([np.empty(0, np.int64), *self.ends_by_part(end)])

    def windows(self, starts: NDArray[np.int64], length: int, pad: int) -> NDArray[np.int64]:
        """Reads windows of one length, [N, length]; what lies beyond the end of the stream is `pad`."""
        lengths = np.minimum(length, self.num_tokens - starts)
        found = np.full((len(starts), length), pad, np.int64)
        for row, tokens in zip(found, self.read(starts, lengths), strict=True):
            row[: len(tokens)] = tokens
        return found

    def prefetch(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
        """Says which spans will be read next; returns at once, with the bytes that are still to come: of a file, 0."""
        return 0

    def beginnings(self) -> NDArray[np.int64] | None:
        """Returns where in the stream the shards begin, and its end; None: it is in one piece."""
        return None


class TokenFile(Tokens):
    """A stream in one file, memory-mapped when it is first read.

    Args:
        path: of the file.
        dtype: of a token number.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.name, self.dtype = path, path.name, dtype
        self.num_tokens = path.stat().st_size // dtype.itemsize
        self._files = MappedFiles()

    def read(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Returns views of the file."""
        stream = self._stream()
        return [stream[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]

    def windows(self, starts: NDArray[np.int64], length: int, pad: int) -> NDArray[np.int64]:
        """Reads all windows by one indexing."""
        places = starts[:, None] + np.arange(length)
        found: NDArray[np.int64] = self._stream()[np.minimum(places, self.num_tokens - 1)].astype(np.int64)
        found[places >= self.num_tokens] = pad
        return found

    def ends_by_part(self, end: int) -> Iterator[NDArray[np.int64]]:
        """Looks for `end` in the whole file."""
        stream = self._stream()
        for first in range(0, self.num_tokens, _SCANNED_AT_ONCE):
            yield np.flatnonzero(stream[first : first + _SCANNED_AT_ONCE] == end) + first

    def _stream(self) -> NDArray[Any]:
        if not self.num_tokens:  # an empty file cannot be mapped
            return np.empty(0, self.dtype)
        return np.asarray(self._files.array(self.path, self.dtype))
