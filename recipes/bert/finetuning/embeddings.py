"""Embedding: a vector of a text, near to that of its pair and far from those of others."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit import Engine
from trainkit.data import Batch, Example
from trainkit.errors import DataError
from trainkit.evaluation import Better, HeldOutSamples, SampleRanks
from trainkit_recipes.bert.finetuning import metrics
from trainkit_recipes.bert.finetuning.model import Pooling
from trainkit_recipes.bert.finetuning.regression import number_of
from trainkit_recipes.bert.finetuning.samples import Encoder, Samples, text_of
from trainkit_recipes.bert.finetuning.task import Groups, Prediction, Purpose, Task, outputs_of
from trainkit_recipes.bert.finetuning.words import cosines

_METRIC = "held_out_spearman"


class Embedding(Task):
    """In-batch contrastive learning: each text must find its pair among the pairs of its group.

    A group is a fixed part of the global batch, the samples whose number in it has the same remainder, so the loss does
    not depend on how the batch is divided into ranks and micro-batches. Pairs that are the same text do not count as
    wrong ones.

    Args:
        train: the training examples, with pairs.
        positive_from: the score from which a training pair is similar; None: all are, and they have no scores.
        group_size: samples of a group.
        batch_size: of the global batch.
        temperature: what cosines are divided by.
        pooling: see `FineTuned`.

    Raises:
        DataError: for training pairs with scores and no `positive_from`, and for examples without a pair.
    """

    name = "sentence_embeddings"
    hub_name = "feature-extraction"
    best_metric, score = f"-{_METRIC}", _METRIC
    better: Mapping[str, Better] = {_METRIC: "higher"}
    num_outputs = 0

    def __init__(
        self,
        train: Sequence[Example],
        *,
        positive_from: float | None,
        group_size: int,
        batch_size: int,
        temperature: float,
        pooling: Pooling,
    ) -> None:
        self.pooling, self._positive_from, self._temperature = pooling, positive_from, temperature
        self._group_size, self._num_groups = group_size, batch_size // group_size
        scored = next((example for example in train if example.label not in (None, "")), None)
        if scored is not None and positive_from is None:
            raise DataError(
                f"{scored.where}: training pairs have scores: set recipe.positive_from to the score from which a pair "
                f"is similar, or give training pairs without scores and data.held_out_path with them"
            )

    def samples(self, examples: Sequence[Example], encoder: Encoder, purpose: Purpose) -> Samples:
        """Encodes the two texts of each example by themselves; see `Task`."""
        if purpose == "train":
            examples = [example for example in examples if self._is_positive(example)]
            if not examples:
                raise DataError(f"recipe.positive_from={self._positive_from:g}: no training pair has such a score")
        texts = [encoder.join(p) for p in encoder.pieces(examples, [text_of(e.text) for e in examples])]
        others = None
        if purpose != "predict" or any(example.pair is not None for example in examples):
            pairs = [_pair_of(example) for example in examples]
            others = [encoder.join(pieces) for pieces in encoder.pieces(examples, pairs)]
        targets: dict[str, Any] = {}
        if purpose == "train":
            numbers: dict[str, int] = {}
            targets["labels"] = torch.tensor([numbers.setdefault(pair, len(numbers)) for pair in pairs])
        elif purpose == "held_out":
            targets["labels"] = torch.tensor([number_of(example) for example in examples], dtype=torch.float64)
        return Samples(texts, encoder.tokenizer.pad, targets, others=others)

    def loss(self, engine: Engine, batch: Batch) -> tuple[Tensor, Tensor | float | None]:
        """Computes the cross-entropy of each text's own pair within its group; see `Task`."""
        first_BD = F.normalize(outputs_of(engine, batch), dim=-1)
        second_BD = F.normalize(outputs_of(engine, batch, "other_"), dim=-1)
        if len(batch) == 0:
            return (first_BD.sum() + second_BD.sum()) * 0.0, None
        groups_B = (batch.positions - batch.position) % self._num_groups
        order_B = torch.argsort(groups_B, stable=True).to(first_BD.device)
        shape = (-1, self._group_size, first_BD.shape[-1])
        first_GND, second_GND = first_BD[order_B].view(shape), second_BD[order_B].view(shape)
        labels_GN = batch.labels[order_B].view(-1, self._group_size)
        scores_GNN = first_GND @ second_GND.transpose(1, 2) / self._temperature
        is_same_GNN = labels_GN[:, :, None] == labels_GN[:, None, :]
        is_same_GNN &= ~torch.eye(self._group_size, dtype=torch.bool, device=scores_GNN.device)
        scores_GNN = scores_GNN.masked_fill(is_same_GNN, float("-inf"))
        own_N = torch.arange(self._group_size, device=scores_GNN.device)
        return F.cross_entropy(scores_GNN.flatten(0, 1), own_N.repeat(len(scores_GNN))), None

    def predictions(self, engine: Engine, batch: Batch, samples: Samples) -> list[Prediction]:
        """Computes the embeddings, and of pairs their cosine; see `Task`."""
        first_BD = F.normalize(outputs_of(engine, batch), dim=-1)
        if samples.others is None:
            values: Sequence[Any] = list(first_BD.double().cpu().numpy())
        else:
            second_BD = F.normalize(outputs_of(engine, batch, "other_"), dim=-1)
            values = (first_BD * second_BD).sum(dim=-1).tolist()
        return [Prediction(index, value) for index, value in zip(batch.indices.tolist(), values, strict=True)]

    def values(self, predictions: Sequence[Prediction], samples: Samples) -> list[float]:
        """Returns the cosines; see `Task`."""
        return [prediction.value for prediction in predictions]

    def measured(self, examples: Sequence[Example], values: Sequence[float]) -> dict[str, float]:
        """Measures how cosines are ordered beside the scores; see `Task`."""
        return {_METRIC: metrics.spearman([number_of(example) for example in examples], values)}

    def guesses(self, train: Sequence[Example], held_out: Sequence[Example]) -> dict[str, Sequence[float]]:
        """Returns the cosines of TF-IDF vectors; see `Task`."""
        known = [text for example in train for text in (text_of(example.text), _pair_of(example))]
        texts, pairs = [text_of(example.text) for example in held_out], [_pair_of(example) for example in held_out]
        return {"TF-IDF cosine": cosines(known, texts, pairs).tolist()}

    def held_out_samples(
        self, examples: Sequence[Example], values: Mapping[str | None, Sequence[float]], groups: Groups
    ) -> list[HeldOutSamples]:
        """Returns the scores and the cosines; see `Task`."""
        return [
            SampleRanks(
                name=_METRIC,
                truth=[number_of(example) for example in examples],
                predictions=values[None],
                beside={name: given for name, given in values.items() if name is not None},
                unit=groups.unit,
                groups=groups.numbers,
            )
        ]

    def rows(self, predictions: Sequence[Prediction], samples: Samples) -> list[dict[str, Any]]:
        """Returns the cosines of pairs, or the embeddings of texts."""
        if samples.others is not None:
            return [{"cosine": round(prediction.value, 6)} for prediction in predictions]
        return [{"embedding": [round(float(value), 6) for value in prediction.value]} for prediction in predictions]

    def _is_positive(self, example: Example) -> bool:
        return self._positive_from is None or number_of(example) >= self._positive_from


def _pair_of(example: Example) -> str:
    if example.pair is None:
        raise DataError(f"{example.where}: no second text; set data.pair=COLUMN")
    return text_of(example.pair)
