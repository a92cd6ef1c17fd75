"""Which documents are trained on, which are held out and which are dropped: decided by what they say."""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainkit.errors import DataError

DROPPED, TRAIN, HELD_OUT = 0, 1, 2


@dataclass(frozen=True)
class Split:
    """side: uint8 [num_documents], in reading order: DROPPED (a duplicate), TRAIN or HELD_OUT.
    samples: bool [num_documents], an even choice of the training documents, of about the number of characters asked.
    """

    side: NDArray[np.uint8]
    samples: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """Writes it, for `load`."""
        with path.open("wb") as file:
            np.savez(file, side=self.side, samples=self.samples)

    @classmethod
    def load(cls, path: Path) -> "Split":
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["side"], arrays["samples"])

    def count(self, side: int) -> int:
        """How many documents are on `side`."""
        return int((self.side == side).sum())


def split_documents(documents: Iterable[tuple[bool, str]], share: float, sample_chars: int) -> Split:
    """Splits by a hash of each document's text, spaces aside, so the same text is never on both sides.

    documents: (is of the source's own held-out split, text). Where none is, a document is held out if its hash is
        among the lowest `share`; adding documents later moves none from one side to the other.
    sample_chars: the size of `samples`.
    Holds 9 bytes a document, and some 30 while it sorts.
    """
    hashes, own, num_chars = array("Q"), array("B"), 0
    for is_own, text in documents:
        hashes.append(_hash(text))
        own.append(is_own)
        num_chars += len(text)
    keys = np.frombuffer(hashes, np.uint64) if hashes else np.empty(0, np.uint64)
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    if first.sum() < 2:
        raise DataError(
            f"data.path holds {int(first.sum())} different documents, too few to hold one out; add more text "
            f"(paragraphs of a .txt file are set apart by blank lines)"
        )
    has_own = np.frombuffer(own, np.bool_)
    is_held_out = has_own if has_own.any() else lowest_share(keys, share)
    side = np.where(first, np.where(is_held_out, HELD_OUT, TRAIN), DROPPED).astype(np.uint8)
    if not (side == TRAIN).any():
        raise DataError("data.path: every document of its train split is also in its held-out split; remove them there")
    # The low bits choose the sample: the high ones have chosen the split.
    chosen = (keys & np.uint64(0xFFFFFFFF)) < min(1.0, sample_chars / max(1, num_chars)) * 2.0**32
    return Split(side, (side == TRAIN) & (chosen | (not (chosen & (side == TRAIN)).any())))


def lowest_share(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which of `keys` (hashes of content, at least two different ones) are held out: the lowest `share` of all hashes.

    Equal keys fall on one side, a key's side does not depend on the others, and neither side is empty.
    """
    lowest = (keys >> np.uint64(32)) < share * 2.0**32
    # A small data set may have no such key, or no other: at least one must be on either side.
    if not lowest.any():
        is_nearest: NDArray[np.bool_] = keys == keys.min()
        return is_nearest
    return keys != keys.max() if lowest.all() else lowest


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "little")
