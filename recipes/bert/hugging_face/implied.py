"""What the directory of weights implies for a configuration."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from trainkit_recipes.bert.hugging_face.config import read_architecture
from trainkit_recipes.bert.hugging_face.vocabulary import has_vocabulary, vocabulary_file
from trainkit_recipes.bert.model import Architecture

_OWN = ("pooler", "max_distance")  # fields of Architecture that a directory says nothing about
_SHAPE = tuple(field.name for field in fields(Architecture) if field.name not in _OWN)
IMPLIED_KEYS = tuple(f"model.{name}" for name in _SHAPE)
"""What a resumed run takes from the configuration in its checkpoint, whose state has the vocabulary."""


def implied_by_weights(directory: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a recipe that `weights=directory` implies.

    Args:
        directory: of Hugging Face.
        given: the arguments as configured; `data` with a `vocab_file` gets that of the directory.

    Returns:
        Values by dotted name: each field of `model`, and `data.vocab_file`, beside which the casing stands.

    Raises:
        DataError: for a directory that is not of a BERT, or has no vocabulary.
    """
    architecture, _ = read_architecture(directory)
    implied = {f"model.{name}": getattr(architecture, name) for name in _SHAPE}
    data = given.get("data")
    if isinstance(data, Mapping) and "vocab_file" in data and (data["vocab_file"] is None or has_vocabulary(directory)):
        implied["data.vocab_file"] = str(vocabulary_file(directory))
    return implied
