"""The non-finite guard: sees every turn of every engine, and acts on one whose loss or gradient is not finite."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from trainkit.data.batch import Batch
from trainkit.data.clock import Clock
from trainkit.distributed.ranks import Ranks
from trainkit.errors import ConfigError, nearest
from trainkit.health.nonfinite import ADVICE, Fault, Share, Tripped, write

if TYPE_CHECKING:
    from trainkit.engine.engine import Engine

Policy = Literal["stop", "skip", "rewind"]
POLICIES: tuple[str, ...] = get_args(Policy)
MOST_SKIPPED = 20  # steps of an engine, one after the other
_MOST_UNREAD = 256  # turns whose tensors wait for somebody to look at them

Norms = tuple[list[str], Tensor] | None


@dataclass(frozen=True)
class _Turn:
    """What a turn came to, on the device, and the samples of this rank."""

    engine: str
    grad_accumulation_steps: int
    step: int | None
    batch: Batch | None  # without its data
    loss: Tensor
    norm: Tensor
    own_losses: list[Tensor]
    norms: Norms
    scale: float | None


@dataclass
class _Examined:
    """What this rank alone makes of a turn of `engine`."""

    engine: "Engine"
    own_losses: list[Tensor] = field(default_factory=list)
    gradients: dict[int, list[str]] = field(default_factory=dict)  # micro-batch -> parameters

    def look(self, name: str, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            self.gradients.setdefault(len(self.engine.own_losses) - 1, []).append(name)


class Guard:
    """Acts on a turn whose mean loss or reduced gradient is not finite, on all ranks alike: both are sums over ranks.

    In fp16 a gradient that is not finite is no fault while the loss scale can fall.

    policy: `stop` raises NonFiniteError.  `skip` leaves the step out, and stops after MOST_SKIPPED of an engine in a
        row.  `rewind` raises too, and a Trainer goes back to a checkpoint.
    tell: is told of a step that is left out of a loop of one's own.

    On the CPU, under `skip`, in fp16 and under ZeRO both are read before anything is updated. Elsewhere each step would
    wait for the device: there they are kept until `read`, and what is found then has updated the weights.
    """

    def __init__(self, policy: Policy, ranks: Ranks, clock: Clock, *, tell: Callable[[str], None]) -> None:
        self.policy = policy
        self.reads_every_step = policy == "skip" or ranks.device.type == "cpu"
        self.step: int | None = None
        """That a Trainer is at; it asks for what was `skipped`, too."""
        self._ranks, self._clock, self._tell = ranks, clock, tell
        self._examined: _Examined | None = None
        self.forget()

    def forget(self) -> None:
        """Begins anew: what was seen so far is of no account any more."""
        self._unread: list[_Turn] = []
        self._skipped: list[Fault] = []
        self._num_skipped: dict[str, int] = {}

    # -- what an engine calls ----------------------------------------------------------------------------------------

    @property
    def is_examining(self) -> bool:
        """Whether a batch is computed again, which must change nothing."""
        return self._examined is not None

    def gate(self, loss: Tensor, is_read: bool) -> Tensor | None:
        """What must be finite beside the norm for a turn to update anything; None: nothing is to be read now.

        is_read: the engine waits for the device in any case.
        """
        if self._examined is not None:
            return torch.full_like(loss, math.nan)
        return loss if is_read or self.reads_every_step else None

    def see(
        self,
        engine: "Engine",
        loss: Tensor,
        norm: Tensor,
        skipped: bool | None,
        own_losses: list[Tensor],
        norms: Norms,
    ) -> None:
        """The end of a turn. skipped: it was read and has updated nothing; None: it was not read.

        Raises NonFiniteError, by the policy. Collective where the turn is a fault.
        """
        if self._examined is not None:
            if engine is self._examined.engine:
                self._examined.own_losses = own_losses
            return
        if skipped is False:
            self._num_skipped.pop(engine.name, None)
            return
        scaler = engine.scaler
        if skipped and scaler is not None and not scaler.is_exhausted and math.isfinite(loss.item()):
            return  # an overflow, which a lower loss scale may repair
        batch = replace(self._clock.batch, data=None) if self._clock.batch is not None else None
        turn = _Turn(
            engine=engine.name,
            grad_accumulation_steps=engine.grad_accumulation_steps,
            step=self.step,
            batch=batch,
            loss=loss.detach(),
            norm=norm.detach(),
            own_losses=own_losses,
            norms=norms,
            scale=scaler.scale if scaler is not None else None,
        )
        if skipped:
            self._act(self._fault(turn, is_applied=False))
            return
        self._unread.append(turn)
        if len(self._unread) == _MOST_UNREAD:
            self.read()

    def read(self) -> None:
        """Looks at the turns that were not read: waits for the device. To be called before anything is told or saved.

        Raises NonFiniteError for the first one that is a fault. Collective: every rank calls.
        """
        turns, self._unread = self._unread, []
        if not turns:
            return
        values = torch.stack([value.double() for turn in turns for value in (turn.loss, turn.norm)]).tolist()
        for turn, loss, norm in zip(turns, values[::2], values[1::2], strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._act(self._fault(turn, is_applied=True))

    # -- what a Trainer calls ----------------------------------------------------------------------------------------

    def skipped(self) -> list[Fault]:
        """What was left out since the last call."""
        faults, self._skipped = self._skipped, []
        return faults

    def report(
        self,
        faults: Iterable[Fault],
        engines: Iterable["Engine"],
        again: Callable[[Batch], Any],
        run_dir: Path | None,
    ) -> str:
        """A paragraph about the `faults` of a step; all that is known goes to `run_dir/nonfinite/step_*.json`.

        again: computes the batch that the clock is at once more, by which nothing is updated.
        Collective: every rank calls.
        """
        by_name = {engine.name: engine for engine in engines}
        examined = [self._examine(fault, by_name.get(fault.engine), again) for fault in faults]
        text = ". ".join(map(str, examined))
        if run_dir is None:
            return text
        path = run_dir / "nonfinite" / f"step_{examined[0].step or 0:08d}.json"
        if self._ranks.is_main:
            try:
                write(path, examined)
            except OSError as error:
                return f"{text}. {path} could not be written: {error.strerror or error}"
        return f"{text}. All of it: {path}"

    # -- inside ------------------------------------------------------------------------------------------------------

    def _act(self, fault: Fault) -> None:
        if self.policy == "skip" and not fault.is_applied:
            self._num_skipped[fault.engine] = self._num_skipped.get(fault.engine, 0) + 1
            if self._num_skipped[fault.engine] < MOST_SKIPPED:
                if self.step is None:
                    self._tell(f"{fault}. The step is left out")
                else:
                    self._skipped.append(fault)
                return
        raise Tripped(f"{fault}. {self.last_words}", fault)

    @property
    def last_words(self) -> str:
        """Why a run stops at a fault, where it is not gone back, and what to do."""
        if self.policy == "rewind" and self.step is None:
            return f"nonfinite=rewind needs a Trainer: use stop or skip in a loop of your own, or {ADVICE}"
        if self.policy == "skip":
            return f"It is number {MOST_SKIPPED} in a row, where nonfinite=skip stops: {ADVICE}"
        return f"Stopped: {ADVICE}"

    def _fault(self, turn: _Turn, *, is_applied: bool) -> Fault:
        names: list[str] = []
        if turn.norms is not None:
            names = [
                name
                for name, norm in zip(turn.norms[0], turn.norms[1].tolist(), strict=True)
                if not math.isfinite(norm)
            ]
        mine = self._share(turn.batch, turn.grad_accumulation_steps, turn.own_losses, {})
        told = self._ranks.all_gather_object((mine, names))
        return Fault(
            engine=turn.engine,
            step=turn.step,
            position=turn.batch.position if turn.batch is not None else None,
            size=turn.batch.size if turn.batch is not None else 0,
            loss=float(turn.loss),
            grad_norm=float(turn.norm),
            # Each rank knows of the parts that it holds.
            parameters=tuple(dict.fromkeys(chain.from_iterable(theirs for _, theirs in told))),
            shares=tuple(share for share, _ in told),
            is_applied=is_applied,
            scale=turn.scale,
        )

    def _share(
        self,
        batch: Batch | None,
        grad_accumulation_steps: int,
        own_losses: list[Tensor],
        gradients: dict[int, list[str]],
    ) -> Share:
        losses = {number for number, loss in enumerate(own_losses) if not math.isfinite(loss.item())}
        indices: list[int] = []
        if batch is not None:
            numbers = sorted(losses | gradients.keys())
            suspected = [batch.indices[number::grad_accumulation_steps] for number in numbers] or [batch.indices]
            indices = [index for part in suspected for index in part.tolist()]
        names = tuple(dict.fromkeys(chain.from_iterable(gradients.values())))
        return Share(self._ranks.rank, not losses, names, tuple(indices))

    def _examine(self, fault: Fault, engine: "Engine | None", again: Callable[[Batch], Any]) -> Fault:
        """The same with what each rank finds when it computes the batch again and looks at its own part."""
        batch = self._clock.batch
        if fault.is_applied or batch is None or engine is None:
            return fault
        examined = _Examined(engine)
        # A hook sees the gradient before it is added to others', whatever the strategy does with it then.
        hooks = [leaf.register_hook(partial(examined.look, name)) for name, leaf in engine.leaves().items()]
        self._examined = examined
        try:
            again(batch)
        finally:
            self._examined = None
            for hook in hooks:
                hook.remove()
        mine = self._share(batch, engine.grad_accumulation_steps, examined.own_losses, examined.gradients)
        shares = tuple(self._ranks.all_gather_object(mine))
        repeats = not all(share.is_finite for share in shares)
        return replace(fault, shares=shares if repeats else fault.shares, repeats=repeats)


def check_policy(policy: str) -> None:
    """Raises ConfigError unless `policy` is one of POLICIES."""
    if policy not in POLICIES:
        raise ConfigError(f"nonfinite={policy!r}: allowed are {', '.join(POLICIES)}.{nearest(str(policy), POLICIES)}")
