"""Engine: one module and the one optimizer that updates it.

    for micro in engine.micro_batches(batch):
        engine.backward(loss, weight=n)
    result = engine.step()

A step is what lies between two updates. Its gradient is the sum of weight * grad(loss) over ranks and micro-batches,
divided by the sum of the weights: the gradient of the weighted mean over the global batch, however it is split.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.data.batch import Batch
from trainkit.data.clock import Clock
from trainkit.distributed.cluster import Cluster
from trainkit.distributed.shard import broadcast_from_first
from trainkit.engine.backend import Backend
from trainkit.engine.learning_rates import LearningRates, ScheduleFunction
from trainkit.engine.mean_loss import MeanLoss
from trainkit.engine.state import EngineState
from trainkit.engine.step_record import StepGuard, StepRecord
from trainkit.engine.step_result import StepResult
from trainkit.errors import UsageError
from trainkit.modules.blocks import eagerly
from trainkit.ops.dropout import Dropout
from trainkit.optim.ema import ExponentialMovingAverage
from trainkit.optim.sharded import ShardedOptimizer
from trainkit.precision import Precision
from trainkit.random import key_of


class Engine:
    """A module, its optimizer, and everything that happens between a loss and an update. Made by `Runtime.setup`.

    Calling it runs the module's forward pass under the run's precision and strategy. `module` is the user's own
    object, and parameter names everywhere are its own.

    Args:
        backend: the module and its optimizer, as the strategy runs them.
        name: of the engine, for messages and dropout keys.
        clock: the position in the data.
        cluster: the rank of this process, and the number of them.
        device: where the module is.
        precision: for autocast and the loss scaler.
        guard: decides what a loss or gradient that is not finite leads to.
        max_grad_norm: largest norm of all gradients; None: no clipping.
        schedule: (position, batch size) -> factor on the learning rates.
        average: the averaged weights.
        grad_accumulation_steps: micro-batches in a step.
        is_compiled: whether blocks of the module are compiled.
    """

    _micro: Batch | None

    def __init__(
        self,
        backend: Backend,
        *,
        name: str,
        clock: Clock,
        cluster: Cluster,
        device: torch.device,
        precision: Precision,
        guard: StepGuard,
        max_grad_norm: float | None,
        schedule: ScheduleFunction | None,
        average: ExponentialMovingAverage | None,
        grad_accumulation_steps: int,
        is_compiled: bool = False,
    ) -> None:
        self.name, self.module, self.optimizer = name, backend.module, backend.optimizer
        self.average, self.grad_accumulation_steps = average, grad_accumulation_steps
        self.scaler = precision.scaler()
        self.retired = False
        self._backend, self._clock, self._cluster, self._device = backend, clock, cluster, device
        self._precision, self._autocasts, self._guard = precision, precision.autocast_dtype is not None, guard
        backend.tensors.give_to_optimizer(backend.trainable, device)
        # Lamb clips to a norm of its own; what another optimizer means by such an attribute is not known.
        own = getattr(self.optimizer, "max_grad_norm", None) if isinstance(self.optimizer, ShardedOptimizer) else None
        self.max_grad_norm = min((norm for norm in (max_grad_norm, own) if norm is not None), default=None)
        self._rates = LearningRates(self.optimizer, schedule)
        self.state = EngineState(backend, name=name, average=average, scaler=self.scaler, rates=self._rates)
        self._dropouts = [
            (layer, key_of(clock.seed, "dropout", name, path))
            for path, layer in self.module.named_modules()
            if isinstance(layer, Dropout)
        ]
        self._mean_loss = MeanLoss(backend, clock, cluster)
        # One process with one micro-batch needs no weights: its loss is the mean already.
        self._needs_weights = cluster.world_size > 1 or grad_accumulation_steps > 1
        self._is_frozen = False
        self._is_compiled = is_compiled
        self._begin_step()

    def leaves(self) -> dict[str, Tensor]:
        """By parameter, the tensors that this rank's own gradients are accumulated in, before a reduction. Collective.

        Under FSDP these are gathered parameters.
        """
        return self._backend.leaves()

    @property
    def own_losses(self) -> list[Tensor]:
        """[] each, the losses of this rank's micro-batches in the current step."""
        return self._mean_loss.own_losses

    @property
    def num_updates(self) -> int:
        """Steps that updated the parameters: those that were not skipped."""
        return self.state.num_updates

    def train(self, mode: bool = True) -> "Engine":
        """Puts the module into training mode, as `torch.nn.Module.train` does."""
        self.module.train(mode)
        return self

    def eval(self) -> "Engine":
        """Puts the module into evaluation mode, as `torch.nn.Module.eval` does."""
        return self.train(False)

    # -- a step ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, under autocast where the precision asks for it. Collective under FSDP and ZeRO-3."""
        self._require_active()
        if self._dropouts:
            self._key_dropouts()
        if self._backend.gathers_parameters:
            self._clock.meet()
        forward = self.module if self._is_frozen else self._backend.forward
        if not self._autocasts:
            return forward(*args, **kwargs)
        with self._precision.autocast(self._device):
            return forward(*args, **kwargs)

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """Splits this rank's share of a batch into `grad_accumulation_steps` micro-batches; 1 gives the batch itself.

        Call `backward` exactly once for each, on every rank: do not leave the loop early. With fewer samples than
        micro-batches, some have no sample.

        Args:
            batch: as `Runtime.batches` gives it.

        Raises:
            UsageError: where a micro-batch ended without a `backward`.
        """
        self._require_samples(batch)
        for number in range(self.grad_accumulation_steps):
            last = number == self.grad_accumulation_steps - 1
            micro = (
                batch if self.grad_accumulation_steps == 1 else batch.micro_batch(number, self.grad_accumulation_steps)
            )
            self._micro, self._is_last, self._num_backwards, self._num_forwards = micro, last, 0, 0
            self._backend.begin(last)
            yield micro
            if self._num_backwards == 0:
                raise UsageError(
                    f"micro-batch {number + 1} of {self.grad_accumulation_steps} of engine {self.name!r} ended without "
                    f"a backward: call engine.backward(loss) once in each"
                )

    def backward(self, loss: Tensor, weight: Tensor | float | None = None) -> None:
        """Adds the gradient of `loss`, a mean over `weight` items.

        Call it exactly once for each micro-batch: add the terms of a loss first. With weight 0 the rank takes part and
        adds nothing, even if the loss is 0/0. (Where the weight is a tensor on a GPU, a division of your own must be by
        at least 1; PyTorch's means over no items are fine.) Where all weights of a step are 0, on all ranks, its loss
        is 0 and its gradient zero. Collective in the last micro-batch of a step, and under FSDP and ZeRO in every one:
        every rank must call.

        Args:
            loss: a scalar.
            weight: items that the loss is a mean over; None: the samples of the micro-batch.

        Raises:
            UsageError: on a second call, on weights given in some micro-batches of a step only, and on a loss that is
                not a scalar or depends on no trained parameter.
        """
        self._check_backward(loss, weight)
        self._backend.follow_requires_grad()
        self._num_backwards += 1
        if self._is_last:
            self._clock.meet()
        counts = self._counts(weight)
        if self._needs_weights:
            weight = self._default_weight() if weight is None else weight
            loss = self._mean_loss.weigh(loss, weight, is_last=self._is_last)
        else:
            if isinstance(weight, Tensor) and weight.device.type != "cpu":
                loss = torch.where(weight > 0, loss, 0.0)
            self._mean_loss.take(loss.detach() if counts else torch.zeros_like(loss))
        if self.scaler is not None:
            loss = loss * self.scaler.scale
        backward = self._backend.backward if counts else self._backend.backward_of_nothing
        try:
            backward(loss, self._is_last)
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                raise UsageError(self._backward_twice()) from error
            raise

    def step(self) -> StepResult:
        """Updates the parameters and their averages, or skips the update, such as on an fp16 overflow.

        In this order: reduce, unscale, check that gradients are finite, clip, update, average. Collective: every rank
        must call.

        Returns:
            Loss and gradient norm over the global batch, learning rate, and whether the update was skipped.

        Raises:
            NonFiniteError: where the loss or the gradient is not finite; see `Runtime`.
            UsageError: without a `backward` since the last step.
        """
        self._require_active()
        self.state.require_trained("step()")
        if not self._ready:
            raise UsageError(f"step() of engine {self.name!r} without a backward since the last step")
        loss, factor, sums = self._mean_loss.totals()
        scale = None
        if self.scaler is not None:
            scale = self.scaler.scale
            factor = factor / scale
        lr = self._set_learning_rates()
        gate = self._guard.gate(loss, self.scaler is not None or self._backend.reads_every_step)
        norm, skipped = self._backend.update(factor, self.max_grad_norm, sums=sums, gate=gate)
        if self.scaler is not None and not self._guard.is_examining:
            self.scaler.update(not skipped)
            if (feedback := self._backend.reduction.error_feedback()) is not None and scale is not None:
                feedback.rescale(self.scaler.scale / scale)
        if not skipped:
            self.state.num_updates += 1
            if self.average is not None:
                self.average.update()
        own_losses, norms = self.own_losses, self._backend.norms
        self._backend.norms = None  # nothing of a step is held until the next one
        self._begin_step()
        self._clock.stepped()
        self._guard.see(self._record(loss, norm, skipped if gate is not None else None, own_losses, norms))
        return StepResult(loss, norm, lr, skipped, scale)

    # -- other engines' steps ----------------------------------------------------------------------------------------

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within it gradients flow through this module, its parameters get none, and nothing is reduced.

        For the steps of another engine whose loss goes through this one.

        Raises:
            UsageError: if the engine is frozen already.
        """
        if self._is_frozen:
            raise UsageError(f"engine {self.name!r} is frozen already")
        with self._backend.frozen():
            self._is_frozen = True
            try:
                yield
            finally:
                self._is_frozen = False

    def input_gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The module's output for `x`, and the gradient of the output's sum with respect to `x`.

        Both can be differentiated again, for gradient penalties. Runs the module with autocast off, and uncompiled
        where `compile` is on. Collective under FSDP and ZeRO-3.

        Args:
            x: a floating-point tensor.
            args: further arguments of the module.
            kwargs: further arguments of the module.

        Returns:
            The output, and the gradient, of the shape of `x`.
        """
        self._require_active()
        if self._dropouts:
            self._key_dropouts()
        x = x.to(self._precision.dtype)
        if not x.requires_grad:
            x = x.detach().requires_grad_(True)
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self._device.type, enabled=False))
            if self._is_compiled:
                stack.enter_context(eagerly())
            return self._backend.input_gradient(x, *args, **kwargs)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Within it the module has its averaged weights, for evaluation; afterwards the trained ones again.

        A checkpoint that is saved within it holds each under its own name. Buffers of rank 0 are broadcast first.
        Collective: every rank must call.

        Returns:
            The module.

        Raises:
            UsageError: if they are in place already; `backward`, `step`, `inherit` and loading raise it within.
        """
        if self.average is None:
            raise UsageError(
                f"engine {self.name!r} keeps no averaged weights: give runtime.setup(..., ema_decay=0.999)"
            )
        self.state.require_trained("averaged()")
        broadcast_from_first(self.state.buffers())
        self._swap_average()
        self.state.is_averaged = True
        try:
            yield self.module
        finally:
            self.state.is_averaged = False
            self._swap_average()

    # -- by name -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors by name, as `module`, `optimizer` (by name/key), `average` and `error_feedback`, and `scalars`.

        Where a strategy shards tensors, rank 0 alone gets them, on the CPU. Collective: every rank must call.
        """
        return self.state.state_dict(self._cluster.rank)

    def inherit(self, old: "Engine", *, optimizer: bool) -> None:
        """Takes over what `old` holds under the same names and shapes, and retires it. Collective."""
        old.state.require_trained("inherit")
        self.state.inherit(old.state, optimizer=optimizer)
        old.retire()

    def retire(self) -> None:
        """Removes what the strategy has made around the module; the engine cannot be used afterwards."""
        self.retired = True
        self._backend.retire()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        self._micro = None
        self._is_last = True
        self._num_backwards = self._num_forwards = 0
        self._ready = False
        self._weights_given: bool | None = None
        self._mean_loss.begin()
        self._backend.begin(last=True)

    def _require_active(self) -> None:
        if self.retired:
            raise UsageError(f"engine {self.name!r} was inherited from: use the engine that took its place")

    def _check_backward(self, loss: Tensor, weight: Tensor | float | None) -> None:
        self._require_active()
        self.state.require_trained("backward()")
        if self._is_frozen:
            raise UsageError(f"backward() of engine {self.name!r} while it is frozen: call the other engine's backward")
        if self._num_backwards:
            raise UsageError(
                f"a second backward() of engine {self.name!r} in one micro-batch: add the loss terms and call it once, "
                f"or iterate engine.micro_batches(batch), or call step()"
            )
        if loss.ndim != 0:
            raise UsageError(f"backward() takes a scalar loss; engine {self.name!r} was given shape {[*loss.shape]}")
        if not loss.requires_grad:
            raise UsageError(
                f"backward() of engine {self.name!r} was given a loss that depends on no parameter that is trained: "
                f"compute it from engine(...), outside torch.no_grad(), also where nothing counts (weight=0)"
            )
        given = weight is not None
        if self._weights_given not in (None, given):
            raise UsageError(
                f"engine {self.name!r} was given a weight in some micro-batches of this step only: "
                f"give it in all, or in none"
            )
        self._weights_given = given
        self._ready = self._ready or self._is_last

    def _backward_twice(self) -> str:
        return (
            f"the loss of engine {self.name!r} comes from a computation that another backward() has gone through: one "
            f"loss updates one engine. For several modules or optimizers with one loss, put the modules into one "
            f"nn.Module, and set up one engine of it, whose optimizer has a group of parameters for each; "
            f"trainkit.optim.MultiOptimizer makes one of several. Detach what is carried over from one step to the next"
        )

    def _require_samples(self, batch: Batch) -> None:
        num_micro_batches = self._cluster.world_size * self.grad_accumulation_steps
        if self._backend.needs_samples and batch.size < num_micro_batches:
            raise UsageError(
                f"a batch of {batch.size} samples on {self._cluster.world_size} ranks with grad_accumulation_steps="
                f"{self.grad_accumulation_steps}: some micro-batches would have none, and DeepSpeed needs a gradient "
                f"of every parameter in each; give batch_size={num_micro_batches} or more, or use strategy=fsdp or ddp"
            )

    def _counts(self, weight: Tensor | float | None) -> bool:
        """Whether anything counts in this micro-batch; true where only the device knows."""
        if weight is None:
            current = self._micro if self._micro is not None else self._clock.batch
            return current is None or len(current) > 0
        if isinstance(weight, Tensor) and weight.device.type != "cpu":
            return self._micro is None or len(self._micro) > 0
        return bool(weight != 0)

    def _default_weight(self) -> int:
        current = self._micro if self._micro is not None else self._clock.batch
        if current is None:
            raise UsageError(
                f"engine {self.name!r} cannot know how many samples this loss is a mean over: iterate "
                f"runtime.batches(...), or give backward(loss, weight=n)"
            )
        return len(current)

    def _record(
        self,
        loss: Tensor,
        norm: Tensor,
        skipped: bool | None,
        own_losses: list[Tensor],
        norms: tuple[list[str], Tensor] | None,
    ) -> StepRecord:
        scale, can_lower = None, False
        if self.scaler is not None:
            scale, can_lower = self.scaler.scale, not self.scaler.is_exhausted
        steps = self.grad_accumulation_steps
        return StepRecord(self.name, steps, loss, norm, skipped, own_losses, norms, scale, can_lower)

    def _set_learning_rates(self) -> float:
        if self._rates.schedule is None:
            return self._rates.current()
        batch = self._clock.batch
        if batch is None:
            raise UsageError(
                f"engine {self.name!r} has a schedule, which needs positions: iterate runtime.batches(...)"
            )
        return self._rates.set(self._clock.scheduled(batch.position), batch.size)

    def _key_dropouts(self) -> None:
        current = self._micro if self._micro is not None else self._clock.batch
        if current is None or not self.module.training:
            return
        for layer, key in self._dropouts:
            layer.see(key, current.positions, self._num_forwards)
        self._num_forwards += 1

    def _swap_average(self) -> None:
        assert self.average is not None
        self.average.swap()
        self._backend.tensors.refresh()
