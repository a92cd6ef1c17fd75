"""Next-sentence prediction: whether the second segment of a window follows the first (BERT, section 3.1).

Shape suffixes: B samples, T tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainkit import Runtime
from trainkit.data import Batch, Text
from trainkit.errors import ConfigError, DataError
from trainkit_recipes.bert.documents import Documents
from trainkit_recipes.bert.model import Architecture, MaskedLanguageModel, initialise

LABEL = "next_sentence_label"
ACCURACY = "held_out_next_sentence_accuracy"


class PreTrainingModel(MaskedLanguageModel):
    """BERT with both of its heads: for masked tokens, and for the next sentence.

    Args:
        architecture: the shape of the encoder, with a pooler.
        vocab_size: number of tokens.
    """

    def __init__(self, architecture: Architecture, vocab_size: int) -> None:
        super().__init__(architecture, vocab_size)
        self.next_sentence = nn.Linear(architecture.hidden_size, 2)
        initialise(self.next_sentence, architecture.init_std)

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        chosen: Tensor | None = None,
        attended_BT: Tensor | None = None,
        segments: Tensor | None = None,
        documents: Documents | None = None,
        pairs: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Computes logits as a `MaskedLanguageModel` does; with `pairs` also those of the next sentence, [B, 2].

        The first of the two says that the second segment follows the first.
        """
        if not pairs:
            return super().forward(tokens, chosen, attended_BT, segments, documents)
        wanted = None if chosen is None else F.pad(chosen, (1, 0))  # [CLS], too
        hidden = self.encoder(tokens, attended_BT, segments, documents, wanted)
        masked = hidden if chosen is None else hidden[:, 1:]
        logits = self.head(masked, self.encoder.embeddings.token.weight)
        return logits, self.next_sentence(self.encoder.pool(hidden))


def with_pairs(data: Any, model: Architecture) -> tuple[Any, Architecture]:
    """Returns the data in pairs, and the model with a pooler and two segments.

    Args:
        data: a `Text`, or another specification, which is returned as it is.
        model: the shape of the encoder.

    Raises:
        ConfigError: for a model of one segment, and for text whose documents are kept apart.
    """
    if model.num_segments == 1:
        raise ConfigError(
            "recipe.model.num_segments=1: next-sentence prediction has two segments; set it to 2, or, with weights of "
            "one segment, recipe.next_sentence=false"
        )
    model = replace(model, pooler=True, num_segments=max(2, model.num_segments))
    if not isinstance(data, Text) or data.documents == "pairs":
        return data, model
    if data.documents != "joined":
        raise ConfigError(
            f"recipe.next_sentence=true with data.documents={data.documents}: its windows are pairs of segments; leave "
            f"data.documents out, or set recipe.next_sentence=false"
        )
    return replace(data, documents="pairs"), model


def check_pairs(dataset: Any, model: Architecture, next_sentence: bool) -> None:
    """Requires that the samples of a data set and the model have the parts that pairs need.

    Raises:
        DataError: for samples that are no pairs, where the model predicts the next sentence.
        ConfigError: for samples of two segments and a model with one.
    """
    sample = dataset[0]
    has_segments = isinstance(sample, Mapping) and "segments" in sample
    if next_sentence and not (has_segments and LABEL in sample):
        raise DataError(
            f'recipe.next_sentence=true: samples of {type(dataset).__name__} have no "segments" and "{LABEL}": use '
            f"data=text or data=nvidia_bert"
        )
    if next_sentence and "documents" in sample:
        raise DataError(
            f"recipe.next_sentence=true: samples of {type(dataset).__name__} are windows of several documents; use "
            f"data=text or data=nvidia_bert"
        )
    if has_segments and model.num_segments == 1:
        raise ConfigError(
            "recipe.model.num_segments=1: samples have two segments; set it to 2, or to 0 for a model without segments"
        )


def majority(batches: Iterable[Batch], runtime: Runtime) -> dict[str, float]:
    """Measures always naming the more frequent label of held-out pairs. Collective: every rank must call."""
    sums: dict[str, Tensor | float] = {"other": 0.0, "all": 0.0}
    for batch in batches:
        labels_B = batch.data[LABEL]
        sums["other"] += labels_B.sum()
        sums["all"] += torch.tensor(len(labels_B))
    totals = runtime.ranks.all_reduce_sum(sums)
    return {"majority class": max(totals["other"], totals["all"] - totals["other"]) / totals["all"]}
