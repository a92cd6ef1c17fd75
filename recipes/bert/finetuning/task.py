"""Task: what is predicted of a text, how a prediction is trained, and how it is measured."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainkit import Engine
from trainkit.data import Batch, Example
from trainkit.evaluation import Better, HeldOutSamples
from trainkit_recipes.bert.finetuning.model import Pooling
from trainkit_recipes.bert.finetuning.samples import Encoder, Samples

Baselines = Mapping[str, Mapping[str, float]]
Purpose = Literal["train", "held_out", "predict"]


@dataclass(frozen=True)
class Groups:
    """Held-out examples that belong together, and are resampled together.

    Args:
        unit: what a group is, in the plural; without groups, an example.
        numbers: [N], the group of each example, from 0 on; None: each is by itself.
    """

    unit: str = "samples"
    numbers: NDArray[np.int64] | None = None

    @classmethod
    def by(cls, keys: Sequence[Any], unit: str) -> "Groups":
        """Makes those of examples that have one key, such as their context."""
        known: dict[Any, int] = {}
        return cls(unit, np.array([known.setdefault(key, len(known)) for key in keys], np.int64))


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
    hub_name: str
    """What Hugging Face calls it."""
    best_metric: str
    """As of Recipe."""
    score: str
    """A metric without units, at most 1, which is best: a drop of it means the same whatever the targets are."""
    better: Mapping[str, Better]
    """As of Recipe."""
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
    def values(self, predictions: Sequence[Prediction], samples: Samples) -> Sequence[Any]:
        """Returns what is measured, one value for each example, of the predictions of all ranks in order."""

    @abstractmethod
    def measured(self, examples: Sequence[Example], values: Sequence[Any]) -> dict[str, float]:
        """Measures values against the labels of their examples."""

    @abstractmethod
    def guesses(self, train: Sequence[Example], held_out: Sequence[Example]) -> dict[str, Sequence[Any]]:
        """Returns the values that baselines give for the held-out examples, by name; slow, and called once."""

    @abstractmethod
    def held_out_samples(
        self, examples: Sequence[Example], values: Mapping[str | None, Sequence[Any]], groups: Groups
    ) -> list[HeldOutSamples]:
        """Returns what `measured` is of, example by example.

        Args:
            examples: the held-out ones.
            values: for them: of the model by None, of baselines by name.
            groups: of the examples.
        """

    def groups(self, examples: Sequence[Example]) -> Groups:
        """Returns the examples that belong together."""
        return Groups()

    def examples_of(self, predictions: Sequence[Prediction], samples: Samples) -> NDArray[np.int64]:
        """Returns the number of the example that each prediction is of."""
        return np.array([prediction.index for prediction in predictions], np.int64)

    def baselines(self, guesses: Mapping[str, Sequence[Any]], held_out: Sequence[Example]) -> Baselines:
        """Measures the guesses of baselines, by metric and name."""
        found: dict[str, dict[str, float]] = {}
        for name, values in guesses.items():
            for metric, value in self.measured(held_out, values).items():
                found.setdefault(metric, {})[name] = value
        return found

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
