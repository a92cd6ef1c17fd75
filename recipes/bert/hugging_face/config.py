"""config.json: the shape of a BERT, as Hugging Face writes it."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from trainkit.data import read_json
from trainkit.errors import ConfigError, DataError
from trainkit_recipes.bert.model import BASE, Architecture

_VOCAB_SIZE = {"bert": 30522, "roberta": 50265}  # where config.json has no vocab_size
_NAMES = {
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
    "tied_decoder": "tie_word_embeddings",
}
# Keys of config.json that change what a BERT computes, and the values that `model.py` supports.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert", "roberta"),
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
_PAD_OF_ROBERTA = 1  # where config.json has no pad_token_id
# Fields of Architecture that weights do not depend on, or which one may want otherwise.
_FREE = ("dropout", "attention_dropout", "pooler", "init_std", "max_distance")
_WRITTEN_OTHERWISE = ("bias",)  # biases of zero compute what none do


def read_config(directory: Path) -> dict[str, Any]:
    """Reads the config.json of a directory.

    Raises:
        DataError: naming a key that describes another function than `MaskedLanguageModel`.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise DataError(f"recipe.weights={directory} has no config.json; give a Hugging Face directory of a BERT")
    try:
        config = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); save the model with save_pretrained") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} holds no JSON object; save the model with save_pretrained")
    for key, allowed in _SUPPORTED.items():
        value = config.get(key)
        if (value is not None or key in _REQUIRED) and value not in allowed:
            only = f"only {' and '.join(map(str, allowed))} can be loaded" if allowed else "which cannot be loaded"
            raise DataError(f"recipe.weights={directory}: its config.json has {key}={value!r}; {only}")
    return config


def read_architecture(directory: Path) -> tuple[Architecture, int]:
    """Reads the config.json of a Hugging Face directory.

    Args:
        directory: with a config.json.

    Returns:
        The architecture, and the vocabulary size.

    Raises:
        DataError: naming a key that describes another function than `MaskedLanguageModel`.
    """
    config = read_config(directory)
    values: dict[str, Any] = {ours: config[theirs] for ours, theirs in _NAMES.items() if config.get(theirs) is not None}
    longest = values.get("max_length", BASE.max_length) - position_offset(config)
    try:
        architecture = replace(BASE, pooler=True, **{**values, "max_length": longest})
    except (ConfigError, TypeError) as error:
        raise DataError(f"recipe.weights={directory}: its config.json describes no BERT: {error}") from error
    return architecture, config.get("vocab_size", _VOCAB_SIZE[config["model_type"]])


def position_offset(config: Mapping[str, Any]) -> int:
    """Returns the number of position embeddings before that of the first token: RoBERTa counts from its padding on."""
    if config["model_type"] != "roberta":
        return 0
    pad = config.get("pad_token_id")
    return (_PAD_OF_ROBERTA if pad is None else int(pad)) + 1


def require_shape(own: Architecture, directory: Path, but: Collection[str] = ()) -> None:
    """Raises DataError, naming the field, where weights of a directory do not fit an architecture.

    Args:
        own: of the model.
        directory: with a config.json.
        but: fields that may differ.
    """
    theirs, _ = read_architecture(directory)
    for field in fields(Architecture):
        name = field.name
        if name not in (*_FREE, *but) and getattr(own, name) != getattr(theirs, name):
            raise DataError(
                f"recipe.weights={directory} has {name}={getattr(theirs, name)}: set recipe.model.{name} to it "
                f"(here it is {getattr(own, name)}), or leave it out: type weights={directory} alone"
            )


def require_expressible(architecture: Architecture) -> None:
    """Raises ConfigError, naming the field, where Hugging Face's BERT computes something else."""
    for field in fields(Architecture):
        name, value = field.name, getattr(architecture, field.name)
        usual = getattr(BASE, name)
        if name not in (*_NAMES, *_FREE, *_WRITTEN_OTHERWISE) and value != usual:
            raise ConfigError(
                f"recipe.model.{name}={value} cannot be expressed by Hugging Face's BERT, which has {name}={usual}: "
                f"export with --to onnx, or train a model with recipe.model.{name}={usual}"
            )


def config_of(architecture: Architecture, vocab_size: int, **others: Any) -> dict[str, Any]:
    """Returns the content of a config.json.

    Args:
        architecture: of the model.
        vocab_size: the number of tokens.
        others: further keys, such as `architectures`.

    Raises:
        ConfigError: for an architecture that Hugging Face's BERT cannot express.
    """
    require_expressible(architecture)
    values = {theirs: getattr(architecture, ours) for ours, theirs in _NAMES.items()}
    # As many as a tokenizer numbers in a pair: without segments their embedding is zero, and a single one stands twice.
    values["type_vocab_size"] = max(architecture.num_segments, 2)
    plain = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    return {**plain, **values, "vocab_size": vocab_size, **others}
