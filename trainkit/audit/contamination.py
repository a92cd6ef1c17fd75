"""Contamination: held-out texts whose words a pre-training corpus holds in the same order."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainkit.data.shingles import shingles

WIDTH = 8  # words
MOST = 0.7
"""Share of a text's shingles from which on it counts as seen, both as of PaLM (arXiv 2204.02311, section 8)."""


class Contamination:
    """Remembers which runs of eight words of the held-out texts a corpus holds, anywhere in it.

    A text of fewer words is not looked for. Takes about 100 bytes a word of the held-out texts.

    Args:
        texts: held out.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        hashes = [shingles([text], WIDTH).of(0) for text in texts]
        self._keys: NDArray[np.uint64] = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))
        self._is_seen = np.zeros(len(self._keys), np.bool_)
        self._places = [np.searchsorted(self._keys, one) for one in hashes]

    @property
    def num_comparable(self) -> int:
        """Held-out texts of at least eight words."""
        return sum(len(places) > 0 for places in self._places)

    def look_into(self, texts: Sequence[str]) -> None:
        """Marks what texts of the corpus hold."""
        if not len(self._keys):
            return
        found = shingles(texts, WIDTH).hashes
        places = np.minimum(np.searchsorted(self._keys, found), len(self._keys) - 1)
        self._is_seen[places[self._keys[places] == found]] = True

    def seen(self) -> list[tuple[int, float]]:
        """Returns the place of each held-out text that the corpus holds, and the share of its shingles there."""
        shares = [
            (number, float(self._is_seen[places].mean())) for number, places in enumerate(self._places) if len(places)
        ]
        return [(number, share) for number, share in shares if share >= MOST]
