"""ShardedTokens: a stream of token numbers in shards."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.shards.index import ShardIndex
from trainkit.data.sides import Entry, Sides
from trainkit.data.split import content_key
from trainkit.data.token_file import Tokens
from trainkit.data.tokenizer import WordPiece

_READ_AT_ONCE = 1024  # documents
_ENDS_AT_ONCE = 1 << 20


class ShardedTokens(Tokens):
    """The stream of one side; windows go across the borders of shards, so the size of these does not matter.

    Args:
        index: of the shards.
        side: `train` or `held_out`.
    """

    def __init__(self, index: ShardIndex, side: str) -> None:
        self._tokens, self._ends = index.array(side), index.array(f"{side}.ends")
        self.name = f"{side}.bin"  # as that of a file: the samples are the same, and so is their fingerprint
        self.dtype, self.num_tokens = np.dtype(self._tokens.layout.dtype), len(self._tokens)

    def read(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Reads spans, those from afar in one request a shard."""
        return self._tokens.read(starts, lengths)

    def prefetch(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
        """Says which spans will be read next; returns bytes that are still to come."""
        return self._tokens.prefetch(starts, lengths)

    def ends_by_part(self, end: int) -> Iterator[NDArray[np.int64]]:
        """Reads where documents end, which is kept with the shards."""
        for first in range(0, len(self._ends), _ENDS_AT_ONCE):
            count = min(_ENDS_AT_ONCE, len(self._ends) - first)
            yield self._ends.read(np.array([first]), np.array([count]))[0].astype(np.int64)

    def beginnings(self) -> NDArray[np.int64]:
        """Returns where in the stream the shards begin, and its end."""
        return self._tokens.layout.beginnings()


def text_sides(index: ShardIndex, tokenizer: WordPiece) -> Sides | None:
    """Returns the documents of both sides, as their tokens say them, for an audit.

    Args:
        index: of the shards.
        tokenizer: that made the tokens.

    Returns:
        The sides; None for shards that are not on this machine: an audit would download all of them.
    """
    if index.folder.local_path() is None:
        return None
    return Sides(
        train=lambda: _entries(index, "train", tokenizer),
        held_out=lambda: _entries(index, "held_out", tokenizer),
        fingerprint=f"shards {index.content}",
        num_train=len(index.array("train.ends")),
        num_held_out=len(index.array("held_out.ends")),
    )


def _entries(index: ShardIndex, side: str, tokenizer: WordPiece) -> Iterator[Entry]:
    stream, ends = ShardedTokens(index, side), index.array(f"{side}.ends")
    begin = 0
    for first in range(0, len(ends), _READ_AT_ONCE):
        count = min(_READ_AT_ONCE, len(ends) - first)
        stops = ends.read(np.array([first]), np.array([count]))[0]
        starts = np.append(begin, stops[:-1] + 1)
        begin = int(stops[-1]) + 1
        for number, tokens in enumerate(stream.read(starts, stops - starts), start=first + 1):
            text = tokenizer.decode(tokens.tolist())
            yield Entry(content_key(text), f"{side} shards, document {number}", text=text)
