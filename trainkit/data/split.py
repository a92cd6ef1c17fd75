"""Split: which documents are trained on, held out or dropped, decided by their content."""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainkit.data.sides import LeftOut
from trainkit.errors import DataError

DROPPED, TRAIN, HELD_OUT = 0, 1, 2


@dataclass(frozen=True)
class Split:
    """The side of every document.

    Args:
        side: uint8 [num_documents], in reading order: DROPPED (a duplicate), TRAIN or HELD_OUT.
        samples: bool [num_documents], an even choice of the training documents, of about the requested number of
            characters.
    """

    side: NDArray[np.uint8]
    samples: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """Writes the split to a file, for `load`."""
        with path.open("wb") as file:
            np.savez(file, side=self.side, samples=self.samples)

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Reads the split from a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["side"], arrays["samples"])

    def count(self, side: int) -> int:
        """Returns the number of documents on `side`."""
        return int((self.side == side).sum())


def split_documents(
    documents: Iterable[tuple[bool, str]], fraction: float, sample_chars: int, left_out: LeftOut | None = None
) -> Split:
    """Splits documents by a hash of their text without white space, so the same text is never on both sides.

    Takes 9 bytes of memory per document, and about 30 while it sorts.

    Args:
        documents: (whether it belongs to the source's own held-out split, text). Where none does, a document is held
            out if its hash is among the lowest; adding documents later moves none from one side to the other.
        fraction: of the documents to hold out.
        sample_chars: the number of characters in `Split.samples`, about.
        left_out: training documents that are dropped, by `content_key`.

    Returns:
        The side of every document.

    Raises:
        DataError: for fewer than two different documents, and where none is left to train on.
    """
    hashes, own, num_chars = array("Q"), array("B"), 0
    for is_own, text in documents:
        hashes.append(content_key(text))
        own.append(is_own)
        num_chars += len(text)
    keys = np.frombuffer(hashes, np.uint64) if hashes else np.empty(0, np.uint64)
    return split_keys(keys, np.frombuffer(own, np.bool_), num_chars, fraction, sample_chars, left_out)


def split_keys(
    keys: NDArray[np.uint64],
    own: NDArray[np.bool_],
    num_chars: int,
    fraction: float,
    sample_chars: int,
    left_out: LeftOut | None = None,
) -> Split:
    """Splits documents as `split_documents` does, of which only the hashes are known.

    Args:
        keys: uint64 [num_documents], of `content_key`.
        own: bool [num_documents], whether each belongs to the source's own held-out split.
        num_chars: of all documents together.
        fraction: as of `split_documents`, and so are the others.
        sample_chars: see there.
        left_out: see there.

    Returns:
        The side of every document.

    Raises:
        DataError: as `split_documents`.
    """
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    if first.sum() < 2:
        raise DataError(
            f"data.path holds {int(first.sum())} different documents, too few to hold one out; add more text "
            f"(blank lines separate the paragraphs of a .txt file)"
        )
    is_held_out = own if own.any() else lowest_fraction(keys, fraction)
    side = np.where(first, np.where(is_held_out, HELD_OUT, TRAIN), DROPPED).astype(np.uint8)
    if left_out is not None and len(left_out):
        side[(side == TRAIN) & left_out.covers(keys)] = DROPPED
        if not (side == TRAIN).any():
            raise DataError("on_leak=drop leaves no document to train on: set on_leak=warn, or give other text")
    if not (side == TRAIN).any():
        raise DataError("data.path: every document of its train split is also in its held-out split; remove them there")
    # The low bits choose the sample, because the high ones chose the split.
    chosen = (keys & np.uint64(0xFFFFFFFF)) < min(1.0, sample_chars / max(1, num_chars)) * 2.0**32
    return Split(side, (side == TRAIN) & (chosen | (not (chosen & (side == TRAIN)).any())))


def lowest_fraction(keys: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Chooses what is held out: the keys in the lowest `fraction` of all hashes.

    Equal keys are on one side, the side of a key does not depend on the others, and neither side is empty.

    Args:
        keys: uint64 [n], hashes of content, with at least two different ones.
        fraction: to hold out, above 0 and below 1.

    Returns:
        bool [n], True for what is held out.
    """
    lowest = (keys >> np.uint64(32)) < fraction * 2.0**32
    # A small data set may have no such key, or no other: each side must have at least one.
    if not lowest.any():
        is_nearest: NDArray[np.bool_] = keys == keys.min()
        return is_nearest
    return keys != keys.max() if lowest.all() else lowest


def content_key(text: str) -> int:
    """Returns a hash of a document's text without white space, 64 bits: that of the same text is the same."""
    return int.from_bytes(
        hashlib.blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=8).digest(), "little"
    )
