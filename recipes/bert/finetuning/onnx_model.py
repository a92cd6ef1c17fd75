"""What the ONNX file of a fine-tuned model is: its inputs and outputs, and how it is measured.

Shape suffixes: B samples, T tokens, D hidden size, C outputs.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainkit.export import OnnxModel, Predict
from trainkit_recipes.bert.finetuning.lora import merged
from trainkit_recipes.bert.finetuning.model import FineTuned
from trainkit_recipes.bert.onnx_model import AT_ONCE, NUM_CALIBRATED, metadata_of, text_inputs

if TYPE_CHECKING:
    from trainkit_recipes.bert.finetuning.recipe import FineTuning


class WithOutputs(nn.Module):
    """A fine-tuned model called as transformers calls it.

    Args:
        model: without low-rank updates beside its matrices, or with.
        vocab_size: number of tokens.
    """

    def __init__(self, model: FineTuned, vocab_size: int) -> None:
        super().__init__()
        self.encoder, self.head, self.pooling = merged(model.encoder, vocab_size), model.head, model.pooling
        self.register_buffer("centre", model.centre)
        self.register_buffer("scale", model.scale)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Returns [B, C] with a pooling, [B, T, C] without; of a model without a head, [B, D]."""
        attended_BT = attention_mask.bool()
        hidden = self.encoder(input_ids, attended_BT, token_type_ids)
        if self.pooling == "mean":
            counted_BT1 = attention_mask[..., None].to(hidden.dtype)
            hidden = (hidden * counted_BT1).sum(dim=1) / counted_BT1.sum(dim=1)
        elif self.pooling == "first":
            hidden = hidden[:, 0] if self.head is None else self.encoder.pool(hidden)
        return hidden if self.head is None else self.head(hidden) * self.scale + self.centre


class _Computed:
    """In the place of an engine, what a file computes, for the metrics of a task."""

    def __init__(self, predict: Predict, module: FineTuned, has_segments: bool) -> None:
        self.predict, self.module, self.has_segments = predict, module, has_segments

    def __call__(self, tokens_BT: Tensor, lengths_B: Tensor, _: Tensor, firsts_B: Tensor | None = None) -> Tensor:
        inputs = inputs_of(tokens_BT, lengths_B, firsts_B, self.has_segments)
        return self.predict(inputs)[0].to(self.module.scale.dtype)


def inputs_of(tokens_BT: Tensor, lengths_B: Tensor, firsts_B: Tensor | None, has_segments: bool) -> dict[str, Tensor]:
    """Returns inputs by name, of the arguments of `FineTuned`."""
    positions_T = torch.arange(tokens_BT.shape[1])
    attended_BT = positions_T < lengths_B[:, None]
    inputs = {"input_ids": tokens_BT, "attention_mask": attended_BT.long()}
    if not has_segments:
        return inputs
    firsts_B = lengths_B if firsts_B is None else firsts_B
    return {**inputs, "token_type_ids": ((positions_T >= firsts_B[:, None]) & attended_BT).long()}


def onnx_model(recipe: "FineTuning", module: FineTuned) -> OnnxModel:
    """Describes the ONNX file of a fine-tuned model.

    Args:
        recipe: with data, where int8 is wanted.
        module: with the weights to export.

    Returns:
        The description; what is measured is the score of the task.
    """
    task, architecture, runtime = recipe.task, module.encoder.architecture, recipe.runtime
    has_segments = architecture.num_segments > 1

    def measure(predict: Predict) -> float:
        samples = recipe.datasets.held_out
        engine: Any = _Computed(predict, module, has_segments)
        predictions = []
        for batch in runtime.evaluation_batches(samples, batch_size=AT_ONCE):
            predictions += task.predictions(engine, batch, samples)
        ordered = sorted(predictions, key=lambda prediction: prediction.index)
        return task.measured(recipe.held_out_examples, task.values(ordered, samples))[task.score]

    def calibration() -> Iterator[Mapping[str, Tensor]]:
        batches = runtime.evaluation_batches(recipe.datasets.held_out, batch_size=AT_ONCE)
        for _, batch in zip(range(NUM_CALIBRATED // AT_ONCE), batches, strict=False):
            yield inputs_of(batch.tokens, batch.lengths, batch.data.get("firsts"), has_segments)

    return OnnxModel(
        module=WithOutputs(module, recipe.tokenizer.vocab_size),
        outputs=("embeddings" if module.head is None else "logits",),
        metadata={"task": task.name, **_classes(recipe), **metadata_of(recipe.tokenizer, architecture)},
        measure=measure,
        measured=task.score,
        calibration=calibration,
        **text_inputs(architecture, recipe.tokenizer),
    )


def _classes(recipe: "FineTuning") -> dict[str, str]:
    classes = recipe.task.state_dict().get("classes")
    return {} if classes is None else {"classes": "\n".join(classes)}
