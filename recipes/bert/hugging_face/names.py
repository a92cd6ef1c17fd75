"""Names of weights: those of Hugging Face's BERT and RoBERTa, and those of `MaskedLanguageModel`."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from trainkit.errors import DataError

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
    "cls.predictions.decoder": "head.decoder",
    "cls.seq_relationship": "next_sentence",
}
_HEAD_OF_ROBERTA = {
    "lm_head.bias": "head.bias",
    "lm_head.dense": "head.dense",
    "lm_head.layer_norm": "head.norm",
    "lm_head.decoder": "head.decoder",
}
_HEADS = {**_HEAD, **_HEAD_OF_ROBERTA}
# Heads of other tasks; and buffers of old versions.
_LEFT_OUT = re.compile(r"classifier\.|qa_outputs\.|(.+\.)?embeddings\.(position_ids|token_type_ids)$")
_QKV = ("query", "key", "value")


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translates Hugging Face's names to those of `MaskedLanguageModel`; query, key and value become one matrix.

    A stored decoder becomes `head.decoder.weight` and `head.decoder.bias`; the model has no such bias, and the weight
    only where it is not tied. Heads of other tasks, such as `classifier`, are left out.

    Args:
        state: weights by name, of a BERT or a RoBERTa, with its prefix (`bert.`) or without.

    Returns:
        Weights by name.

    Raises:
        DataError: for an unknown, missing or repeated name.
    """
    translated = {}
    for given, value in state.items():
        name = given.replace("gamma", "weight").replace("beta", "bias") if "LayerNorm" in given else given
        if _LEFT_OUT.match(name) or ".attention.self.key." in name or ".attention.self.value." in name:
            continue
        if ".attention.self.query." in name:
            names = [name.replace(".query.", f".{part}.") for part in _QKV]
            if missing := [part for part in names if part not in state]:
                raise DataError(f"the weights lack {missing[0]!r}; give those of a complete BERT")
            value = torch.cat([state[part] for part in names])
        own = _own_name(name)
        if own in translated:
            raise DataError(f"{given!r} occurs twice, under two names; give the weights of one BERT")
        translated[own] = value
    return translated


def is_roberta(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a RoBERTa, of which the first two positions are of no token."""
    return any(name.startswith(("roberta.", "lm_head.")) for name in state)


def to_hugging_face(encoder: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Translates the weights of a `Bert` to Hugging Face's names, with the prefix `bert.`.

    Args:
        encoder: the state dict of a `Bert`.
        vocab_size: the number of tokens; rows beyond it, which pad the vocabulary, are cut off.

    Returns:
        Weights by name, which compute the same: a model without biases has biases of zero there, and two segments at
        least, whose embedding is zero without any.
    """
    theirs_of = {own: name for name, own in _EMBEDDINGS.items()}
    layer_of = {own: name for name, own in _IN_LAYER.items()}
    named: dict[str, Tensor] = {}
    for name, value in encoder.items():
        stem, _, kind = name.rpartition(".")
        if stem == "pooler":
            named[f"bert.pooler.dense.{kind}"] = value
        elif stem.startswith("embeddings."):
            part = stem.removeprefix("embeddings.")
            named[f"bert.embeddings.{theirs_of[part]}.{kind}"] = value[:vocab_size] if part == "token" else value
        else:
            _, number, part = stem.split(".", 2)
            layer = f"bert.encoder.layer.{number}"
            if part == "attention.qkv":
                for own, piece in zip(_QKV, value.chunk(3), strict=True):
                    named[f"{layer}.attention.self.{own}.{kind}"] = piece
            else:
                named[f"{layer}.{layer_of[part]}.{kind}"] = value
    tokens = named["bert.embeddings.word_embeddings.weight"]
    segments = named.get("bert.embeddings.token_type_embeddings.weight", tokens.new_zeros(1, tokens.shape[1]))
    named["bert.embeddings.token_type_embeddings.weight"] = segments.repeat(2, 1) if len(segments) == 1 else segments
    return _with_biases(named)


def head_weights(head: Mapping[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """Translates the weights of a `Head` to Hugging Face's names.

    Args:
        head: the state dict of a `Head`.
        vocab_size: the number of tokens.

    Returns:
        Weights by name; a model without biases has biases of zero there. A decoder that is not tied has its bias a
        second time: transformers adds that one.
    """
    theirs_of = {own.removeprefix("head."): name for name, own in _HEAD.items()}
    named = {}
    for name, value in head.items():
        stem, _, kind = name.rpartition(".")
        if name == "bias":
            named[theirs_of["bias"]] = value[:vocab_size]
        elif stem == "decoder":
            named[f"{theirs_of[stem]}.{kind}"] = value[:vocab_size]
            named[f"{theirs_of[stem]}.bias"] = head["bias"][:vocab_size]
        else:
            named[f"{theirs_of[stem]}.{kind}"] = value
    return _with_biases(named)


def _with_biases(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds zeros for the biases that are lacking: each linear layer and LayerNorm of Hugging Face's BERT has one."""
    zeros = {}
    for name, weight in named.items():
        bias = f"{name.removesuffix('.weight')}.bias"
        is_layer = name.endswith(".weight") and "_embeddings." not in name and not name.endswith("decoder.weight")
        if is_layer and bias not in named:
            zeros[bias] = weight.new_zeros(len(weight))
    return {**named, **zeros}


def _own_name(name: str) -> str:
    if name in _HEADS:
        return _HEADS[name]
    stem, _, kind = name.rpartition(".")
    if stem in _HEADS:
        return f"{_HEADS[stem]}.{kind}"
    stem = stem.removeprefix("bert.").removeprefix("roberta.")
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
