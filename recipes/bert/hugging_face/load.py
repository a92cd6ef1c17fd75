"""Loading: weights of Hugging Face in a model of ours."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainkit.errors import DataError
from trainkit_recipes.bert.hugging_face.config import position_offset, read_config, require_shape
from trainkit_recipes.bert.hugging_face.names import is_roberta, translate
from trainkit_recipes.bert.hugging_face.weights import read_weights
from trainkit_recipes.bert.model import Bert, MaskedLanguageModel

_OPTIONAL = ("head.", "encoder.pooler.", "next_sentence.")  # each complete or absent
_BY_TOKEN = ("encoder.embeddings.token.weight", "head.bias", "head.decoder.weight")
_POSITIONS = "encoder.embeddings.position.weight"
_VOCAB_MULTIPLES = 8, 128  # the smallest and the largest one to which other programs pad a vocabulary


def load_hugging_face(module: MaskedLanguageModel | Bert, source: Path | Mapping[str, Tensor]) -> None:
    """Copies weights into a model, in the model's precision.

    A pooler is loaded where `module` has one. Without a head in `source`, that of the module stays; an encoder alone
    takes none. Rows that pad the vocabulary keep a probability of zero; those of `source` are cut off.

    Args:
        module: the model, or an encoder.
        source: a directory with weights, in any form that `read_weights` reads; or a state dict.

    Raises:
        DataError: naming the first weight that does not match.
    """
    encoder = module if isinstance(module, Bert) else module.encoder
    if isinstance(source, Path):
        config = read_config(source)
        # An encoder has no decoder, tied or not.
        require_shape(encoder.architecture, source, but=("tied_decoder",) if isinstance(module, Bert) else ())
        offset, state = position_offset(config), read_weights(source)
    else:
        state = dict(source)
        offset = 2 if is_roberta(state) else 0
    translated = _with_own_decoder(translate(state), encoder.architecture.tied_decoder, isinstance(module, Bert))
    if _POSITIONS in translated:
        translated[_POSITIONS] = translated[_POSITIONS][offset:]
    _fill(module, translated)


def _fill(module: MaskedLanguageModel | Bert, translated: Mapping[str, Tensor]) -> None:
    encoder = module if isinstance(module, Bert) else module.encoder
    own = {f"encoder.{name}" if module is encoder else name: value for name, value in module.state_dict().items()}
    optional = _OPTIONAL[1:] if module is encoder else _OPTIONAL
    with torch.no_grad():
        for name, value in translated.items():
            if name.startswith(("encoder.pooler.", "next_sentence.")) and name not in own:
                continue
            if name.startswith("head.") and module is encoder:
                continue
            if name not in own:
                raise DataError(f"this model has no weight {name!r}; recipe.model must have its shape")
            _copy(own[name], value, name, encoder.vocab_size)
    absent = [part for part in optional if not any(name.startswith(part) for name in translated)]
    missing = [name for name in own if name not in translated and not name.startswith(tuple(absent))]
    if missing:
        raise DataError(f"the weights lack {missing[0]!r} and {len(missing) - 1} more; give those of a complete BERT")


def _with_own_decoder(translated: dict[str, Tensor], is_tied: bool, is_encoder: bool) -> dict[str, Tensor]:
    """Returns the weights with the decoder of an untied model alone, and with `head.bias` the bias that is added.

    transformers adds the decoder's own bias wherever one is stored: `cls.predictions.bias` is only another name of the
    same tensor, and unused in a model that is not tied.
    """
    bias = translated.pop("head.decoder.bias", None)
    if is_encoder:
        return translated
    weight = translated.get("head.decoder.weight")
    has_head = any(name.startswith("head.") for name in translated)
    if not is_tied and has_head and (weight is None or bias is None):
        lacking = "decoder." + ("weight" if weight is None else "bias")
        raise DataError(
            f"tie_word_embeddings=false in config.json, and the weights lack '{lacking}' of the head: save them again"
        )
    if is_tied and weight is not None:
        embedding = translated.get("encoder.embeddings.token.weight")
        if embedding is None or weight.shape != embedding.shape or not bool((weight == embedding).all()):
            raise DataError(
                "the decoder of the weights is not the token embedding, and the model's is "
                "(recipe.model.tied_decoder=true): set tie_word_embeddings to false in config.json, or "
                "recipe.model.tied_decoder=false here; or leave the head out: save model.bert"
            )
        del translated["head.decoder.weight"]
    return translated if bias is None else {**translated, "head.bias": bias}


def _copy(target: Tensor, value: Tensor, name: str, vocab_size: int) -> None:
    if name in _BY_TOKEN:
        target = target[:vocab_size]
        if value.ndim == target.ndim and fits_vocabulary(len(value), vocab_size):
            value = value[:vocab_size]
    if target.shape != value.shape:
        raise DataError(
            f"the weight {name!r} has shape {[*value.shape]} and this model's {[*target.shape]}; recipe.model and "
            f"data.vocab_file must be those that it was trained with"
        )
    target.copy_(value)


def fits_vocabulary(num_rows: int, vocab_size: int) -> bool:
    """Returns whether an embedding of so many rows may be of so many tokens: other programs pad to a multiple."""
    is_multiple = num_rows % _VOCAB_MULTIPLES[0] == 0
    return num_rows == vocab_size or (is_multiple and vocab_size < num_rows < vocab_size + _VOCAB_MULTIPLES[1])
