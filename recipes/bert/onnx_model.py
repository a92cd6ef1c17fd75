"""What an ONNX file of a BERT for masked words is: its inputs, and how they are measured."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainkit.data import Batch, WordPiece
from trainkit.export import Dynamic, OnnxModel, Predict
from trainkit_recipes.bert.data import IGNORED
from trainkit_recipes.bert.model import Architecture, MaskedLanguageModel

if TYPE_CHECKING:
    from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

NUM_CALIBRATED = 64  # windows
AT_ONCE = 8  # windows: the logits of all tokens are large
_MOST_BATCH = 64  # of the checks, and of the engine of TensorRT


class WithLogits(nn.Module):
    """A model called as transformers calls it, with the logits of real tokens.

    Args:
        model: with its head.
    """

    def __init__(self, model: MaskedLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns logits [B, T, number of tokens] of int64 [B, T]."""
        logits_BTV = self.model(input_ids, attended_BT=attention_mask.bool(), segments=token_type_ids)
        return logits_BTV[..., : self.model.vocab_size]


def onnx_model(recipe: "MaskedLanguageModelling", module: MaskedLanguageModel) -> OnnxModel:
    """Describes the ONNX file of a recipe's model.

    Args:
        recipe: with data, where int8 is wanted.
        module: with the weights to export.

    Returns:
        The description. Inputs as of transformers: input_ids, attention_mask and, with segments, token_type_ids.
    """
    has_segments = module.encoder.architecture.num_segments > 1

    def measure(predict: Predict) -> float:
        correct, total = 0, 0
        for batch, masked in recipe.masked_held_out():
            attended_BT = (batch.tokens != recipe.tokenizer.pad).long()
            for part in torch.arange(len(attended_BT)).split(AT_ONCE):
                segments = _segments(batch, part)
                (logits_BTV,) = predict(inputs_of(masked.tokens_BT[part], attended_BT[part], has_segments, segments))
                predicted_BT = logits_BTV.argmax(-1)
                labels_BK = masked.labels_BK[part]
                correct += int((predicted_BT.gather(1, masked.chosen_BK[part]) == labels_BK).sum())
                total += int((labels_BK != IGNORED).sum())
        return correct / total

    def calibration() -> Iterator[Mapping[str, Tensor]]:
        left = NUM_CALIBRATED
        for batch, masked in recipe.masked_held_out():
            attended_BT = (batch.tokens != recipe.tokenizer.pad).long()
            for part in torch.arange(min(left, len(attended_BT))).split(AT_ONCE):
                yield inputs_of(masked.tokens_BT[part], attended_BT[part], has_segments, _segments(batch, part))
            left -= len(attended_BT)
            if left <= 0:
                return

    return OnnxModel(
        module=WithLogits(module),
        outputs=("logits",),
        metadata=metadata_of(recipe.tokenizer, module.encoder.architecture),
        measure=measure,
        calibration=calibration,
        **text_inputs(module.encoder.architecture, recipe.tokenizer),
    )


def inputs_of(
    tokens_BT: Tensor, attended_BT: Tensor, has_segments: bool, segments_BT: Tensor | None = None
) -> dict[str, Tensor]:
    """Returns inputs by name; without `segments_BT` all segments are 0."""
    inputs = {"input_ids": tokens_BT, "attention_mask": attended_BT}
    segments_BT = torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT
    return {**inputs, "token_type_ids": segments_BT} if has_segments else inputs


def _segments(batch: Batch, part: Tensor) -> Tensor | None:
    return batch.data["segments"][part] if "segments" in batch.data else None


def text_inputs(architecture: Architecture, tokenizer: WordPiece) -> dict[str, Any]:
    """Returns `inputs`, `dynamic` and `checks` of an OnnxModel that takes text."""
    longest, num_segments = architecture.max_length, architecture.num_segments
    batch, length = Dynamic("batch", _MOST_BATCH), Dynamic("length", longest, is_limit=True)
    sizes = [(1, 1), (3, 2), (2, longest), (_MOST_BATCH, min(longest, 17)), (1, min(longest, 128))]
    inputs = _ragged(2, min(longest, 8), tokenizer, num_segments)
    return {
        "inputs": inputs,
        "dynamic": {name: {0: batch, 1: length} for name in inputs},
        "checks": [_ragged(*size, tokenizer, num_segments) for size in sizes],
    }


def metadata_of(tokenizer: WordPiece, architecture: Architecture) -> dict[str, str]:
    """Returns what turns text into the inputs: the lines of a vocab.txt, casing, and the longest text."""
    normalizer = tokenizer.normalizer
    return {
        "vocabulary": "\n".join(tokenizer.lines()),
        "do_lower_case": json.dumps(normalizer.lowercase),
        "strip_accents": json.dumps(normalizer.strip_accents),
        "tokenize_chinese_chars": json.dumps(normalizer.tokenize_chinese_chars),
        "max_length": str(architecture.max_length),
    }


def _ragged(num_samples: int, length: int, tokenizer: WordPiece, num_segments: int) -> dict[str, Tensor]:
    """Inputs of random tokens, of which each sample has another number."""
    generator = torch.Generator().manual_seed(num_samples * 1000 + length)
    tokens_BT = torch.randint(tokenizer.vocab_size, (num_samples, length), generator=generator)
    lengths_B1 = 1 + torch.arange(num_samples)[:, None] * 7 % length
    attended_BT = torch.arange(length) < lengths_B1
    inputs = inputs_of(tokens_BT.masked_fill(~attended_BT, tokenizer.pad), attended_BT.long(), num_segments > 1)
    if num_segments > 1:
        inputs["token_type_ids"] = (torch.arange(length) * 2 >= lengths_B1).long() * attended_BT
    return inputs
