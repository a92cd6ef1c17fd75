"""Recipe: what a run computes. The Trainer decides when."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainkit import checkpoint
from trainkit.checkpoint import run_directory
from trainkit.config import flat
from trainkit.data.batch import Batch
from trainkit.data.datasets import Datasets
from trainkit.encryption import use_identity_of
from trainkit.engine.engine import Engine
from trainkit.errors import ConfigError
from trainkit.evaluation import Better, HeldOutSamples
from trainkit.tracking.means import Last

if TYPE_CHECKING:
    from trainkit.export import Exporter
    from trainkit.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run whose steps need memory of their own, such as one resolution of a growing network.

    Args:
        name: of the stage, such as `8x8`.
        batch_size: samples in a global batch.
        grad_accumulation_steps: micro-batches in a step.
    """

    name: str
    batch_size: int
    grad_accumulation_steps: int


class Recipe(ABC):
    """A subclass takes the runtime and typed keyword arguments: those are the keys of its `conf/recipe/*.yaml`."""

    runtime: "Runtime"
    num_samples: int
    """The position at which training ends."""
    datasets: Datasets | None = None
    """What it trains and measures on, where it uses one of these: a Trainer says what is in it."""
    length_key: str | None = "recipe.num_steps"
    """The key that makes a run longer, named where one that has ended is started again; None: there is none."""
    restarts_schedules: bool = False
    """Whether learning-rate schedules restart within a run: `minutes` could not compress them."""
    best_metric: str | None = None
    """The metric of `evaluate` by which the best checkpoint is kept: lower is better, or higher after a `-`."""
    better: Mapping[str, Better] = {}
    """By metric with baselines, whether `lower` or `higher` is better; of `best_metric` its sign says so."""
    ideals: tuple[str, ...] = ()
    """Names in `baselines` that no model is to beat, such as real images against real ones: shown beside, no more."""
    task_name: str | None = None
    """What Hugging Face calls the task, such as `fill-mask`, for model cards; None: it has no name there."""
    implied_keys: tuple[str, ...] = ()
    """The dotted names that `implied_arguments` may return: a resumed run takes them from its checkpoint."""
    start_keys: tuple[str, ...] = ()
    """The arguments that say what untrained engines start from: a resumed run takes them from `restored_arguments`."""

    @abstractmethod
    def engines(self) -> dict[str, Engine]:
        """The engines by name, as checkpoints hold them."""

    @abstractmethod
    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Global batches from position `start` on. Collective: every rank must call.

        Args:
            start: samples before the first batch.

        Returns:
            This rank's share of each, as `Runtime.batches` gives it.
        """

    def stages(self) -> Mapping[int, Stage]:
        """The parts of the run that have a number of micro-batches of their own, by key; none: one number for all.

        `grad_accumulation_steps` is then a mapping from key to number, and `auto` finds each.
        """
        return {}

    def dearest_batches(self) -> Iterator[Batch]:
        """Batches of the steps that take most memory, for `grad_accumulation_steps=auto`; by default the first ones.

        Collective: every rank must call.
        """
        return self.batches(0)

    def dearest_batches_of(self, stage: int) -> Iterator[Batch]:
        """The batches of one of `stages()` that are tried, and makes its engines. Collective: every rank must call.

        Args:
            stage: its key.

        Returns:
            At least two: from the second step on the optimizer has its state.
        """
        raise NotImplementedError(f"{type(self).__name__} has stages() without dearest_batches_of()")

    def may_outgrow_memory(self, batch: Batch) -> bool:
        """Whether the step of `batch` is one of the first of a stage, which may need more memory than there is.

        A Trainer makes such a step again, after `split_further`, where it ran out of memory on some rank. The answer
        must be a function of the batch's position.
        """
        return False

    def split_further(self) -> None:
        """Makes the engines anew, with more micro-batches, for a stage that does not fit into memory. Collective.

        `state_dict` must hold the number. Called where `may_outgrow_memory` is true only.

        Raises:
            ConfigError: where there can be no more; on every rank.
        """
        raise NotImplementedError(f"{type(self).__name__} has may_outgrow_memory() without split_further()")

    @abstractmethod
    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        """Updates every engine that is due. Collective: every rank must call.

        Called once more, with nothing being updated, for a batch whose loss or gradient is not finite.

        Args:
            batch: this rank's share of a global batch.

        Returns:
            What to log of the step, by name.
        """

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Evaluates on held-out data. Collective: every rank must call.

        Returns:
            Metrics by name, the same on every rank.
        """

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Baselines of the metrics, such as `{"accuracy": {"most frequent class": 0.61}}`. Collective.

        A Trainer calls it at every evaluation, and logs baselines that changed; curve.png draws them as dashed lines.
        A run ends with the verdict whether the model beats those of its `best_metric`, or of the first metric that has
        some; `better` and `ideals` say how they are compared.

        Returns:
            For a metric of `evaluate`, values by name, the same on every rank.
        """
        return {}

    def held_out_samples(self) -> Sequence[HeldOutSamples]:
        """What the metrics of the last `evaluate` are of, sample by sample, for their intervals. Collective.

        Called after `evaluate` and `baselines`. Metrics that are in none of them, such as distances between sets of
        images, get no interval.

        Returns:
            Samples of all ranks, the same on every rank and in the same order on any number of them; see
            `trainkit.evaluation.in_order`.
        """
        return ()

    @classmethod
    def implied_arguments(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that `weights` imply, such as the shape of a model; called where a configuration has `weights`.

        Args:
            given: the arguments as configured, nodes as mappings.

        Returns:
            Values by dotted name, such as `model.hidden_size`. They replace those of files; what is typed stays, and
            `__init__` refuses what contradicts.
        """
        return {}

    @classmethod
    def implied_by(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that a configuration with `weights` implies.

        Args:
            config: the whole one, resolved.

        Returns:
            Those of `implied_arguments`; for a run that is resumed, the `implied_keys` of its checkpoint, since the
            weights may be gone or have changed.

        Raises:
            CheckpointError: where the run that is resumed has no checkpoint that can be read.
            ConfigError: for `resume=never` in a run directory that has checkpoints.
        """
        use_identity_of(config)
        manifest = checkpoint.manifest_to_resume(
            str(config["resume"]), run_directory.known(config["run_dir"]), config.get("copy_to")
        )
        if manifest is None:
            return cls.implied_arguments(config["recipe"])
        stored = manifest["values"].get("config") or {}
        trained = flat(stored.get("recipe") or {})
        return {name: trained[name] for name in cls.implied_keys if name in trained}

    def generate(self, numbers: Sequence[int], labels: Sequence[int] | None = None) -> Tensor:
        """Generates images, for `trainkit data augment`. Collective: every rank must call.

        Args:
            numbers: of the images: a number, with a label, is always the same image.
            labels: of each, an index into `datasets.classes`; None where there are none.

        Returns:
            uint8 [len(numbers), C, H, W].

        Raises:
            ConfigError: a recipe that does not implement it generates no images.
        """
        raise ConfigError(f"{type(self).__name__} generates no images: give a run of recipe=progressive_gan")

    def exporters(self) -> "Mapping[str, Exporter]":
        """The formats that `trainkit export RUN --to FORMAT TARGET` writes, and what writes them.

        Returns:
            By format, a function that writes to `export.target` and yields lines for the user; see `trainkit.export`.
        """
        return {}

    @classmethod
    def restored_arguments(cls, state: Mapping[str, Any], data: Any) -> dict[str, Any] | None:
        """Arguments that replace the configured ones where a recipe is made to be filled from a checkpoint.

        Args:
            state: of the checkpoint.
            data: the configured data; None: only the trained engines are needed.

        Returns:
            The arguments; None where the recipe cannot be made without data, which are then read.
        """
        return None if data is None else {"data": data}

    def costs(self) -> list[tuple[int, float]]:
        """The relative cost of samples, for the time left where steps become slower, as a growing network's do.

        Returns:
            (position, cost) in order, up to `num_samples`: each sample before that position costs so much, in any unit.
            Empty: all samples cost the same.
        """
        return []

    def milestones(self) -> list[tuple[int, str]]:
        """The parts of the run that readers of its curves should know, such as the phases of a growing network.

        Returns:
            The position at which each begins, in order, and its name; drawn as vertical lines.
        """
        return []

    def epochs_at(self, position: int) -> float | None:
        """Passes over the training data of `datasets` before a position; None: not known."""
        train: Any = self.datasets.train if isinstance(self.datasets, Datasets) else None
        num_training = len(train) if hasattr(train, "__len__") else 0
        return position / num_training if num_training else None

    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the run's data, such as {"train": ..., "held_out": ...}; see `data.fingerprint`.

        Checkpoints hold them: a run is resumed with the data that it started with, and metrics on other held-out data
        are not compared. By default those of `datasets`; empty without.
        """
        return self.datasets.fingerprints() if isinstance(self.datasets, Datasets) else {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state beside the engines, such as a growth phase; checkpoints hold it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  (optional)
        """Takes over the state of a checkpoint, before the engines are filled: make engines of the right shape here."""

    def next_commands(self, run_dir: Path) -> list[list[str]]:
        """Commands that use the run, printed when it ends. Called on rank 0.

        Args:
            run_dir: of the run.

        Returns:
            Each command as its words. A first word `python` or `trainkit` is replaced by a path that works in the
            current directory. `trainkit evaluate` is added.
        """
        return []

    def finish(self) -> None:  # noqa: B027  (optional)
        """Called at the end of a run, to log what was learnt. Collective: every rank must call."""
