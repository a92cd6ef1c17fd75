"""What it is that is not finite: in which step, of which rank, in which parameters, from which samples."""

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
class Share:
    """One rank's part in a turn.

    loss_is_finite: its own loss, in every micro-batch.  parameters: those whose gradient by its own samples alone is
    not finite; known only where the batch was computed again.  indices: in the data set, of the samples of the
    micro-batches in which one of the two is not finite; of its whole share where there is none.
    """

    rank: int
    loss_is_finite: bool
    parameters: tuple[str, ...]
    indices: tuple[int, ...]

    @property
    def is_finite(self) -> bool:
        return self.loss_is_finite and not self.parameters


@dataclass(frozen=True)
class Fault:
    """A turn of `engine` whose loss or gradient over the global batch is not finite; the same on every rank.

    step: counted by the Trainer; None in a loop of one's own.  position, size: samples before the global batch, and
    in it.  parameters: those whose reduced gradient is not finite.  shares: of every rank.
    is_applied: the weights were updated with it.  repeats: whether it came again when the batch was computed again;
    None: that was not done.  scale: of an fp16 loss; one that can still fall is no fault.
    """

    engine: str
    step: int | None
    position: int | None
    size: int
    loss: float
    grad_norm: float
    parameters: tuple[str, ...]
    shares: tuple[Share, ...]
    is_applied: bool
    repeats: bool | None = None
    scale: float | None = None

    @property
    def culprits(self) -> tuple[Share, ...]:
        """The shares of the ranks that it comes from; none where that is not known."""
        if len(self.shares) == 1:
            return self.shares
        return tuple(share for share in self.shares if not share.is_finite)

    def __str__(self) -> str:
        """Sentences, the last one without its full stop."""
        return ". ".join(self._sentences())

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: numbers that are not finite are strings."""
        numbers = {name: getattr(self, name) for name in ("loss", "grad_norm")}
        told = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        return {**asdict(self), **told, "ranks": [share.rank for share in self.culprits]}

    def _sentences(self) -> Iterator[str]:
        yield self._what()
        if self.culprits:
            ranks = [f"rank {share.rank} (samples {listed(share.indices, 8)})" for share in self.culprits]
            yield f"It comes from {listed(ranks, 3)}"
        else:
            samples = sorted(chain.from_iterable(share.indices for share in self.shares))
            yield f"{self._why_unknown()}; the batch holds the samples {listed(samples, 8)}"
        if self.repeats is False:
            yield "Computed again it was finite on every rank: suspect the hardware, or an operation that varies"
        names = self.parameters or tuple(dict.fromkeys(chain.from_iterable(s.parameters for s in self.shares)))
        if names:
            yield f"Not finite is the gradient of {listed(names, 3)}"
        if self.is_applied:
            yield "The weights were updated with it and are of no use any more: go on from a checkpoint"
        else:
            yield "It has updated nothing"

    def _what(self) -> str:
        where = f"of engine {self.engine!r}"
        where += f" at step {self.step}" if self.step is not None else ""
        where += f" (position {self.position})" if self.position is not None else ""
        if not math.isfinite(self.loss):
            return f"the loss {where} is {self.loss}"
        told = f"the gradient {where} is not finite, and its loss is {self.loss:.4g}"
        return told if self.scale is None else f"{told}; the fp16 loss scale has fallen to {self.scale:.2g}"

    def _why_unknown(self) -> str:
        if self.is_applied:
            return "The rank that it comes from was not looked for in time, as nonfinite=skip does"
        return "The rank that it comes from is not known: the gradients are sums over ranks"


class Tripped(NonFiniteError):
    """What the guard raises; `fault` is what it saw."""

    def __init__(self, text: str, fault: Fault) -> None:
        super().__init__(text)
        self.fault = fault


def listed(items: Sequence[Any], num: int) -> str:
    """The first `num`, and how many more there are.

    >>> listed([7, 8, 9], 2)
    '7, 8 and 1 more'
    """
    shown = ", ".join(map(str, items[:num]))
    return shown if len(items) <= num else f"{shown} and {len(items) - num} more"


def write(path: Path, faults: Iterable[Fault]) -> None:
    """Writes all that is known of `faults` as a JSON list. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([fault.as_dict() for fault in faults], indent=1, allow_nan=False) + "\n")
