"""Sample: documents of a corpus of any size, chosen by a hash of their content, so that the same are chosen again."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainkit.data.curate.documents import Document

LONGEST = 1 << 18
"""Characters of a document that are kept."""


class Sample:
    """An even choice that fits into memory; copies of a document are in it together or not at all.

    Args:
        most_chars: of all texts together, about.
    """

    def __init__(self, most_chars: int) -> None:
        self._most = most_chars
        self._low: list[int] = []
        self._limit = 1 << 32  # the low bits of a key choose: the high ones choose what a run holds out
        self._num_chars = 0
        self._documents: list[Document] = []
        self.num_seen = 0

    @property
    def documents(self) -> list[Document]:
        """What was chosen, in the order of the source."""
        return self._documents

    @property
    def num_chars(self) -> int:
        """Characters that are kept."""
        return self._num_chars

    @property
    def is_all(self) -> bool:
        """Whether every document is in it."""
        return len(self._documents) == self.num_seen

    def add(self, documents: Sequence[Document], keys: NDArray[np.uint64]) -> None:
        """Adds those that are chosen.

        Args:
            documents: of the source, the next ones.
            keys: of their content.
        """
        self.num_seen += len(documents)
        for document, low in zip(documents, (keys & np.uint64(0xFFFFFFFF)).tolist(), strict=True):
            if low < self._limit:
                self._documents.append(document._replace(text=document.text[:LONGEST]))
                self._low.append(low)
                self._num_chars += len(self._documents[-1].text)
        while self._num_chars > self._most and len(self._documents) > 1:
            self._limit //= 2
            kept = [place for place, low in enumerate(self._low) if low < self._limit]
            kept = kept or [int(np.argmin(self._low))]
            self._documents = [self._documents[place] for place in kept]
            self._low = [self._low[place] for place in kept]
            self._num_chars = sum(len(document.text) for document in self._documents)
