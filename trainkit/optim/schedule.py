"""Learning-rate schedules: functions of the position alone, so that a resume needs no state of theirs."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from trainkit.errors import ConfigError, nearest, require_at_least

Unit = Literal["steps", "samples"]
Shape = Literal["constant", "linear", "cosine", "polynomial"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The factor on every group's learning rate: up linearly over `warmup`, then down to `final` at `total`.

    warmup, total: in `unit`; a step counts as one global batch of the size in use. A total of None is the length of
        the run, which is filled in by `until`.
    shape: of the way down; `constant` stays at 1 and needs no total. `polynomial` is that of BERT-large with LAMB:
        (1 - position / total) ** power, as if it had gone down from the start: where warm-up ends it jumps, from 1 to
        (1 - warmup / total) ** power.
    final: the factor at `total` and after it.
    power: of `polynomial`.

    >>> schedule = Schedule(warmup=10, total=110, shape="linear")
    >>> [round(schedule(step * 32, 32), 3) for step in (0, 9, 60, 110)]
    [0.1, 1.0, 0.5, 0.0]
    """

    warmup: float = 0
    total: float | None = None
    unit: Unit = "steps"
    shape: Shape = "linear"
    final: float = 0.0
    power: float = 0.5

    def __post_init__(self) -> None:
        for key, value, allowed in (("shape", self.shape, get_args(Shape)), ("unit", self.unit, get_args(Unit))):
            if value not in allowed:
                raise ConfigError(
                    f"schedule.{key}={value!r}: allowed are {', '.join(allowed)}.{nearest(value, allowed)}"
                )
        require_at_least(0, "schedule.", warmup=self.warmup, final=self.final)
        if not self.power > 0:
            raise ConfigError(f"schedule.power={self.power}: allowed is a number above 0")
        if self.shape != "constant" and self.total is not None and self.total <= self.warmup:
            raise ConfigError(
                f"schedule.total={self.total}: a {self.shape} schedule needs a total above "
                f"schedule.warmup={self.warmup}: train longer or give a smaller schedule.warmup"
            )

    @property
    def has_end(self) -> bool:
        """Whether it can be called: a total is given, or none is needed."""
        return self.total is not None or self.shape == "constant"

    def until(self, num_steps: int, batch_size: int) -> "Schedule":
        """Itself, or, where it has no total, this one over `num_steps`. Raises ConfigError where warm-up is longer."""
        return self if self.has_end else replace(self, total=num_steps * (1 if self.unit == "steps" else batch_size))

    def __call__(self, position: int, batch_size: int) -> float:
        """The factor for the global batch that begins at `position` (samples)."""
        size = batch_size if self.unit == "steps" else 1
        done = position / size
        # The first step must not have a rate of zero, so warm-up counts the step that is being made.
        begun = (position + batch_size) / size
        if begun < self.warmup:
            return begun / self.warmup
        if self.shape == "constant":
            return 1.0
        assert self.total is not None, "an engine refuses a schedule that has no end"
        share = min(1.0, max(0.0, (done - self.warmup) / (self.total - self.warmup)))
        if self.shape == "polynomial":
            down = max(0.0, 1.0 - done / self.total) ** self.power
        else:
            down = 1.0 - share if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
        return float(self.final + (1.0 - self.final) * down)
