"""Engine: one module and the one optimizer that updates it.

    for micro in engine.micro_batches(batch):
        engine.backward(loss, weight=n)
    result = engine.step()

A turn's gradient is the sum of weight * grad(loss) over ranks and micro-batches, divided by the sum of the weights:
the gradient of the weighted mean over the global batch, whatever the split.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainkit.data.batch import Batch
from trainkit.data.clock import Clock
from trainkit.distributed.cluster import Cluster
from trainkit.distributed.shard import (
    Shard,
    aliases,
    buffer_shards,
    gathered,
    require_fitting,
    share_from_first,
    take_fitting,
)
from trainkit.engine.backend import Backend
from trainkit.engine.step_result import StepResult
from trainkit.errors import ConfigError, UsageError
from trainkit.memory.memory import Memory
from trainkit.modules.blocks import eagerly
from trainkit.ops.dropout import Dropout
from trainkit.optim.ema import ExponentialMovingAverage
from trainkit.optim.groups import Groups, hyperparameters, restore
from trainkit.precision import Precision
from trainkit.random import key_of

if TYPE_CHECKING:
    from trainkit.health.guard import Guard

ScheduleFunction = Callable[[int, int], float]


class Engine:
    """A module, its optimizer, and everything that happens between a loss and an update. Made by `Runtime.setup`.

    Calling it runs the module's forward pass under the run's precision and strategy. `module` is the user's own
    object, and parameter names everywhere are its own.
    """

    own_losses: list[Tensor]  # this rank's alone, one a micro-batch of the turn
    _micro: Batch | None
    _loss: Tensor | None

    def __init__(
        self,
        backend: Backend,
        *,
        name: str,
        clock: Clock,
        cluster: Cluster,
        device: torch.device,
        precision: Precision,
        guard: "Guard",
        max_grad_norm: float | None,
        schedule: ScheduleFunction | None,
        average: ExponentialMovingAverage | None,
        grad_accumulation_steps: int,
        is_compiled: bool = False,
    ) -> None:
        self.name, self.module, self.optimizer = name, backend.module, backend.optimizer
        self.schedule, self.average, self.grad_accumulation_steps = schedule, average, grad_accumulation_steps
        self.scaler = precision.scaler()
        self.num_updates = 0
        self.retired = False
        self._backend, self._clock, self._cluster, self._device = backend, clock, cluster, device
        self._precision, self._autocasts, self._guard = precision, precision.autocast_dtype is not None, guard
        self.max_grad_norm = backend.take_over(max_grad_norm, device)
        self._base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._first_groups = hyperparameters(self.optimizer)
        self._dropouts = [
            (layer, key_of(clock.seed, "dropout", name, path))
            for path, layer in self.module.named_modules()
            if isinstance(layer, Dropout)
        ]
        # One process with one micro-batch needs no weights: its loss is the mean already.
        self._needs_weights = cluster.world_size > 1 or grad_accumulation_steps > 1
        self._is_frozen = self._is_averaged = False
        self._is_compiled = is_compiled
        self._begin_turn()

    def parameter_sizes(self) -> tuple[list[int], list[int]]:
        """Elements of each parameter: of those that are trained, and of the others."""
        sizes = {name: shard.shape.numel() for name, shard in self._backend.weights().items()}
        trained = [size for name, size in sizes.items() if name in self._backend.trainable]
        return trained, [size for name, size in sizes.items() if name not in self._backend.trainable]

    def weights(self) -> dict[str, Shard]:
        """What this rank holds of each parameter, in full precision: what the optimizer writes to."""
        return self._backend.weights()

    def held(self) -> Memory:
        """The bytes that this rank holds, counted from its tensors; gradients and state once a step has been made."""
        return self._backend.held()

    def leaves(self) -> dict[str, Tensor]:
        """By parameter, the tensors that this rank's own gradients come to before any reduction. Collective."""
        return self._backend.leaves()

    # -- a turn ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, under autocast where the precision asks for it."""
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
        """The `grad_accumulation_steps` micro-batches of this rank's share; where that is 1, the batch itself.

        Each must see exactly one `backward`. Raises UsageError otherwise. One of a share of fewer samples has none.
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
        """Adds the gradient of `loss`, a mean over `weight` items (default: the samples of the micro-batch).

        Exactly one call a micro-batch: add the terms of a loss first. With weight 0 the rank takes part and adds
        nothing, a loss of 0/0 included, except where the weight is a tensor on a GPU: there PyTorch's own means over no
        items are fine, and a division of one's own must be by at least 1. Where nothing counts in a whole turn, on all
        ranks, its loss is 0 and its gradient zero.
        Collective in the last micro-batch of a turn: every rank calls. Raises UsageError on a second call,
        on weights given in some micro-batches of a turn only, and on a loss that is not a scalar or a constant.
        """
        self._check_backward(loss, weight)
        self._backend.follow_requires_grad()
        self._num_backwards += 1
        if self._is_last:
            self._clock.meet()
        counts = self._counts(weight)
        if self._needs_weights:
            weight = self._default_weight() if weight is None else weight
            loss = self._weigh(loss, weight)
        else:
            if isinstance(weight, Tensor) and weight.device.type != "cpu":
                loss = torch.where(weight > 0, loss, 0.0)
            self._loss = loss.detach() if counts else torch.zeros_like(loss)
            self.own_losses.append(self._loss)
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
        """Ends the turn: updates parameters and averages, or skips (on an fp16 overflow, say) and says so.

        Order: reduce, unscale, finite?, clip, update, average. Raises NonFiniteError, see `Runtime`. Collective.
        """
        self._require_active()
        self._require_trained("step()")
        if not self._ready:
            raise UsageError(f"step() of engine {self.name!r} without a backward before it in this turn")
        loss, factor, sums = self._totals()
        scale = None
        if self.scaler is not None:
            scale = self.scaler.scale
            factor = factor / scale
        lr = self._set_learning_rates()
        gate = self._guard.gate(loss, self.scaler is not None or self._backend.reads_every_step)
        norm, skipped = self._backend.update(factor, self.max_grad_norm, sums=sums, gate=gate)
        if self.scaler is not None and not self._guard.is_examining:
            self.scaler.update(not skipped)
            if (feedback := self._backend.feedback()) is not None and scale is not None:
                feedback.rescale(self.scaler.scale / scale)
        if not skipped:
            self.num_updates += 1
            if self.average is not None:
                self.average.update()
        own_losses, norms = self.own_losses, self._backend.norms
        self._backend.norms = None  # nothing of a turn is held until the next one
        self._begin_turn()
        self._clock.stepped()
        self._guard.see(self, loss, norm, skipped if gate is not None else None, own_losses, norms)
        return StepResult(loss, norm, lr, skipped, scale)

    # -- other engines' turns ----------------------------------------------------------------------------------------

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Another engine's turn: gradients flow through this module, none reach its parameters, nothing is reduced."""
        if self._is_frozen:
            raise UsageError(f"engine {self.name!r} is frozen already")
        with self._backend.frozen():
            self._is_frozen = True
            try:
                yield
            finally:
                self._is_frozen = False

    def input_gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The module's output for `x`, and the gradient of the output's sum with respect to `x`, same shape as `x`.

        Further arguments go to the module. Both can be differentiated again, for gradient penalties. Runs the raw
        module with autocast off, and as it was written where `compile` is on.
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
        """The module with its averaged weights in place, for evaluation; the trained ones come back at the end.

        A checkpoint that is saved meanwhile holds both as what they are. Every rank has rank 0's buffers afterwards.
        Raises UsageError where it is in place already, as do `backward`, `step`, `inherit` and loading meanwhile.
        Collective: every rank calls.
        """
        if self.average is None:
            raise UsageError(
                f"engine {self.name!r} keeps no averaged weights: give runtime.setup(..., ema_decay=0.999)"
            )
        self._require_trained("averaged()")
        share_from_first(self.own_buffers())
        self._swap_average()
        self._is_averaged = True
        try:
            yield self.module
        finally:
            self._is_averaged = False
            self._swap_average()

    def own_buffers(self) -> list[Tensor]:
        """The buffers that each rank has for itself and a checkpoint holds of rank 0; of the averages, too."""
        averaged = self.average.buffers() if self.average is not None else []
        return [*(shard.local for shard in buffer_shards(self.module).values()), *averaged]

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Has weights be exactly 0 where a mask is: now, after every step, and in their averages.

        masks: by the module's own names, bits of whole parameters as `trainkit.ops.bits.pack_bits` makes them, equal on
            every rank; they replace those from before. No checkpoint holds them: set them again after loading one.
        Raises UsageError when a mask fits no parameter that is trained. Collective: every rank calls.
        """
        self._require_trained("set_masks()")
        self._backend.set_masks(masks, self.average.shards() if self.average is not None else {})

    # -- what a checkpoint holds -------------------------------------------------------------------------------------

    def shards(self) -> dict[str, dict[str, Shard]]:
        """What this rank holds, by the module's own names: `module`, `optimizer` (as name/key), `average`, `feedback`.

        Collective where a lossy way to sum gradients has left something out.
        """
        module, average = self._module_shards(), self.average.shards() if self.average is not None else {}
        if self._is_averaged:
            module, average = average, module
        return {
            "module": module,
            "optimizer": {
                f"{name}/{key}": shard
                for name, entry in self._backend.optimizer_state().items()
                for key, shard in entry.items()
            },
            "average": average,
            "feedback": feedback.shards() if (feedback := self._backend.feedback()) is not None else {},
        }

    def scalars(self) -> dict[str, Any]:
        """The rest of what a checkpoint holds, JSON-able."""
        scaler = self.scaler.state_dict() if self.scaler is not None else None
        return {
            "num_updates": self.num_updates,
            "scaler": scaler,
            "comm": self._backend.choice(),
            "groups": {"first": self._first_groups, "now": self._groups()},
            "aliases": aliases(self.module),
        }

    def _groups(self) -> Groups:
        groups = hyperparameters(self.optimizer)
        if self.schedule is not None:  # it gives lr by position, whatever it was before
            for group, base in zip(groups, self._base_lrs, strict=False):  # a group that was just added has its own
                group["lr"] = base
        return groups

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors by part and name, as `shards` has them, and `scalars`.

        Collective: every rank calls. Where a strategy spreads tensors, rank 0 alone gets them, on the CPU.
        """
        parts = {part: gathered(shards, self._cluster.rank) for part, shards in self.shards().items()}
        return {**parts, "scalars": self.scalars()}

    def places(self, saved: Mapping[str, Mapping[str, tuple[torch.Size, torch.dtype]]]) -> dict[str, dict[str, Shard]]:
        """Where what a checkpoint holds, by part and name, is to be read to; `loaded` ends it.

        Raises ConfigError naming the first tensor that does not fit.
        """
        self._require_trained("loading")
        where = f"engine {self.name!r}"
        require_fitting(self._module_shards(), saved["module"], where)
        if self.average is not None:
            require_fitting(self.average.shards(), saved["average"], f"averaged weights of {where}")
        weights = self._backend.weights()
        places = {}
        for path, (shape, dtype) in saved["optimizer"].items():
            name = path.rpartition("/")[0]
            if name not in weights:
                raise ConfigError(f"optimizer state of {name!r}, which {where} has no parameter for")
            places[path] = self._backend.state_place(name, shape, dtype)
        return {
            "module": self._module_shards(),
            "optimizer": places,
            "average": self.average.shards() if self.average is not None else {},
            "feedback": self._backend.feedback_places(saved["feedback"]),
        }

    def prepare(self, scalars: Mapping[str, Any]) -> None:
        """To be called before `places`: sums gradients as the checkpoint did, on the same machines. Collective."""
        self._backend.reduce_as(scalars.get("comm"))

    def loaded(self, places: Mapping[str, Mapping[str, Shard]], scalars: Mapping[str, Any]) -> list[str]:
        """Takes over what was read to `places`; lines about hyper-parameters that stay what this run was given.

        Raises ConfigError. Collective: every rank calls.
        """
        if (feedback := self._backend.feedback()) is not None:
            feedback.load(places["feedback"])
        by_name: dict[str, dict[str, Shard]] = {}
        for path, shard in places["optimizer"].items():
            name, _, key = path.rpartition("/")
            by_name.setdefault(name, {})[key] = shard
        self._backend.load_optimizer_state(by_name)
        self._backend.refresh()
        self.num_updates = int(scalars["num_updates"])
        if self.scaler is not None and scalars["scaler"] is not None:
            self.scaler.load_state_dict(scalars["scaler"])
        groups = scalars.get("groups")  # older checkpoints have none
        return restore(self.optimizer, self._first_groups, groups) if groups is not None else []

    def inherit(self, old: "Engine", *, optimizer: bool) -> None:
        """Takes over what `old` holds under the same names and shapes, and retires it. Collective: every rank calls."""
        old._require_trained("inherit")
        take_fitting(self._module_shards(), old._module_shards())
        self._backend.refresh()
        if optimizer:
            self._backend.inherit_optimizer_state(old._backend)
        if self.average is not None:
            self.average.reset()
            if old.average is not None:
                take_fitting(self.average.shards(), old.average.shards())
        self._backend.inherit_feedback(old._backend)
        self.num_updates = old.num_updates
        if self.scaler is not None and old.scaler is not None:
            self.scaler.load_state_dict(old.scaler.state_dict())
        old.retire()

    def retire(self) -> None:
        """Lets go of what the strategy has made around the module; the engine cannot be used any more."""
        self.retired = True
        self._backend.retire()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _begin_turn(self) -> None:
        self._micro = None
        self._is_last = True
        self._num_backwards = self._num_forwards = 0
        self._ready = False
        self._weights_given: bool | None = None
        self._sums: Tensor | None = None
        self._work: dist.Work | None = None
        self._loss = None
        self.own_losses = []
        self._loss_divisor = 1.0
        self._backend.begin(last=True)

    def _require_active(self) -> None:
        if self.retired:
            raise UsageError(f"engine {self.name!r} was inherited from: use the engine that took its place")

    def _require_trained(self, what: str) -> None:
        if self._is_averaged:
            raise UsageError(
                f"{what} of engine {self.name!r} within averaged(), where its module has the averaged weights: end "
                f"that block first"
            )

    def _check_backward(self, loss: Tensor, weight: Tensor | float | None) -> None:
        self._require_active()
        self._require_trained("backward()")
        if self._is_frozen:
            raise UsageError(f"backward() of engine {self.name!r} while it is frozen: call the other engine's backward")
        if self._num_backwards:
            raise UsageError(
                f"a second backward() of engine {self.name!r} in one micro-batch: add the loss terms and call it once, "
                f"or iterate engine.micro_batches(batch), or end the turn with step()"
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
                f"engine {self.name!r} was given a weight in some micro-batches of this turn only: "
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

    def _weigh(self, loss: Tensor, weight: Tensor | float) -> Tensor:
        """loss * weight, and its place in the sums; the reduction of the sums starts with the last micro-batch."""
        weights = torch.as_tensor(weight, dtype=torch.float64, device=loss.device).detach()
        # A mean over no items is 0/0: it must add nothing, not a NaN.
        loss = torch.where(weights > 0, loss, torch.zeros((), dtype=loss.dtype, device=loss.device))
        # A fixed power of two keeps the products near the size of a mean's, so that fp16 gradients do not overflow.
        current = self._clock.batch
        self._loss_divisor = 2.0 ** round(math.log2(current.size)) if current is not None else 1.0
        self.own_losses.append(loss.detach())
        sums = torch.stack((weights, weights * loss.detach().double()))
        self._sums = sums if self._sums is None else self._sums + sums
        if self._is_last and self._cluster.world_size > 1 and not self._backend.adds_to_sums:
            self._work = dist.all_reduce(self._sums, async_op=True)
        return loss * (weights / self._loss_divisor).to(loss.dtype)

    def _totals(self) -> tuple[Tensor, Tensor | float, Tensor | None]:
        """The mean loss; the factor that makes the reduced gradients those of that mean; and what the backend adds.

        That is None where the backend knows all by itself; otherwise it travels with the other sums.
        """
        part = self._backend.own_sums()
        if self._sums is None:
            assert self._loss is not None
            return self._loss, 1.0, part
        sums = self._sums
        if part is not None:
            sums = torch.cat((sums, part.to(sums)))
            if self._cluster.world_size > 1:
                dist.all_reduce(sums)
        elif self._work is not None:
            self._work.wait()
        weight, weighted_loss = sums[:2]
        some = weight > 0
        factor = torch.where(some, self._loss_divisor * self._backend.gradient_divisor / weight, 0.0)
        return torch.where(some, weighted_loss / weight, 0.0), factor, sums[2:] if part is not None else None

    def _set_learning_rates(self) -> float:
        groups = self.optimizer.param_groups
        if self.schedule is None:
            return float(groups[0]["lr"])
        batch = self._clock.batch
        if batch is None:
            raise UsageError(
                f"engine {self.name!r} has a schedule, which needs positions: iterate runtime.batches(...)"
            )
        factor = self.schedule(self._clock.scheduled(batch.position), batch.size)
        self._base_lrs += [float(group["lr"]) for group in groups[len(self._base_lrs) :]]  # added since
        for group, base in zip(groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        return float(groups[0]["lr"])

    def _key_dropouts(self) -> None:
        current = self._micro if self._micro is not None else self._clock.batch
        if current is None or not self.module.training:
            return
        for layer, key in self._dropouts:
            layer.see(key, current.positions, self._num_forwards)
        self._num_forwards += 1

    def _module_shards(self) -> dict[str, Shard]:
        return {**self._backend.weights(), **buffer_shards(self.module)}

    def _swap_average(self) -> None:
        assert self.average is not None
        self.average.swap()
        self._backend.refresh()
