"""Embeddings of texts by the words in them: hashed TF-IDF, with few dimensions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_DIMENSIONS = 64
FITTED_ON = 20_000
"""Texts, an even choice."""

_NUM_HASHES = 1 << 18
_MOST_CHARS = 20_000
_SEED = 20


class TfidfEmbeddings:
    """Maps texts to the main directions of their words (latent semantic analysis).

    Args:
        texts: to fit on.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self._hashing = HashingVectorizer(n_features=_NUM_HASHES, alternate_sign=False, norm=None, dtype=np.float32)
        counts = self._hashing.transform(text[:_MOST_CHARS] for text in texts)
        self._weights = TfidfTransformer(sublinear_tf=True).fit(counts)
        size = max(1, min(NUM_DIMENSIONS, counts.shape[0] - 1))
        self._reduction = TruncatedSVD(size, random_state=_SEED).fit(self._weights.transform(counts))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns float32 [n, at most NUM_DIMENSIONS]."""
        counts = self._hashing.transform(text[:_MOST_CHARS] for text in texts)
        reduced: NDArray[np.float32] = self._reduction.transform(self._weights.transform(counts)).astype(np.float32)
        return reduced
