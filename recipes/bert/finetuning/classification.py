"""Classification: one class of a text or of a pair."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit import Engine
from trainkit.data import Batch, Example
from trainkit.errors import ConfigError, DataError, nearest
from trainkit.evaluation import Better, HeldOutSamples, SampleSums
from trainkit_recipes.bert.finetuning import metrics
from trainkit_recipes.bert.finetuning.model import Pooling
from trainkit_recipes.bert.finetuning.samples import Encoder, Samples, is_paired
from trainkit_recipes.bert.finetuning.task import Groups, Prediction, Purpose, Task, outputs_of
from trainkit_recipes.bert.finetuning.words import TextModel, majority

ClassWeights = str | dict[str, float]


class Classification(Task):
    """One class per text.

    Args:
        train: the training examples; empty: the classes are given.
        classes: in the order of the outputs; None: those of `train`, sorted.
        class_weights: `balanced`, or the weight of every class by name; None: all are 1.
        pooling: see `FineTuned`.

    Raises:
        ConfigError: for weights that name other classes, or are not above 0.
        DataError: for an example without a class or with another one, and for a class without an example.
    """

    name = "classification"
    hub_name = "text-classification"
    best_metric, score = "-held_out_accuracy", "held_out_accuracy"
    better: Mapping[str, Better] = {
        "held_out_accuracy": "higher",
        "held_out_macro_f1": "higher",
        "held_out_matthews": "higher",
    }

    def __init__(
        self,
        train: Sequence[Example],
        *,
        classes: Sequence[str] | None,
        class_weights: ClassWeights | None,
        pooling: Pooling,
    ) -> None:
        counts = Counter(class_of(example) for example in train)
        self.classes = tuple(sorted(counts, key=_natural) if classes is None else classes)
        self.num_outputs, self.pooling = len(self.classes), pooling
        if len(self.classes) < 2:
            raise DataError(
                f"data.label: the training examples have {len(self.classes)} class"
                f"{'' if len(self.classes) else 'es'} ({', '.join(self.classes)}); a classification needs 2 or more"
            )
        if train:
            require_known(train, self.classes)
            if empty := [name for name in self.classes if not counts[name]]:
                raise DataError(
                    f"class {empty[0]!r} of recipe.classes has no training example: add some, or leave it out"
                )
        self._weights = _weights(class_weights, self.classes, counts) if train else None

    def samples(self, examples: Sequence[Example], encoder: Encoder, purpose: Purpose) -> Samples:
        """Encodes examples; see `Task`."""
        targets: dict[str, Any] = {}
        if purpose != "predict":
            require_known(examples, self.classes)
            numbers = {name: number for number, name in enumerate(self.classes)}
            targets["labels"] = torch.tensor([numbers[class_of(example)] for example in examples], dtype=torch.int64)
        return Samples(encoder(examples), encoder.tokenizer.pad, targets, is_paired=is_paired(examples))

    def loss(self, engine: Engine, batch: Batch) -> tuple[Tensor, Tensor | float | None]:
        """Computes the cross-entropy; see `Task`."""
        outputs_BC = outputs_of(engine, batch)
        if self._weights is None:
            return F.cross_entropy(outputs_BC, batch.labels), None
        weights_C = self._weights.to(outputs_BC)
        total = F.cross_entropy(outputs_BC, batch.labels, weight=weights_C, reduction="sum")
        weight = weights_C[batch.labels].sum()
        return total / weight.clamp(min=1e-12), weight

    def predictions(self, engine: Engine, batch: Batch, samples: Samples) -> list[Prediction]:
        """Predicts the log-probabilities of the classes; see `Task`."""
        outputs_BC = outputs_of(engine, batch)
        log_shares_BC = outputs_BC.log_softmax(dim=-1)
        losses_B = [0.0] * len(batch)
        if "labels" in batch.data:
            losses_B = F.nll_loss(log_shares_BC, batch.labels, reduction="none").tolist()
        rows = log_shares_BC.double().cpu().numpy()
        return [Prediction(*row, 1.0) for row in zip(batch.indices.tolist(), rows, losses_B, strict=True)]

    def values(self, predictions: Sequence[Prediction], samples: Samples) -> list[int]:
        """Returns the numbers of the most likely classes; see `Task`."""
        return [int(prediction.value.argmax()) for prediction in predictions]

    def measured(self, examples: Sequence[Example], values: Sequence[int]) -> dict[str, float]:
        """Measures the numbers of classes; see `Task`."""
        return _measured(self._numbers(examples), values)

    def guesses(self, train: Sequence[Example], held_out: Sequence[Example]) -> dict[str, Sequence[int]]:
        """Returns the majority class, and those of TF-IDF with a logistic regression; see `Task`."""
        labels = [class_of(example) for example in train]
        linear = TextModel.classifier(train, labels).predict(held_out)
        return {
            "majority class": [self.classes.index(majority(labels))] * len(held_out),
            "TF-IDF + logistic regression": [self.classes.index(label) for label in linear],
        }

    def held_out_samples(
        self, examples: Sequence[Example], values: Mapping[str | None, Sequence[int]], groups: Groups
    ) -> list[HeldOutSamples]:
        """Returns counts of right and predicted classes by example; see `Task`."""
        truth, num = self._numbers(examples), len(self.classes)
        rows = {name: metrics.class_counts(truth, given, num) for name, given in values.items()}
        samples = SampleSums(
            rows=rows.pop(None),
            of_sums=lambda sums: {f"held_out_{name}": value for name, value in metrics.of_class_counts(sums).items()},
            beside={name: of for name, of in rows.items() if name is not None},
            shares={"held_out_accuracy": 3 * num},
        )
        return [samples.of_groups(groups.numbers, groups.unit)]

    def _numbers(self, examples: Sequence[Example]) -> list[int]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers[class_of(example)] for example in examples]

    def rows(self, predictions: Sequence[Prediction], samples: Samples) -> list[dict[str, Any]]:
        """Returns the class and the probabilities of all."""
        return [
            {
                "prediction": self.classes[int(prediction.value.argmax())],
                **{
                    f"p({name})": round(float(p), 6)
                    for name, p in zip(self.classes, np.exp(prediction.value), strict=True)
                },
            }
            for prediction in predictions
        ]

    def state_dict(self) -> dict[str, Any]:
        """Returns the classes."""
        return {"classes": list(self.classes)}


def class_of(example: Example) -> str:
    """Returns the class of an example as text.

    Raises:
        DataError: for an example without one.
    """
    label = example.label
    if label is None or label == "" or (isinstance(label, float) and label != label):
        raise DataError(f"{example.where}: no label; give it one, remove the row, or set data.label=COLUMN")
    if isinstance(label, list | dict):
        raise DataError(f"{example.where}: the label is a {type(label).__name__}, not a class; set data.label=COLUMN")
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def require_known(examples: Sequence[Example], classes: Sequence[str]) -> None:
    """Requires that every class is one of `classes`. Raises DataError naming the first example where it is not."""
    known = frozenset(classes)
    for example in examples:
        label = class_of(example)
        if label not in known:
            shown = ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else "")
            raise DataError(
                f"{example.where}: label {label!r} is not one of the {len(classes)} classes, {shown}; correct the row, "
                f"or add training examples of it.{nearest(label, classes)}"
            )


def _measured(truth: Any, predictions: Sequence[int]) -> dict[str, float]:
    truth = np.asarray(truth)
    return {
        "held_out_accuracy": metrics.accuracy(truth, predictions),
        "held_out_macro_f1": metrics.macro_f1(truth, predictions),
        "held_out_matthews": metrics.matthews(truth, predictions),
    }


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before other names."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _weights(given: ClassWeights | None, classes: Sequence[str], counts: Mapping[str, int]) -> Tensor | None:
    if given is None:
        return None
    if given == "balanced":  # as scikit-learn's: each class counts the same
        total = sum(counts.values())
        return torch.tensor([total / (len(classes) * counts[name]) for name in classes], dtype=torch.float64)
    if isinstance(given, str):
        raise ConfigError(f"recipe.class_weights={given!r}: must be balanced, null, or a weight for every class")
    if wrong := sorted(set(map(str, given)) ^ set(classes)):
        raise ConfigError(
            f"recipe.class_weights names {', '.join(map(str, given))}; it must name every class once: "
            f"{', '.join(classes)}.{nearest(wrong[0], classes)}"
        )
    weights = {str(name): float(weight) for name, weight in given.items()}
    if wrong := [name for name, weight in weights.items() if not 0 < weight < float("inf")]:
        raise ConfigError(f"recipe.class_weights: {wrong[0]} is {weights[wrong[0]]}; a weight must be above 0")
    return torch.tensor([weights[name] for name in classes], dtype=torch.float64)
