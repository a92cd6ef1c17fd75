"""Directories of Hugging Face: a BERT's weights, shape and vocabulary, read and written."""

from trainkit_recipes.bert.hugging_face.config import read_architecture, require_expressible, require_shape
from trainkit_recipes.bert.hugging_face.directory import write_directory
from trainkit_recipes.bert.hugging_face.implied import IMPLIED_KEYS, implied_by_weights
from trainkit_recipes.bert.hugging_face.load import fits_vocabulary, load_hugging_face
from trainkit_recipes.bert.hugging_face.names import head_weights, to_hugging_face, translate
from trainkit_recipes.bert.hugging_face.vocabulary import has_vocabulary, require_vocabulary, vocabulary_file

__all__ = [
    "IMPLIED_KEYS",
    "fits_vocabulary",
    "has_vocabulary",
    "head_weights",
    "implied_by_weights",
    "load_hugging_face",
    "read_architecture",
    "require_expressible",
    "require_shape",
    "require_vocabulary",
    "to_hugging_face",
    "translate",
    "vocabulary_file",
    "write_directory",
]
