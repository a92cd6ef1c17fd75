"""Loads weights as Hugging Face's BERT stores them."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainkit.errors import DataError
from trainkit_recipes.bert.model import BASE, Architecture, MaskedLanguageModel

_VOCAB_SIZE = 30522  # where config.json has no vocab_size
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
_OPTIONAL = ("head.", "encoder.pooler.")  # each complete or absent
_HEAD = {
    "cls.predictions.bias": "head.bias",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.decoder": "head.decoder",
}
# The next-sentence head, which is not trained here; and a buffer of old versions.
_LEFT_OUT = re.compile(r"cls\.seq_relationship\.|embeddings\.position_ids$")
# Keys of config.json that change what a BERT computes, and the values that `model.py` supports.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "auto_map": (),  # code of its own, such as other positions or a gated feed-forward network
}
_REQUIRED = ("model_type",)


def read_architecture(directory: Path) -> tuple[Architecture, int]:
    """Reads the config.json of a Hugging Face directory.

    Args:
        directory: with a config.json.

    Returns:
        The architecture, and the vocabulary size.

    Raises:
        DataError: naming a key that describes another function than `MaskedLanguageModel` with a tied head.
    """
    config = _read_config(directory)
    values: dict[str, Any] = {ours: config[theirs] for ours, theirs in _CONFIG_NAMES.items() if theirs in config}
    return replace(BASE, pooler=True, **values), config.get("vocab_size", _VOCAB_SIZE)


def load_hugging_face(module: MaskedLanguageModel, source: Path | Mapping[str, Tensor]) -> None:
    """Copies weights into a model.

    A pooler is loaded where `module` has one. Without a head in `source`, that of the module stays. Rows that pad the
    vocabulary keep a probability of zero.

    Args:
        module: the model.
        source: a directory with model.safetensors, or a state dict.

    Raises:
        DataError: naming the first weight that does not match, and for a decoder that is not the token embedding.
    """
    is_tied = True
    if isinstance(source, Path):
        _check_shape(module.encoder.architecture, source)
        is_tied = _read_config(source).get("tie_word_embeddings") is not False
        state = _read(source)
    else:
        state = dict(source)
    translated = _with_tied_decoder(translate(state), is_tied)
    own = module.state_dict()
    with torch.no_grad():
        for name, value in translated.items():
            if name.startswith("encoder.pooler.") and module.encoder.pooler is None:
                continue
            if name not in own:
                raise DataError(f"this model has no weight {name!r}; recipe.model must have its shape")
            _copy(own[name], value, name, module.vocab_size)
    absent = [part for part in _OPTIONAL if not any(name.startswith(part) for name in translated)]
    missing = [name for name in own if name not in translated and not name.startswith(tuple(absent))]
    if missing:
        raise DataError(f"the weights lack {missing[0]!r} and {len(missing) - 1} more; give those of a complete BERT")


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translates Hugging Face's names to those of `MaskedLanguageModel`; query, key and value become one matrix.

    A stored decoder becomes `head.decoder.weight` and `head.decoder.bias`, which the model does not have.

    Args:
        state: weights by name.

    Returns:
        Weights by name.

    Raises:
        DataError: for an unknown, missing or repeated name.
    """
    translated = {}
    for given, value in state.items():
        name = given.replace("gamma", "weight").replace("beta", "bias") if "LayerNorm" in given else given
        if _LEFT_OUT.search(name) or ".attention.self.key." in name or ".attention.self.value." in name:
            continue
        if ".attention.self.query." in name:
            names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if missing := [part for part in names if part not in state]:
                raise DataError(f"the weights lack {missing[0]!r}; give those of a complete BERT")
            value = torch.cat([state[part] for part in names])
        own = _own_name(name)
        if own in translated:
            raise DataError(f"{given!r} occurs twice, under two names; give the weights of one BERT")
        translated[own] = value
    return translated


def _with_tied_decoder(translated: dict[str, Tensor], is_tied: bool) -> dict[str, Tensor]:
    """Returns the weights without a decoder beside the token embedding, with `head.bias` the bias that is added.

    transformers adds the decoder's own bias wherever one is stored: `cls.predictions.bias` is only another name of the
    same tensor, and unused in a model that is not tied.
    """
    weight = translated.pop("head.decoder.weight", None)
    bias = translated.pop("head.decoder.bias", None)
    has_head = any(name.startswith("head.") for name in translated)
    if not is_tied and has_head and (weight is None or bias is None):
        lacking = "cls.predictions.decoder." + ("weight" if weight is None else "bias")
        raise DataError(f"tie_word_embeddings=false in config.json, and the weights lack {lacking!r}: save them again")
    embedding = translated.get("encoder.embeddings.token.weight")
    if weight is not None and (
        embedding is None or weight.shape != embedding.shape or not bool((weight == embedding).all())
    ):
        raise DataError(
            "'cls.predictions.decoder.weight' is not the token embedding (tie_word_embeddings=false, or new "
            "embeddings), and recipe=bert has no decoder of its own; call tie_weights() and save the model again, "
            "or leave its head out: save model.bert"
        )
    return translated if bias is None else {**translated, "head.bias": bias}


def _own_name(name: str) -> str:
    if name in _HEAD:
        return _HEAD[name]
    stem, _, kind = name.rpartition(".")
    if stem in _HEAD:
        return f"{_HEAD[stem]}.{kind}"
    stem = stem.removeprefix("bert.")
    if stem == "pooler.dense":
        return f"encoder.pooler.{kind}"
    module, _, part = stem.partition(".")
    if module == "embeddings" and part in _EMBEDDINGS:
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


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise DataError(f"recipe.weights={directory} has no config.json; give a Hugging Face directory of a BERT")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); save the model with save_pretrained") from error
    for key, allowed in _SUPPORTED.items():
        value = config.get(key)
        if (value is not None or key in _REQUIRED) and value not in allowed:
            only = f"only {' and '.join(map(str, allowed))} can be loaded" if allowed else "which cannot be loaded"
            raise DataError(f"recipe.weights={directory}: its config.json has {key}={value!r}; {only}")
    return config


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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / "model.safetensors"
    if not path.is_file():
        raise DataError(f"recipe.weights={directory} has no model.safetensors; save the model with save_pretrained")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} cannot be read ({error}); save the model with save_pretrained") from error
