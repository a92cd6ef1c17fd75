"""Data: where samples come from, and in which order."""

from trainkit.data.batch import Batch
from trainkit.data.datasets import Datasets
from trainkit.data.text import Text

__all__ = ["Batch", "Datasets", "Text"]
