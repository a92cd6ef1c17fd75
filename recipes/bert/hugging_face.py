"""Weights as Hugging Face's BERT stores them, into ours."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.bert.model import BASE, Architecture, MaskedLanguageModel
from trainkit.errors import DataError

_CONFIG_NAMES = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "feed_forward_size": "intermediate_size",
    "max_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "norm_eps": "layer_norm_eps",
    "init_std": "initializer_range",
}
_EMBEDDINGS = {
    "word_embeddings": "token",
    "position_embeddings": "position",
    "token_type_embeddings": "segment",
    "LayerNorm": "norm",
}
_IN_LAYER = {
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}
_HEAD = {
    "cls.predictions.bias": "head.bias",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
}
# Tied to the embeddings; the next-sentence head, which is not trained here; and a buffer of old versions.
_LEFT_OUT = re.compile(r"cls\.predictions\.decoder\.|cls\.seq_relationship\.|embeddings\.position_ids$")


def read_architecture(directory: Path) -> tuple[Architecture, int]:
    """(architecture, vocabulary size) of the config.json in `directory`. Raises DataError when it is not a BERT's."""
    path = directory / "config.json"
    if not path.is_file():
        raise DataError(f"recipe.weights={directory} has no config.json; give a Hugging Face directory of a BERT")
    config = json.loads(path.read_text())
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        kind = f"{config.get('model_type')} with {config.get('hidden_act')}"
        raise DataError(f"recipe.weights={directory} is {kind}; only bert with gelu can be loaded")
    values: dict[str, Any] = {ours: config[theirs] for ours, theirs in _CONFIG_NAMES.items() if theirs in config}
    return replace(BASE, pooler=True, **values), config["vocab_size"]


def load_hugging_face(module: MaskedLanguageModel, source: Path | Mapping[str, Tensor]) -> None:
    """Copies the weights in `source`, a directory with model.safetensors or a state dict, into `module`.

    A pooler is loaded where `module` has one. Without a head in `source`, the module's stays as it is. Rows that pad
    the vocabulary keep a probability of zero. Raises DataError naming the first weight that does not fit.
    """
    if isinstance(source, Path):
        _check_shape(module.encoder.architecture, source)
        state = _read(source)
    else:
        state = dict(source)
    translated = translate(state)
    own = module.state_dict()
    with torch.no_grad():
        for name, value in translated.items():
            if name.startswith("encoder.pooler.") and module.encoder.pooler is None:
                continue
            if name not in own:
                raise DataError(f"the weight {name!r} has no place in this model; recipe.model must be of its shape")
            _copy(own[name], value, name, module.vocab_size)
    missing = [name for name in own if name not in translated and not _may_be_missing(name)]
    if missing:
        raise DataError(f"the weights lack {missing[0]!r} and {len(missing) - 1} more; give those of a whole BERT")


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names to ours; query, key and value become one matrix. Raises DataError for an unknown name."""
    translated = {}
    for name, value in state.items():
        name = name.replace("gamma", "weight").replace("beta", "bias") if "LayerNorm" in name else name
        if _LEFT_OUT.search(name) or ".attention.self.key." in name or ".attention.self.value." in name:
            continue
        if ".attention.self.query." in name:
            parts = [state[name.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            value = torch.cat(parts)
        translated[_own_name(name)] = value
    return translated


def _own_name(name: str) -> str:
    if name in _HEAD:
        return _HEAD[name]
    stem, _, kind = name.rpartition(".")
    if stem in _HEAD:
        return f"{_HEAD[stem]}.{kind}"
    stem = stem.removeprefix("bert.")
    if stem == "pooler.dense":
        return f"encoder.pooler.{kind}"
    place, _, part = stem.partition(".")
    if place == "embeddings" and part in _EMBEDDINGS:
        return f"encoder.embeddings.{_EMBEDDINGS[part]}.{kind}"
    found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", stem)
    if found and found[2] == "attention.self.query":
        return f"encoder.layers.{found[1]}.attention.qkv.{kind}"
    if found and found[2] in _IN_LAYER:
        return f"encoder.layers.{found[1]}.{_IN_LAYER[found[2]]}.{kind}"
    raise DataError(f"{name!r} is not a weight of Hugging Face's BERT")


def _copy(target: Tensor, value: Tensor, name: str, vocab_size: int) -> None:
    if name in ("encoder.embeddings.token.weight", "head.bias"):
        target = target[:vocab_size]
    if target.shape != value.shape:
        raise DataError(
            f"the weight {name!r} has shape {[*value.shape]} and this model's {[*target.shape]}; recipe.model and "
            f"data.vocab_file must be those that it was trained with"
        )
    target.copy_(value)


def _may_be_missing(name: str) -> bool:
    return name.startswith(("head.", "encoder.pooler."))


def _check_shape(own: Architecture, directory: Path) -> None:
    theirs, _ = read_architecture(directory)
    for field in fields(Architecture):
        name = field.name
        free = ("dropout", "attention_dropout", "pooler", "init_std", "max_distance")
        if name not in free and getattr(own, name) != getattr(theirs, name):
            raise DataError(
                f"recipe.weights={directory} has {name}={getattr(theirs, name)}: set recipe.model.{name} to it "
                f"(here it is {getattr(own, name)})"
            )


def _read(directory: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = directory / "model.safetensors"
    if not path.is_file():
        raise DataError(f"recipe.weights={directory} has no model.safetensors; save the model with save_pretrained")
    return load_file(path)
