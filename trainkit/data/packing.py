"""PackedTokens: a data set of windows over one long stream of tokens on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit.data.partial_build import reopen
from trainkit.data.token_file import Tokens
from trainkit.data.windows import Windows


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Returns the smallest unsigned dtype that holds every token number below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenStream:
    """Appends documents to a file of token numbers.

    Args:
        path: the file.
        dtype: of a token number.
        end: the token appended to each document.
        done: (documents, tokens) already in the file; what follows them is dropped.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], end: int, done: tuple[int, int] = (0, 0)) -> None:
        self._dtype, self._end = dtype, end
        self.num_documents, self.num_tokens = done
        self.file = reopen(path, self.num_tokens * dtype.itemsize)

    def append(self, tokens: list[int]) -> None:
        """Appends the tokens of one document."""
        self.file.write(np.asarray([*tokens, self._end], self._dtype).tobytes())
        self.num_documents += 1
        self.num_tokens += len(tokens) + 1

    def close(self) -> None:
        """Flushes and closes the file."""
        self.file.close()


class PackedTokens(Windows):
    """Windows over a stream of tokens: `start`, then the next sequence_length - 1 tokens.

    Documents follow one another and end with [SEP], so a window may contain several and no token is lost to padding.
    Items are {"tokens": int64 [sequence_length]}; `__getitems__(indices)` returns {"tokens": int64 [n,
    sequence_length]} at once.

    Args:
        stream: of token numbers.
        sequence_length: tokens in a window.
        start: the first token of each window.
        pad: fills an incomplete last window.
        drop_last: drops an incomplete last window instead.
        most: the maximum number of windows, of which a longer stream gives an even choice by a hash of their numbers;
            None: all.
        content: a hash of everything that decides the tokens.
        end: the token after each document, for `document_of`; None: it is not known.
    """

    def __init__(
        self,
        stream: Tokens,
        sequence_length: int,
        *,
        start: int,
        pad: int,
        drop_last: bool = False,
        most: int | None = None,
        content: str,
        end: int | None = None,
    ) -> None:
        self.content, self.end = content, end
        self.stream, self.sequence_length, self.start, self.pad = stream, sequence_length, start, pad
        whole, rest = divmod(stream.num_tokens, sequence_length - 1)
        super().__init__(whole if drop_last and whole else whole + (rest > 0), most)
        self.is_padded = len(self) > 0 and int(self.numbers([len(self) - 1])[0]) >= whole
        self._bounds: NDArray[np.int64] | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens and of the windows, independent of where they are."""
        return f"{self.content}/{self.stream.name} {self.sequence_length} {len(self)}"

    def document_of(self, indices_B: NDArray[np.int64], places_BK: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the document of the text, [B, K], that places in windows are of.

        Args:
            indices_B: of the windows.
            places_BK: in them, 1 or more: the first token is of none.
        """
        assert self.end is not None, "made without the token that ends documents"
        if self._bounds is None:
            self._bounds = self.stream.ends(self.end)
        in_stream_BK = self.numbers(indices_B.tolist())[:, None] * (self.sequence_length - 1) + places_BK - 1
        return np.searchsorted(self._bounds, in_stream_BK)

    @property
    def block_sizes(self) -> NDArray[np.int64] | None:
        """int64 [shards], the numbers of windows that begin in each shard; None: they do not lie by shards."""
        beginnings = self.stream.beginnings()
        if beginnings is None or self.is_chosen:
            return None
        firsts = np.minimum(-(-beginnings // (self.sequence_length - 1)), len(self))
        firsts[-1] = len(self)
        return np.diff(firsts)

    def prefetch(self, indices: NDArray[np.int64]) -> int:
        """Says which windows will be asked for next; returns at once, with the bytes that are still to come."""
        starts = self._starts(indices.tolist())
        return self.stream.prefetch(starts, np.minimum(self.sequence_length - 1, self.stream.num_tokens - starts))

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        tokens = np.full((len(indices), self.sequence_length), self.start, np.int64)
        tokens[:, 1:] = self.stream.windows(self._starts(indices), self.sequence_length - 1, self.pad)
        return {"tokens": torch.from_numpy(tokens)}

    def _starts(self, indices: list[int]) -> NDArray[np.int64]:
        return self.numbers(indices) * (self.sequence_length - 1)
