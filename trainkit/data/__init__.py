"""Data: sources of samples, and their order."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.data.batch import Batch
    from trainkit.data.comparisons import Comparisons
    from trainkit.data.datasets import Datasets
    from trainkit.data.examples import Example, Examples
    from trainkit.data.formats.arrow import Arrow
    from trainkit.data.formats.litdata import Litdata, LitdataTokens
    from trainkit.data.formats.mds import Mds
    from trainkit.data.formats.opening import open_dataset
    from trainkit.data.formats.sharded import ShardedDataset
    from trainkit.data.formats.tars import Tars
    from trainkit.data.image_file import find_images, read_image
    from trainkit.data.images import Images
    from trainkit.data.mixture import Mixture
    from trainkit.data.nvidia_bert import NvidiaBert
    from trainkit.data.progress import track
    from trainkit.data.pyramid import Pyramid
    from trainkit.data.shards.prepare import Prepared, prepare
    from trainkit.data.shuffle import Shuffle
    from trainkit.data.sides import Entry, LeftOut, Sides
    from trainkit.data.text import Text
    from trainkit.data.tokenizer import WordPiece
    from trainkit.data.unpaired import SideBySide, Unpaired, UnpairedImages
    from trainkit.data.vocabulary import Normalizer, Vocabulary, read_vocabulary
    from trainkit.json_text import read_json

__all__ = [
    "Arrow",
    "Batch",
    "Comparisons",
    "Datasets",
    "Entry",
    "Example",
    "Examples",
    "Images",
    "LeftOut",
    "Litdata",
    "LitdataTokens",
    "Mds",
    "Mixture",
    "Normalizer",
    "NvidiaBert",
    "Prepared",
    "Pyramid",
    "ShardedDataset",
    "Shuffle",
    "SideBySide",
    "Sides",
    "Tars",
    "Text",
    "Unpaired",
    "UnpairedImages",
    "Vocabulary",
    "WordPiece",
    "find_images",
    "open_dataset",
    "prepare",
    "read_image",
    "read_json",
    "read_vocabulary",
    "track",
]

if not TYPE_CHECKING:  # a type checker would take __getattr__ to provide any name
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Arrow": "trainkit.data.formats.arrow",
            "Batch": "trainkit.data.batch",
            "Comparisons": "trainkit.data.comparisons",
            "Datasets": "trainkit.data.datasets",
            "Entry": "trainkit.data.sides",
            "Example": "trainkit.data.examples",
            "Examples": "trainkit.data.examples",
            "Images": "trainkit.data.images",
            "LeftOut": "trainkit.data.sides",
            "Mixture": "trainkit.data.mixture",
            "Litdata": "trainkit.data.formats.litdata",
            "LitdataTokens": "trainkit.data.formats.litdata",
            "Mds": "trainkit.data.formats.mds",
            "Normalizer": "trainkit.data.vocabulary",
            "NvidiaBert": "trainkit.data.nvidia_bert",
            "Prepared": "trainkit.data.shards.prepare",
            "Pyramid": "trainkit.data.pyramid",
            "Shuffle": "trainkit.data.shuffle",
            "ShardedDataset": "trainkit.data.formats.sharded",
            "SideBySide": "trainkit.data.unpaired",
            "Sides": "trainkit.data.sides",
            "Tars": "trainkit.data.formats.tars",
            "Text": "trainkit.data.text",
            "Unpaired": "trainkit.data.unpaired",
            "UnpairedImages": "trainkit.data.unpaired",
            "Vocabulary": "trainkit.data.vocabulary",
            "WordPiece": "trainkit.data.tokenizer",
            "find_images": "trainkit.data.image_file",
            "prepare": "trainkit.data.shards.prepare",
            "open_dataset": "trainkit.data.formats.opening",
            "read_image": "trainkit.data.image_file",
            "read_json": "trainkit.json_text",
            "read_vocabulary": "trainkit.data.vocabulary",
            "track": "trainkit.data.progress",
        },
    )
