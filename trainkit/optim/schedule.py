"""Schedule: learning rates as a function of the position alone, so a resume needs no state."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from trainkit.errors import ConfigError, nearest, require_at_least

Unit = Literal["steps", "samples", "run"]
Shape = Literal["constant", "linear", "cosine", "polynomial", "trapezoidal"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The factor on every group's learning rate: rises linearly over `warmup`, then falls to `final` at `total`.

    Args:
        warmup: length of the rise, in `unit`.
        total: end of the fall, in `unit`; None: the length of the run, set by `until`.
        unit: `steps` (global batches of the current size), `samples`, or `run`: fractions of the run, which `until`
            converts to steps.
        shape: of the fall; `constant` stays at 1 and needs no total. `polynomial` is that of BERT-large with LAMB, (1 -
            position / total) ** power, counted from the start of the run: at the end of the warm-up it drops from 1 to
            (1 - warmup / total) ** power. `trapezoidal` stays at 1, and falls linearly over the last `decay`
            (arXiv 2405.18392).
        final: the factor at `total` and after it.
        power: of `polynomial`.
        decay: of `trapezoidal`, length of the fall, in `unit`.

    Raises:
        ConfigError: for values out of range.

    Example:
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
    decay: float = 0.0

    def __post_init__(self) -> None:
        for key, value, allowed in (("shape", self.shape, get_args(Shape)), ("unit", self.unit, get_args(Unit))):
            if value not in allowed:
                raise ConfigError(
                    f"schedule.{key}={value!r}: must be one of {', '.join(allowed)}.{nearest(value, allowed)}"
                )
        require_at_least(0, "schedule.", warmup=self.warmup, final=self.final, decay=self.decay)
        if not self.power > 0:
            raise ConfigError(f"schedule.power={self.power}: must be a number above 0")
        if self.shape != "constant" and self.total is not None and self.total <= self.warmup:
            raise ConfigError(
                f"schedule.total={self.total}: a {self.shape} schedule needs a total above "
                f"schedule.warmup={self.warmup}: train longer or set a smaller schedule.warmup"
            )

        if (self.shape == "trapezoidal") != (self.decay > 0):
            raise ConfigError(f"schedule.decay={self.decay}: must be above 0 with shape=trapezoidal, and 0 with others")
        if self.total is not None and self.total - self.decay < self.warmup:
            raise ConfigError(
                f"schedule.decay={self.decay}: begins before schedule.warmup={self.warmup} ends, for "
                f"schedule.total={self.total}: train longer or set a smaller one"
            )

    @property
    def has_end(self) -> bool:
        """Whether it can be evaluated: it has a total, or needs none."""
        return self.unit != "run" and (self.total is not None or self.shape == "constant")

    def until(self, num_steps: int, batch_size: int) -> "Schedule":
        """Returns the schedule with a total, which is the length of the run where none was given.

        Args:
            num_steps: global batches of the run.
            batch_size: samples in a global batch.

        Raises:
            ConfigError: where the warm-up is longer than the run.
        """
        if self.has_end:
            return self
        if self.unit == "run":
            total = num_steps if self.total is None else self.total * num_steps
            return replace(
                self, unit="steps", warmup=self.warmup * num_steps, decay=self.decay * num_steps, total=total
            )
        return replace(self, total=num_steps * (1 if self.unit == "steps" else batch_size))

    def in_samples(self, batch_size: int) -> "Schedule":
        """Returns the same schedule in samples, one step being `batch_size` of them, for batches of several sizes."""
        if self.unit == "samples":
            return self
        total = None if self.total is None else self.total * batch_size
        return replace(
            self, unit="samples", warmup=self.warmup * batch_size, decay=self.decay * batch_size, total=total
        )

    def __call__(self, position: int, batch_size: int) -> float:
        """Returns the factor for a global batch.

        Args:
            position: samples before the batch.
            batch_size: samples in the batch.
        """
        size = batch_size if self.unit == "steps" else 1
        done = position / size
        # The first step must not have a rate of zero, so the warm-up includes the current step.
        begun = (position + batch_size) / size
        if begun < self.warmup:
            return begun / self.warmup
        if self.shape == "constant":
            return 1.0
        assert self.total is not None, "an engine rejects a schedule that has no end"
        begin = self.total - self.decay if self.shape == "trapezoidal" else self.warmup
        fraction = min(1.0, max(0.0, (done - begin) / (self.total - begin)))
        if self.shape == "polynomial":
            down = max(0.0, 1.0 - done / self.total) ** self.power
        else:
            down = 0.5 * (1.0 + math.cos(math.pi * fraction)) if self.shape == "cosine" else 1.0 - fraction
        return float(self.final + (1.0 - self.final) * down)
