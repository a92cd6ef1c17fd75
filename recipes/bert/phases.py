"""Phase: a part of a run with sequences, batches and a learning-rate schedule of its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from trainkit import Runtime, Schedule
from trainkit.data import Datasets
from trainkit.errors import ConfigError, require_above_zero, require_at_least
from trainkit_recipes.bert.length_warmup import LengthWarmup

T = TypeVar("T")
ScheduleFunction = Callable[[int, int], float]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run. The weights and the optimizer's state are those of the phase before; the schedule restarts.

    Args:
        num_steps: global batches.
        sequence_length: tokens in a sample; None: as `data` has it.
        batch_size: samples in a global batch; None: the recipe's.
        lr: learning rate, which the schedule multiplies; None: the optimizer's.
        warmup: of the schedule, in its unit; None: the schedule's own.

    Raises:
        ConfigError: for values out of range.
    """

    num_steps: int
    sequence_length: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    warmup: float | None = None

    def __post_init__(self) -> None:
        counts = {"num_steps": self.num_steps, "batch_size": self.batch_size, "sequence_length": self.sequence_length}
        require_at_least(1, "recipe.phases: ", **counts)
        require_above_zero("recipe.phases: ", lr=self.lr)
        require_at_least(0, "recipe.phases: ", warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class BatchSizeWarmup:
    """Global batches that grow in equal stages at the start of a run, from `first` samples to the full size.

    A schedule in steps counts steps of the full size: it is a function of the samples before a batch.

    Args:
        first: samples in the first global batches.
        num_samples: samples in all smaller batches together; each stage has an equal part, rounded up to whole batches.
        num_stages: sizes before the full one.

    Raises:
        ConfigError: for values out of range.
    """

    first: int
    num_samples: int
    num_stages: int = 8

    def __post_init__(self) -> None:
        counts = {"first": self.first, "num_samples": self.num_samples, "num_stages": self.num_stages}
        require_at_least(1, "recipe.batch_size_warmup.", **counts)

    def sizes(self, full: int) -> list[int]:
        """Returns the sizes before `full`.

        Example:
            >>> BatchSizeWarmup(first=16, num_samples=96, num_stages=3).sizes(64)
            [16, 32, 48]
        """
        step = (full - self.first) / self.num_stages
        return [round(self.first + number * step) for number in range(self.num_stages)]


@dataclass(frozen=True)
class Stage:
    """Global batches of one size and one length.

    Args:
        phase: number of the phase, from 0.
        name: of the phase.
        sequence_length: tokens in a sample; None: as `data` has it.
        batch_size: samples in a global batch.
        start: samples before the stage.
        end: samples before the next stage.
        full_length: tokens in a sample of the phase after a warm-up, on which an evaluation measures.
    """

    phase: int
    name: str
    sequence_length: int | None
    batch_size: int
    start: int
    end: int
    full_length: int | None

    @property
    def key(self) -> str:
        """The key of the batch size."""
        return f"recipe.phases.{self.name}.batch_size" if self.name else "recipe.batch_size"

    def __str__(self) -> str:
        tokens = "" if self.sequence_length is None else f" of {self.sequence_length} tokens"
        return (
            f"{self.name + ': ' if self.name else ''}batches of {self.batch_size:,} samples{tokens}, from position "
            f"{self.start:,} to {self.end:,}"
        )


class Plan:
    """What a run trains on, as a function of the position: its stages in order, and its learning rates.

    Args:
        phases: by name, in order; None: one of `num_steps`.
        num_steps: global batches, where there are no phases.
        batch_size: samples in a global batch of phases that have no other.
        warmup: of the batch size of the first phase, or of its sequence length.
        schedule: of the learning rate, from the start of each phase.
        data: a specification; its `sequence_length` is that of phases that have no other.

    Raises:
        ConfigError: for a warm-up, of the batch size or the learning rate, that does not fit into its phase.
    """

    def __init__(
        self,
        phases: Mapping[str, Phase] | None,
        *,
        num_steps: int,
        batch_size: int,
        warmup: BatchSizeWarmup | LengthWarmup | None = None,
        schedule: Schedule | ScheduleFunction | None = None,
        data: Any = None,
    ) -> None:
        self.is_phased = phases is not None
        given = {"": Phase(num_steps=num_steps)} if phases is None else {n: _made(Phase, p) for n, p in phases.items()}
        self.phases = {
            name: phase if phase.batch_size is not None else replace(phase, batch_size=batch_size)
            for name, phase in given.items()
        }
        self.stages: list[Stage] = []
        self._in_samples = isinstance(warmup, BatchSizeWarmup)
        self._full_length: int | None = getattr(data, "sequence_length", None)
        for number, (name, phase) in enumerate(self.phases.items()):
            self._add(number, name, phase, warmup if number == 0 else None)
        self._schedules = [self._schedule_of(name, phase, schedule) for name, phase in self.phases.items()]

    def _add(self, number: int, name: str, phase: Phase, warmup: BatchSizeWarmup | LengthWarmup | None) -> None:
        """Adds the stages of a phase."""
        if isinstance(warmup, LengthWarmup) and phase.sequence_length is None:
            phase = replace(phase, sequence_length=self._full_length)
        assert phase.batch_size is not None
        end = self.num_samples + phase.num_steps * phase.batch_size
        if warmup is not None:
            is_of_lengths = isinstance(warmup, LengthWarmup)
            (self._add_lengths if is_of_lengths else self._add_sizes)(warmup, name, phase)  # type: ignore[arg-type]
            if self.num_samples >= end:
                key, full = ("length_warmup", "length") if is_of_lengths else ("batch_size_warmup", "size")
                raise ConfigError(
                    f"recipe.{key}.num_samples={warmup.num_samples} leaves no batch of the full {full} among "
                    f"{end:,} samples: give a smaller one, or train longer"
                )
        start, size = self.num_samples, phase.batch_size
        end = start + math.ceil((end - start) / size) * size
        self.stages.append(Stage(number, name, phase.sequence_length, size, start, end, phase.sequence_length))

    def _add_lengths(self, warmup: LengthWarmup, name: str, phase: Phase) -> None:
        assert phase.batch_size is not None
        if phase.sequence_length is None:
            raise ConfigError("recipe.length_warmup: these data have one length only; set recipe.length_warmup=null")
        lengths = warmup.lengths(phase.sequence_length)
        for length in lengths:
            start = self.num_samples
            end = start + math.ceil(warmup.num_samples / len(lengths) / phase.batch_size) * phase.batch_size
            self.stages.append(Stage(0, name, length, phase.batch_size, start, end, phase.sequence_length))

    def _add_sizes(self, warmup: BatchSizeWarmup, name: str, phase: Phase) -> None:
        assert phase.batch_size is not None
        if warmup.first >= phase.batch_size:
            raise ConfigError(
                f"recipe.batch_size_warmup.first={warmup.first}: must be below the full batch size, {phase.batch_size}"
            )
        for size in warmup.sizes(phase.batch_size):
            start = self.num_samples
            end = start + math.ceil(warmup.num_samples / warmup.num_stages / size) * size
            self.stages.append(Stage(0, name, phase.sequence_length, size, start, end, phase.sequence_length))

    @property
    def num_samples(self) -> int:
        """The position at which training ends."""
        return self.stages[-1].end if self.stages else 0

    @property
    def lengths(self) -> list[int | None]:
        """The sequence lengths, each once: first those that an evaluation measures on."""
        measured = [stage.full_length for stage in self.stages]
        return list(dict.fromkeys([*measured, *(stage.sequence_length for stage in self.stages)]))

    def at(self, position: int) -> Stage:
        """Returns the stage of the batch that begins at `position`; after the end, the last one."""
        return next((stage for stage in self.stages if position < stage.end), self.stages[-1])

    def _schedule_of(self, name: str, phase: Phase, schedule: Any) -> ScheduleFunction | None:
        assert phase.batch_size is not None
        if not isinstance(schedule, Schedule):
            if phase.warmup is not None:
                raise ConfigError(
                    f"recipe.phases.{name}.warmup={phase.warmup}: the schedule has none; give "
                    f"schedule=linear or another of conf/schedule, or leave it out"
                )
            return schedule
        own = schedule if phase.warmup is None else replace(schedule, warmup=phase.warmup)
        try:
            own = own.until(phase.num_steps, phase.batch_size)
        except ConfigError as error:
            where = f"recipe.phases.{name}: " if self.is_phased else ""
            raise ConfigError(f"{where}{error}") from error
        return own.in_samples(phase.batch_size) if self._in_samples else own

    def schedule(self, lr: float) -> ScheduleFunction | None:
        """Returns the schedule of the run: (position, batch size) -> factor on `lr`, the optimizer's learning rate."""
        factors = [1.0 if phase.lr is None else phase.lr / lr for phase in self.phases.values()]
        if factors == [1.0]:
            return self._schedules[0]
        starts = [min(stage.start for stage in self.stages if stage.phase == number) for number in range(len(factors))]

        def factor(position: int, batch_size: int) -> float:
            number = self.at(position).phase
            own = self._schedules[number]
            return factors[number] * (1.0 if own is None else own(position - starts[number], batch_size))

        return factor

    def require_enough_samples(self, runtime: Runtime, grad_accumulation_steps: int) -> None:
        """Raises ConfigError where a later batch has too few samples for the ranks, or DeepSpeed's micro-batches."""
        ranks = runtime.ranks.world_size
        least = ranks * grad_accumulation_steps if runtime.strategy.name.startswith("zero") else ranks
        for stage in self.stages if len(self.stages) > 1 else ():
            if stage.batch_size < least:
                raise ConfigError(
                    f"{stage.key}={stage.batch_size}: {ranks} ranks with strategy={runtime.strategy.name} and "
                    f"recipe.grad_accumulation_steps={grad_accumulation_steps} need {least} samples or more in a batch"
                )


def _made(kind: type[T], given: T | Mapping[str, Any]) -> T:
    """What is given as it is, or made of its fields: Hydra turns the dataclasses of a configuration into mappings."""
    return given if isinstance(given, kind) else kind(**given)  # type: ignore[arg-type]


def require_one_length(*, num_steps: int | None, num_epochs: float | None, phases: Mapping[str, Phase] | None) -> None:
    """Raises ConfigError where more than one of the three is given, or no phase among `phases`."""
    if phases is not None and not phases:
        raise ConfigError("recipe.phases={} has no phase: give one, or null")
    given = {"num_steps": num_steps, "num_epochs": num_epochs, "phases": None if phases is None else ", ".join(phases)}
    both = [name for name, value in given.items() if value is not None]
    if both == ["num_steps", "num_epochs"]:
        raise ConfigError(
            f"recipe.num_steps={num_steps} and recipe.num_epochs={num_epochs:g} are two lengths: give one, as "
            f"recipe.num_steps=null recipe.num_epochs={num_epochs:g}"
        )
    if len(both) > 1:
        raise ConfigError(
            f"recipe.{both[0]}={given[both[0]]} and recipe.phases ({given['phases']}) are two lengths: give one, as "
            f"recipe.{both[0]}=null, or recipe.phases=null"
        )
    require_above_zero("recipe.", num_epochs=num_epochs)


def warmup_of(
    sizes: BatchSizeWarmup | None, lengths: LengthWarmup | None, *, num_epochs: float | None, data: Any
) -> BatchSizeWarmup | LengthWarmup | None:
    """Returns the warm-up of a run.

    Args:
        sizes: of the batches.
        lengths: of the sequences; they count for nothing without data.
        num_epochs: of the run, where its length is given so.
        data: of the run.

    Raises:
        ConfigError: for two of them, and for one of lengths without a number of steps.
    """
    if lengths is None or _is_empty(data):
        return None if sizes is None else _made(BatchSizeWarmup, sizes)
    if sizes is not None:
        raise ConfigError(
            "recipe.length_warmup and recipe.batch_size_warmup are both given: set one of them to null, or give the "
            "parts of the run as recipe.phases"
        )
    if num_epochs is not None:
        raise ConfigError(
            f"recipe.num_epochs={num_epochs:g} with recipe.length_warmup, whose lengths have epochs of their own: set "
            f"recipe.num_steps, and recipe.num_epochs=null"
        )
    return _made(LengthWarmup, lengths)


def load_lengths(data: Any, lengths: Sequence[int | None]) -> dict[int | None, Datasets]:
    """Loads the data with samples of several lengths.

    Args:
        data: a specification; for other lengths than its own it needs a `load_lengths(lengths)`, as `Text` has.
        lengths: in tokens; None: the specification's own.

    Returns:
        Data sets by length.

    Raises:
        ConfigError: for data of one length.
    """
    if [*lengths] == [None]:
        return {None: data.load()}
    own = getattr(data, "sequence_length", None)
    if hasattr(data, "load_lengths"):
        return dict(zip(lengths, data.load_lengths([own if n is None else n for n in lengths]), strict=True))
    if _is_empty(data):
        return dict.fromkeys(lengths, data)
    raise ConfigError(
        f"recipe.phases or recipe.length_warmup have a sequence_length, and {type(data).__name__} has one length only: "
        f"use data=text or data=nvidia_bert, or leave sequence_length out"
    )


def _is_empty(data: Any) -> bool:
    """Whether these are the data of a checkpoint that is used without any."""
    return isinstance(data, Datasets) and not len(data.train)
