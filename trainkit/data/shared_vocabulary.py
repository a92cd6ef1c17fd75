"""Shared vocabulary: one tokenizer for several corpora, learnt from the training side of all of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from trainkit.cache import cache_root, cached
from trainkit.data.text import Text
from trainkit.data.tokenizer import WordPiece

_TOKENIZER = "tokenizer.json"
_NUM_CHARS = 1 << 25  # of all corpora together, of each as much


def shared_tokenizer(texts: Sequence[Text], progress: bool = True) -> WordPiece:
    """Returns the tokenizer of several corpora, which is learnt once and kept in the cache.

    Args:
        texts: with the settings of the first for all; none of them has a vocabulary or a tokenizer.
        progress: whether to show progress bars.
    """
    key = hashlib.blake2b(" ".join(text.vocabulary_key() for text in texts).encode(), digest_size=16).hexdigest()

    def build(directory: Path) -> None:
        sample = (document for text in texts for document in text.sample(_NUM_CHARS // len(texts), progress))
        texts[0].learn_tokenizer(sample, progress).save(directory / _TOKENIZER)

    return WordPiece.load(cached(cache_root(texts[0].cache_dir), f"vocabulary-{key}", build) / _TOKENIZER)
