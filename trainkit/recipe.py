"""Recipe: what a run computes. The Trainer decides when."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainkit.data.batch import Batch
from trainkit.data.datasets import Datasets
from trainkit.engine.engine import Engine

if TYPE_CHECKING:
    from trainkit.runtime import Runtime


class Recipe(ABC):
    """A subclass takes the runtime and typed keyword arguments: those are the keys of its `conf/recipe/*.yaml`."""

    runtime: "Runtime"
    num_samples: int
    """The position at which training ends."""
    datasets: Datasets | None = None
    """What it trains and measures on, where it uses one of these: a Trainer says what is in it."""
    length_key: str | None = "recipe.num_steps"
    """The key that makes a run longer, named where one that has ended is started again; None: there is none."""
    best_metric: str | None = None
    """The metric of `evaluate` by which the best checkpoint is kept: lower is better, or higher after a `-`."""

    @abstractmethod
    def engines(self) -> dict[str, Engine]:
        """The engines by name, as checkpoints hold them."""

    @abstractmethod
    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Global batches from position `start` on."""

    def dearest_batches(self) -> Iterator[Batch]:
        """Batches of the steps that take most memory, for `grad_accumulation_steps=auto`; by default the first ones."""
        return self.batches(0)

    @abstractmethod
    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """One step of every engine that is due, and what to log of it. Collective: every rank calls.

        Called once more, with nothing being updated, for a batch whose loss or gradient is not finite.
        """

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Measures on held-out data, the same on every rank. Collective: every rank calls."""

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """metric of `evaluate` -> name -> what it is to be held against, the same on every rank. Collective.

        Such as `{"accuracy": {"most frequent class": 0.61}}`: curve.png draws it as a dashed line. Asked for at every
        evaluation of a Trainer, and told when it has changed.
        """
        return {}

    @classmethod
    def restored_arguments(cls, state: Mapping[str, Any], data: Any) -> dict[str, Any] | None:
        """Arguments in place of the configured ones where a trained recipe is made, to be filled from a checkpoint.

        state: of that checkpoint.  data: the specification that is configured; None: only the trained engines are
        wanted. Returns None where the recipe cannot be made without data: its own are then read.
        """
        return None if data is None else {"data": data}

    def costs(self) -> list[tuple[int, float]]:
        """(position, cost) in order, up to `num_samples`: each sample before that position costs so much, in any unit.

        For the time left where steps become slower, as a growing network's do. Nothing: all samples cost the same.
        """
        return []

    def fingerprints(self) -> dict[str, str]:
        """What tells the data of this run from others, such as {"train": ..., "held_out": ...}; see `data.fingerprint`.

        Checkpoints hold them: a run goes on with the data that it began with, and metrics of other held-out data are
        not compared. By default those of `datasets`; nothing, where a recipe says nothing.
        """
        return self.datasets.fingerprints() if isinstance(self.datasets, Datasets) else {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: what else to remember, such as a growth phase."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  (optional)
        """Comes before the engines are filled: the place to make engines of the right shape."""

    def next_commands(self, run_dir: Path) -> list[list[str]]:
        """What to type to use the run in `run_dir`, each command as its words; printed when it ends. Rank 0.

        A first word `python` or `trainkit` becomes what starts it where the user stands. `trainkit evaluate` follows by
        itself.
        """
        return []

    def finish(self) -> None:  # noqa: B027  (optional)
        """The end of a run: show what was learnt. Collective: every rank calls."""
