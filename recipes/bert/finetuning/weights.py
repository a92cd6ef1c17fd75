"""Pretrained: the encoder, its shape and its tokenizer, from a run of trainkit or a Hugging Face directory."""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainkit.checkpoint import find, read_manifest
from trainkit.data import WordPiece
from trainkit.errors import CheckpointError, ConfigError, DataError
from trainkit_recipes.bert.architecture import Architecture
from trainkit_recipes.bert.hugging_face import (
    fits_vocabulary,
    has_vocabulary,
    load_hugging_face,
    read_architecture,
    vocabulary_file,
)
from trainkit_recipes.bert.model import Bert, initialise

_PREFIX = "model.module/encoder."  # of the encoder's tensors in a checkpoint


@dataclass(frozen=True)
class Pretrained:
    """Where an encoder starts.

    Args:
        architecture: its shape.
        vocab_size: rows of its embedding that the encoder takes; see `check_vocabulary`.
        tokenizer: its own; None: it comes without one.
        path: a checkpoint or a Hugging Face directory; None: from scratch.
    """

    architecture: Architecture
    vocab_size: int
    tokenizer: WordPiece | None
    path: Path | None

    @classmethod
    def find(cls, path: Path) -> "Pretrained":
        """Reads what is stored beside the weights at a path.

        Args:
            path: a run directory or a checkpoint of recipe=bert or recipe=bert_finetune, or a Hugging Face directory.

        Raises:
            DataError: for another path, and for what `read_architecture` cannot read.
            CheckpointError: for a checkpoint of another recipe.
        """
        path = path.expanduser()
        if (path / "config.json").is_file() and not (path / "checkpoints").exists():
            architecture, vocab_size = read_architecture(path)
            tokenizer = WordPiece.read(vocabulary_file(path)) if has_vocabulary(path) else None
            return cls(architecture, vocab_size, tokenizer, path)
        if not path.is_dir():
            raise DataError(f"recipe.weights={path} does not exist: give a run directory, or a Hugging Face directory")
        try:
            directory = find(path)
        except CheckpointError as error:
            raise DataError(
                f"recipe.weights={path} holds neither a checkpoint nor a config.json of Hugging Face ({error})"
            ) from None
        return cls._of_checkpoint(directory)

    @classmethod
    def _of_checkpoint(cls, directory: Path) -> "Pretrained":
        state = read_manifest(directory)["values"].get("recipe") or {}
        if "tokenizer" not in state or "architecture" not in state:
            raise CheckpointError(
                f"recipe.weights={directory} was not written by recipe=bert or bert_finetune of this version with a "
                f"WordPiece vocabulary: give such a run, or a Hugging Face directory"
            )
        tokenizer = WordPiece.from_json(state["tokenizer"])
        return cls(architecture_of(state["architecture"]), tokenizer.vocab_size, tokenizer, directory)

    def encoder(self, architecture: Architecture) -> Bert:
        """Makes the encoder and loads its weights; what they lack, such as a pooler, is new.

        Args:
            architecture: of the encoder, which may differ in the pooler and the dropouts.

        Raises:
            DataError: for weights that do not fit.
            CheckpointError: for a checkpoint that cannot be read.
        """
        encoder = Bert(architecture, self.vocab_size)
        encoder.apply(partial(initialise, std=architecture.init_std))
        if self.path is not None and (self.path / "config.json").is_file():
            load_hugging_face(encoder, self.path)
        elif self.path is not None:
            _load_checkpoint(encoder, self.path)
        return encoder


def architecture_of(stored: dict[str, Any]) -> Architecture:
    """Returns the architecture that a checkpoint stores as a dict."""
    known = {field.name for field in fields(Architecture)}
    return replace(Architecture(), **{key: value for key, value in stored.items() if key in known})


def check_vocabulary(tokenizer: WordPiece, pretrained: Pretrained, vocab_file: Path | None) -> None:
    """Requires that a tokenizer is the one that weights were trained with; they may have rows that pad its tokens.

    Raises:
        ConfigError: where it is not, or the numbers of tokens do not match.
    """
    own = pretrained.tokenizer
    if own is not None and own.meaning != tokenizer.meaning:
        raise ConfigError(
            f"data.vocab_file={vocab_file} ({tokenizer.vocab_size} tokens) is not the vocabulary of the weights "
            f"({own.vocab_size} tokens): leave data.vocab_file out, theirs is used"
        )
    if not fits_vocabulary(pretrained.vocab_size, tokenizer.vocab_size):
        raise ConfigError(
            f"a vocabulary of {tokenizer.vocab_size} tokens does not fit recipe.weights={pretrained.path}, whose "
            f"embedding has {pretrained.vocab_size}: set data.vocab_file to the vocab.txt that they were trained with"
        )


@torch.no_grad()
def _load_checkpoint(encoder: Bert, directory: Path) -> None:
    from trainkit.checkpoint import read_whole  # imports torch.distributed.checkpoint

    names = read_manifest(directory)["tensors"]
    stored = read_whole(directory, {name for name in names if name.startswith(_PREFIX)})
    if any(".lora_" in name for name in stored):
        raise CheckpointError(
            f"{directory} was trained with recipe.lora_rank: write it with trainkit export --to huggingface, and give "
            f"that directory"
        )
    own: dict[str, Tensor] = encoder.state_dict()
    for name, target in own.items():
        value = stored.get(_PREFIX + name)
        if value is None and name.startswith("pooler."):
            continue
        if value is None or value.shape != target.shape:
            found = "lacks it" if value is None else f"has shape {[*value.shape]}"
            raise CheckpointError(f"{directory} does not fit: encoder weight {name!r} {[*target.shape]}; it {found}")
        target.copy_(value)
