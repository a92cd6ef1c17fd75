"""Data: where samples come from, and in which order."""

from trainkit.data.batch import Batch
from trainkit.data.datasets import Datasets
from trainkit.data.images import Images
from trainkit.data.pyramid import Pyramid
from trainkit.data.text import Text
from trainkit.data.tokenizer import WordPiece

__all__ = ["Batch", "Datasets", "Images", "Pyramid", "Text", "WordPiece"]
