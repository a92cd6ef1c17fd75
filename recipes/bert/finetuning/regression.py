"""Regression: a number of a text or of a pair."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainkit import Engine
from trainkit.data import Batch, Example
from trainkit.errors import DataError
from trainkit.evaluation import Better, HeldOutSamples, SampleRanks, SampleSums
from trainkit_recipes.bert.finetuning import metrics
from trainkit_recipes.bert.finetuning.model import Pooling
from trainkit_recipes.bert.finetuning.samples import Encoder, Samples, is_paired
from trainkit_recipes.bert.finetuning.task import Baselines, Groups, Prediction, Purpose, Task, outputs_of
from trainkit_recipes.bert.finetuning.words import TextModel

MEAN = "mean"


class Regression(Task):
    """One number per text. The loss is the squared error in units of the training targets' standard deviation.

    Args:
        train: the training examples; empty: `centre` and `scale` come with the weights of a checkpoint.
        pooling: see `FineTuned`.

    Raises:
        DataError: for a target that is no number, and for targets that are all equal.
    """

    name = "regression"
    hub_name = "text-classification"
    best_metric, score = "held_out_mse", "held_out_r2"
    better: Mapping[str, Better] = {
        "held_out_mse": "lower",
        "held_out_r2": "higher",
        "held_out_pearson": "higher",
        "held_out_spearman": "higher",
    }
    num_outputs = 1

    def __init__(self, train: Sequence[Example], *, pooling: Pooling) -> None:
        self.pooling = pooling
        targets = [number_of(example) for example in train] or [0.0, 2.0]
        self.centre, self.scale = float(np.mean(targets)), float(np.std(targets))
        if self.scale == 0:
            raise DataError(f"data.label: all training targets are {targets[0]:g}, so there is nothing to learn")

    def samples(self, examples: Sequence[Example], encoder: Encoder, purpose: Purpose) -> Samples:
        """Encodes examples; see `Task`."""
        targets: dict[str, Any] = {}
        if purpose != "predict":
            targets["labels"] = torch.tensor([number_of(example) for example in examples], dtype=torch.float64)
        return Samples(encoder(examples), encoder.tokenizer.pad, targets, is_paired=is_paired(examples))

    def loss(self, engine: Engine, batch: Batch) -> tuple[Tensor, Tensor | float | None]:
        """Computes the mean squared error; see `Task`."""
        return self._errors(engine, self._outputs(engine, batch), batch).mean(), None

    def predictions(self, engine: Engine, batch: Batch, samples: Samples) -> list[Prediction]:
        """Predicts numbers; see `Task`."""
        outputs_B = self._outputs(engine, batch)
        losses = self._errors(engine, outputs_B, batch).tolist() if "labels" in batch.data else [0.0] * len(batch)
        rows = zip(batch.indices.tolist(), outputs_B.tolist(), losses, strict=True)
        return [Prediction(*row, 1.0) for row in rows]

    def values(self, predictions: Sequence[Prediction], samples: Samples) -> list[float]:
        """Returns the numbers; see `Task`."""
        return [prediction.value for prediction in predictions]

    def measured(self, examples: Sequence[Example], values: Sequence[float]) -> dict[str, float]:
        """Measures numbers; see `Task`."""
        return _measured([number_of(example) for example in examples], values)

    def guesses(self, train: Sequence[Example], held_out: Sequence[Example]) -> dict[str, Sequence[float]]:
        """Returns the mean, and the numbers of TF-IDF with a ridge regression; see `Task`."""
        targets = [number_of(example) for example in train]
        linear = TextModel.regressor(train, targets).predict(held_out)
        return {"TF-IDF + ridge regression": linear.tolist(), MEAN: [float(np.mean(targets))] * len(held_out)}

    def baselines(self, guesses: Mapping[str, Sequence[float]], held_out: Sequence[Example]) -> Baselines:
        """Measures the guesses of baselines, of the mean its error alone: it has no correlation; see `Task`."""
        found = super().baselines(guesses, held_out)
        return {
            metric: {name: value for name, value in values.items() if name != MEAN or metric == "held_out_mse"}
            for metric, values in found.items()
        }

    def held_out_samples(
        self, examples: Sequence[Example], values: Mapping[str | None, Sequence[float]], groups: Groups
    ) -> list[HeldOutSamples]:
        """Returns moments, and for Spearman's correlation the numbers; see `Task`."""
        truth, others = [number_of(example) for example in examples], {**values}
        rows = {name: metrics.moments(truth, given) for name, given in others.items()}
        own, ours = rows.pop(None), others.pop(None)
        sums = SampleSums(
            rows=own,
            of_sums=lambda sums: {f"held_out_{name}": value for name, value in metrics.of_moments(sums).items()},
            beside={name: of for name, of in rows.items() if name is not None},
        )
        ranks = SampleRanks(
            name="held_out_spearman",
            truth=truth,
            predictions=ours,
            beside={name: given for name, given in others.items() if name is not None},
            unit=groups.unit,
            groups=groups.numbers,
        )
        return [sums.of_groups(groups.numbers, groups.unit), ranks]

    def rows(self, predictions: Sequence[Prediction], samples: Samples) -> list[dict[str, Any]]:
        """Returns the numbers."""
        return [{"prediction": prediction.value} for prediction in predictions]

    @staticmethod
    def _outputs(engine: Engine, batch: Batch) -> Tensor:
        outputs_B1: Tensor = outputs_of(engine, batch)
        return outputs_B1.squeeze(-1)

    @staticmethod
    def _errors(engine: Engine, outputs_B: Tensor, batch: Batch) -> Tensor:
        return ((outputs_B - batch.labels.to(outputs_B.dtype)) / engine.module.scale).square()


def number_of(example: Example) -> float:
    """Returns the target of an example.

    Raises:
        DataError: for one that is not a finite number.
    """
    try:
        value = float(example.label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{example.where}: the target is {example.label!r}, not a finite number; correct or remove the row, or set "
            f"data.label=COLUMN"
        )
    return value


def _measured(truth: Any, predictions: Any) -> dict[str, float]:
    truth, predictions = np.asarray(truth, np.float64), np.asarray(predictions, np.float64)
    return {
        "held_out_mse": float(np.square(truth - predictions).mean()),
        "held_out_r2": metrics.r2(truth, predictions),
        "held_out_pearson": metrics.pearson(truth, predictions),
        "held_out_spearman": metrics.spearman(truth, predictions),
    }
