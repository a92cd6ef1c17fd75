"""The non-finite guard: sees every step of every engine, and acts on one whose loss or gradient is not finite."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trainkit.data.batch import Batch
from trainkit.data.clock import Clock
from trainkit.distributed.ranks import Ranks
from trainkit.engine.engine import Engine
from trainkit.engine.step_record import StepRecord
from trainkit.errors import ConfigError, nearest
from trainkit.health.nonfinite import ADVICE, Fault, NonFiniteStepError, RankReport, write

Policy = Literal["stop", "skip", "rewind"]
POLICIES: tuple[str, ...] = get_args(Policy)
MAX_SKIPPED = 20  # consecutive steps of an engine
_MAX_UNREAD = 256  # steps whose tensors wait to be read


@dataclass(frozen=True)
class _UnreadStep:
    """A record, and where in the run it was made."""

    record: StepRecord
    step: int | None
    batch: Batch | None  # without its data


@dataclass
class _Examination:
    """What this rank finds when a step of `engine` is computed again."""

    engine: Engine
    own_losses: list[Tensor] = field(default_factory=list)
    gradients: dict[int, list[str]] = field(default_factory=dict)  # micro-batch -> parameters

    def check(self, name: str, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            self.gradients.setdefault(len(self.engine.own_losses) - 1, []).append(name)


class Guard:
    """Acts on a step whose mean loss or reduced gradient is not finite, on all ranks alike: both are sums over ranks.

    In fp16 a gradient that is not finite is no fault while the loss scale can be lowered.

    On the CPU, under `skip`, in fp16 and under ZeRO both are read before anything is updated. Elsewhere each step would
    wait for the device: there they are kept until `read`, and what is found then has updated the weights.

    Args:
        policy: `stop` raises NonFiniteError. `skip` skips the step, and raises after MAX_SKIPPED consecutive ones of an
            engine. `rewind` raises too, and a Trainer goes back to a checkpoint.
        ranks: the processes of the job.
        clock: where in the data the run is.
        report: called with a message about a step that is skipped in an own loop.
    """

    def __init__(self, policy: Policy, ranks: Ranks, clock: Clock, *, report: Callable[[str], None]) -> None:
        self.policy = policy
        self.reads_every_step = policy == "skip" or ranks.device.type == "cpu"
        self.step: int | None = None
        """The step of a Trainer, which also collects `skipped`; None in an own loop."""
        self._ranks, self._clock, self._report = ranks, clock, report
        self._examination: _Examination | None = None
        self.forget()

    def forget(self) -> None:
        """Drops every step that was seen so far, for a run that starts again from a checkpoint."""
        self._unread: list[_UnreadStep] = []
        self._skipped: list[Fault] = []
        self._num_skipped: dict[str, int] = {}

    # -- for engines -------------------------------------------------------------------------------------------------

    @property
    def is_examining(self) -> bool:
        """Whether a batch is computed again, without any update."""
        return self._examination is not None

    def gate(self, loss: Tensor, is_read: bool) -> Tensor | None:
        """The tensor that must be finite, beside the gradient norm, for a step to update anything.

        Args:
            loss: [], the mean over the global batch.
            is_read: whether the engine waits for the device in any case.

        Returns:
            [], or None where nothing is to be read now.
        """
        if self._examination is not None:
            return torch.full_like(loss, math.nan)
        return loss if is_read or self.reads_every_step else None

    def see(self, record: StepRecord) -> None:
        """The end of a step. Collective where the step is a fault.

        Args:
            record: the step, as its engine made it.

        Raises:
            NonFiniteError: by the policy.
        """
        if self._examination is not None:
            if record.engine == self._examination.engine.name:
                self._examination.own_losses = record.own_losses
            return
        if record.skipped is False:
            self._num_skipped.pop(record.engine, None)
            return
        if record.skipped and record.can_lower_scale and math.isfinite(record.loss.item()):
            return  # an overflow, which a lower loss scale may avoid
        batch = replace(self._clock.batch, data=None) if self._clock.batch is not None else None
        record = record._replace(loss=record.loss.detach(), grad_norm=record.grad_norm.detach())
        step = _UnreadStep(record, self.step, batch)
        if record.skipped:
            self._act(self._fault(step, is_applied=False))
            return
        self._unread.append(step)
        if len(self._unread) == _MAX_UNREAD:
            self.read()

    def read(self) -> None:
        """Reads the steps that were not read yet, which waits for the device. Collective: every rank must call.

        Called before anything is logged or saved.

        Raises:
            NonFiniteError: for the first step that is a fault.
        """
        steps, self._unread = self._unread, []
        if not steps:
            return
        tensors = [value for step in steps for value in (step.record.loss, step.record.grad_norm)]
        values = torch.stack([tensor.double() for tensor in tensors]).tolist()
        for step, loss, norm in zip(steps, values[::2], values[1::2], strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._act(self._fault(step, is_applied=True))

    # -- for a Trainer -----------------------------------------------------------------------------------------------

    def skipped(self) -> list[Fault]:
        """The steps that were skipped since the last call."""
        faults, self._skipped = self._skipped, []
        return faults

    def describe(
        self,
        faults: Iterable[Fault],
        engines: Iterable[Engine],
        recompute: Callable[[Batch], Any],
        run_dir: Path | None,
    ) -> str:
        """Finds where the faults of a step come from, and writes a report. Collective: every rank must call.

        Args:
            faults: of one step.
            engines: of the recipe.
            recompute: computes the current batch again; nothing is updated meanwhile.
            run_dir: the details are written to its `nonfinite/step_*.json`; None: nowhere.

        Returns:
            A paragraph, without its last full stop.
        """
        by_name = {engine.name: engine for engine in engines}
        examined = [self._examine(fault, by_name.get(fault.engine), recompute) for fault in faults]
        text = ". ".join(map(str, examined))
        if run_dir is None:
            return text
        path = run_dir / "nonfinite" / f"step_{examined[0].step or 0:08d}.json"
        if self._ranks.is_main:
            try:
                write(path, examined)
            except OSError as error:
                return f"{text}. {path} could not be written: {error.strerror or error}"
        return f"{text}. Details: {path}"

    @property
    def stop_reason(self) -> str:
        """Why a run stops at a fault instead of going back, and what to do."""
        if self.policy == "rewind" and self.step is None:
            return f"nonfinite=rewind needs a Trainer: in an own loop use stop or skip, or {ADVICE}"
        if self.policy == "skip":
            return f"{MAX_SKIPPED} consecutive steps were not finite, where nonfinite=skip stops: {ADVICE}"
        return f"Stopped: {ADVICE}"

    # -- inside ------------------------------------------------------------------------------------------------------

    def _act(self, fault: Fault) -> None:
        if self.policy == "skip" and not fault.is_applied:
            self._num_skipped[fault.engine] = self._num_skipped.get(fault.engine, 0) + 1
            if self._num_skipped[fault.engine] < MAX_SKIPPED:
                if self.step is None:
                    self._report(f"{fault}. The step is skipped")
                else:
                    self._skipped.append(fault)
                return
        raise NonFiniteStepError(f"{fault}. {self.stop_reason}", fault)

    def _fault(self, step: _UnreadStep, *, is_applied: bool) -> Fault:
        record, batch = step.record, step.batch
        names: list[str] = []
        if record.norms is not None:
            norms = zip(record.norms[0], record.norms[1].tolist(), strict=True)
            names = [name for name, norm in norms if not math.isfinite(norm)]
        own = self._rank_report(batch, record.grad_accumulation_steps, record.own_losses, {})
        reports = self._ranks.all_gather_object((own, names))
        return Fault(
            engine=record.engine,
            step=step.step,
            position=batch.position if batch is not None else None,
            size=batch.size if batch is not None else 0,
            loss=float(record.loss),
            grad_norm=float(record.grad_norm),
            # Each rank knows only the shards that it holds.
            parameters=tuple(dict.fromkeys(chain.from_iterable(theirs for _, theirs in reports))),
            rank_reports=tuple(report for report, _ in reports),
            is_applied=is_applied,
            loss_scale=record.loss_scale,
        )

    def _rank_report(
        self,
        batch: Batch | None,
        grad_accumulation_steps: int,
        own_losses: list[Tensor],
        gradients: dict[int, list[str]],
    ) -> RankReport:
        losses = {number for number, loss in enumerate(own_losses) if not math.isfinite(loss.item())}
        indices: list[int] = []
        if batch is not None:
            numbers = sorted(losses | gradients.keys())
            suspected = [batch.indices[number::grad_accumulation_steps] for number in numbers] or [batch.indices]
            indices = [index for part in suspected for index in part.tolist()]
        names = tuple(dict.fromkeys(chain.from_iterable(gradients.values())))
        return RankReport(self._ranks.rank, not losses, names, tuple(indices))

    def _examine(self, fault: Fault, engine: Engine | None, recompute: Callable[[Batch], Any]) -> Fault:
        """The same fault with what each rank finds when it computes its share of the batch again."""
        batch = self._clock.batch
        if fault.is_applied or batch is None or engine is None:
            return fault
        examination = _Examination(engine)
        # A hook sees the gradient before it is reduced over ranks, whatever the strategy does with it then.
        hooks = [leaf.register_hook(partial(examination.check, name)) for name, leaf in engine.leaves().items()]
        self._examination = examination
        try:
            recompute(batch)
        finally:
            self._examination = None
            for hook in hooks:
                hook.remove()
        own = self._rank_report(batch, engine.grad_accumulation_steps, examination.own_losses, examination.gradients)
        reports = tuple(self._ranks.all_gather_object(own))
        repeats = not all(report.is_finite for report in reports)
        return replace(fault, rank_reports=reports if repeats else fault.rank_reports, repeats=repeats)


def check_policy(policy: str) -> None:
    """Raises ConfigError unless `policy` is one of POLICIES."""
    if policy not in POLICIES:
        raise ConfigError(
            f"nonfinite={policy!r}: must be one of {', '.join(POLICIES)}.{nearest(str(policy), POLICIES)}"
        )
