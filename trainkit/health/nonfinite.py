"""Reports of steps that are not finite: in which step, on which rank, in which parameters, from which samples."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from trainkit.errors import NonFiniteError

ADVICE = "lower optimizer.lr, set recipe.max_grad_norm, or use precision=bf16 instead of fp16"


@dataclass(frozen=True)
class RankReport:
    """What one rank found in its share of a step.

    Args:
        rank: the rank.
        loss_is_finite: its own loss, in every micro-batch.
        parameters: those whose gradient from this rank's samples alone is not finite; known only where the batch was
            computed again.
        indices: in the data set, of the samples of the micro-batches whose loss or gradient is not finite; of the whole
            share where there are none.
    """

    rank: int
    loss_is_finite: bool
    parameters: tuple[str, ...]
    indices: tuple[int, ...]

    @property
    def is_finite(self) -> bool:
        """Whether the rank's own loss and gradients are finite."""
        return self.loss_is_finite and not self.parameters


@dataclass(frozen=True)
class Fault:
    """A step of an engine whose loss or gradient over the global batch is not finite; the same on every rank.

    Args:
        engine: the engine's name.
        step: counted by the Trainer; None in an own loop.
        position: samples before the global batch; None where there is no batch.
        size: samples in the global batch.
        loss: the mean over the global batch.
        grad_norm: of the reduced gradient, before clipping.
        parameters: those whose reduced gradient is not finite.
        rank_reports: one of every rank.
        is_applied: whether the weights were updated with it.
        repeats: whether it was found again when the batch was computed again; None: that was not done.
        loss_scale: of fp16; None in other precisions. A scale that can still be lowered is no fault.
    """

    engine: str
    step: int | None
    position: int | None
    size: int
    loss: float
    grad_norm: float
    parameters: tuple[str, ...]
    rank_reports: tuple[RankReport, ...]
    is_applied: bool
    repeats: bool | None = None
    loss_scale: float | None = None

    @property
    def sources(self) -> tuple[RankReport, ...]:
        """The reports of the ranks that it comes from; none where that is not known."""
        if len(self.rank_reports) == 1:
            return self.rank_reports
        return tuple(report for report in self.rank_reports if not report.is_finite)

    def __str__(self) -> str:
        """Sentences, the last one without its full stop."""
        return ". ".join(self._sentences())

    def as_dict(self) -> dict[str, Any]:
        """All fields, JSON-able: numbers that are not finite are strings."""
        numbers = {name: getattr(self, name) for name in ("loss", "grad_norm")}
        written = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        return {**asdict(self), **written, "ranks": [report.rank for report in self.sources]}

    def _sentences(self) -> Iterator[str]:
        yield self._description()
        if self.sources:
            ranks = [f"rank {report.rank} (samples {listed(report.indices, 8)})" for report in self.sources]
            yield f"It comes from {listed(ranks, 3)}"
        else:
            samples = sorted(chain.from_iterable(report.indices for report in self.rank_reports))
            yield f"{self._why_unknown()}; the batch holds the samples {listed(samples, 8)}"
        if self.repeats is False:
            yield "When computed again it was finite on every rank: suspect hardware or a nondeterministic operation"
        names = self.parameters or tuple(dict.fromkeys(chain.from_iterable(r.parameters for r in self.rank_reports)))
        if names:
            yield f"The gradient of {listed(names, 3)} is not finite"
        if self.is_applied:
            yield "The weights were updated with it and can no longer be used: resume from a checkpoint"
        else:
            yield "Nothing was updated"

    def _description(self) -> str:
        where = f"of engine {self.engine!r}"
        where += f" at step {self.step}" if self.step is not None else ""
        where += f" (position {self.position})" if self.position is not None else ""
        if not math.isfinite(self.loss):
            return f"the loss {where} is {self.loss}"
        text = f"the gradient {where} is not finite, and its loss is {self.loss:.4g}"
        return text if self.loss_scale is None else f"{text}; the fp16 loss scale has fallen to {self.loss_scale:.2g}"

    def _why_unknown(self) -> str:
        if self.is_applied:
            return "The rank that it comes from is not known: without nonfinite=skip, steps are read after their update"
        return "The rank that it comes from is not known: the gradients are sums over ranks"


class NonFiniteStepError(NonFiniteError):
    """Raised by the guard.

    Args:
        text: the message.
        fault: the step that is not finite.
    """

    def __init__(self, text: str, fault: Fault) -> None:
        super().__init__(text)
        self.fault = fault


def listed(items: Sequence[Any], num: int) -> str:
    """Joins the first `num` items, and says how many more there are.

    Example:
        >>> listed([7, 8, 9], 2)
        '7, 8 and 1 more'
    """
    shown = ", ".join(map(str, items[:num]))
    return shown if len(items) <= num else f"{shown} and {len(items) - num} more"


def write(path: Path, faults: Iterable[Fault]) -> None:
    """Writes all fields of `faults` as a JSON list, into a folder that is made where it is missing.

    Raises:
        OSError: where the file cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([fault.as_dict() for fault in faults], indent=1, allow_nan=False) + "\n")
