"""Task: what is predicted of a text, how a prediction is trained, and how it is measured."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from trainkit import Engine
from trainkit.data import Batch, Example
from trainkit_recipes.bert.finetuning.model import Pooling
from trainkit_recipes.bert.finetuning.samples import Encoder, Samples

Baselines = Mapping[str, Mapping[str, float]]
Purpose = Literal["train", "held_out", "predict"]


@dataclass(frozen=True)
class Prediction:
    """What a model has computed of one held-out sample.

    Args:
        index: of the sample.
        value: the prediction, as plain Python and numpy values.
        loss: summed over the items of the sample.
        weight: how many items the loss is a sum over.
    """

    index: int
    value: Any
    loss: float = 0.0
    weight: float = 0.0


class Task(ABC):
    """A subclass is made from the training examples, or from the state of a checkpoint."""

    name: str
    best_metric: str
    """As of Recipe."""
    score: str
    """A metric without units, at most 1, which is best: a drop of it means the same whatever the targets are."""
    num_outputs: int
    """Of the head; 0: none."""
    pooling: Pooling | None
    """None: the head runs on every token."""
    centre: float = 0.0
    """Added to the outputs of the head, after `scale`."""
    scale: float = 1.0
    """Which the outputs of the head are multiplied by."""

    @abstractmethod
    def samples(self, examples: Sequence[Example], encoder: Encoder, purpose: Purpose) -> Samples:
        """Encodes examples, and unless for `predict` their targets. Raises DataError naming an example without one."""

    @abstractmethod
    def loss(self, engine: Engine, batch: Batch) -> tuple[Tensor, Tensor | float | None]:
        """Computes the mean loss of a micro-batch, and what it is a mean over (see `Engine.backward`). Collective."""

    @abstractmethod
    def predictions(self, engine: Engine, batch: Batch, samples: Samples) -> list[Prediction]:
        """Predicts this rank's samples of a held-out batch. Collective."""

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction], samples: Samples) -> dict[str, float]:
        """Measures the predictions of all ranks, in the order of the samples."""

    @abstractmethod
    def baselines(self, train: Sequence[Example], held_out: Sequence[Example]) -> Baselines:
        """Measures baselines, by metric and name; slow, and called once."""

    @abstractmethod
    def rows(self, predictions: Sequence[Prediction], samples: Samples) -> list[dict[str, Any]]:
        """Returns the predictions of all examples as they are written for a user, by column."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what makes the task again; JSON-able."""
        return {}


def outputs_of(engine: Engine, batch: Batch, prefix: str = "") -> Tensor:
    """Computes the outputs of a batch's texts, or of those in the columns with a prefix. Collective."""
    columns = [f"{prefix}tokens", f"{prefix}lengths"]
    outputs: Tensor = engine(*(batch.data[name] for name in columns), batch.positions, batch.data.get("firsts"))
    return outputs
