"""Engine: one module and the one optimizer that updates it.

    for micro in engine.micro_batches(batch):
        engine.backward(loss, weight=n)
    result = engine.step()

A turn's gradient is the sum of weight * grad(loss) over ranks and micro-batches, divided by the sum of the weights:
the gradient of the weighted mean over the global batch, whatever the split.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainkit.backend import Backend
from trainkit.comm.cluster import Cluster
from trainkit.data.batch import Batch
from trainkit.errors import ConfigError, UsageError
from trainkit.ops.dropout import Dropout
from trainkit.optim.ema import Average
from trainkit.precision import Precision
from trainkit.random import key_of

Schedule = Callable[[int, int], float]


class Clock:
    """The batch that a run is at. The runtime turns it; engines read weights, positions and learning rates off it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.batch: Batch | None = None
        self.position = 0
        """Samples in the steps done so far: where a resume goes on."""

    def arrive(self, batch: Batch) -> None:
        """`batch` is the one that the next calls are about; until a step is made with it, it does not count as done."""
        self.batch, self.position = batch, batch.position

    def stepped(self) -> None:
        if self.batch is not None:
            self.position = self.batch.position + self.batch.size


@dataclass(frozen=True)
class StepResult:
    """What a turn came to, over the global batch. Tensors stay on the device: reading one waits for it.

    loss: weighted mean.  grad_norm: before clipping.  lr: of the first parameter group.
    skipped: a gradient overflowed, so parameters, optimizer state and averages are as before.
    """

    loss: Tensor
    grad_norm: Tensor
    lr: float
    skipped: bool
    loss_scale: float | None

    def metrics(self, prefix: str = "") -> dict[str, Tensor | float]:
        """loss, grad_norm, lr, skipped (and loss_scale in fp16), each name after `prefix`."""
        values: dict[str, Tensor | float] = {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "skipped": float(self.skipped),
        }
        if self.loss_scale is not None:
            values["loss_scale"] = self.loss_scale
        return {prefix + name: value for name, value in values.items()}


class Engine:
    """A module, its optimizer, and everything that happens between a loss and an update. Made by `Runtime.setup`.

    Calling it runs the module's forward pass under the run's precision and strategy. `module` is the user's own
    object, and parameter names everywhere are its own.
    """

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
        clip: float | None,
        schedule: Schedule | None,
        average: Average | None,
        accumulation: int,
    ) -> None:
        self.name, self.module, self.optimizer = name, backend.module, backend.optimizer
        self.clip, self.schedule, self.average, self.accumulation = clip, schedule, average, accumulation
        self.scaler = precision.scaler()
        self.num_updates = 0
        self.retired = False
        self._backend, self._clock, self._cluster, self._device = backend, clock, cluster, device
        self._precision, self._autocasts = precision, precision.autocast_dtype is not None
        self._base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._dropouts = [
            (layer, key_of(clock.seed, "dropout", name, path))
            for path, layer in self.module.named_modules()
            if isinstance(layer, Dropout)
        ]
        # One process with one micro-batch needs no weights: its loss is the mean already.
        self._needs_weights = cluster.world_size > 1 or accumulation > 1
        self._frozen: list[nn.Parameter] | None = None
        self._begin_turn()

    # -- a turn ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, under autocast where the precision asks for it."""
        self._require_active()
        if self._dropouts:
            self._key_dropouts()
        forward = self.module if self._frozen is not None else self._backend.forward
        if not self._autocasts:
            return forward(*args, **kwargs)
        with self._precision.autocast(self._device):
            return forward(*args, **kwargs)

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """The `accumulation` micro-batches of this rank's share; with accumulation 1, the batch itself.

        Each must see exactly one `backward`. Raises UsageError otherwise.
        """
        for number in range(self.accumulation):
            last = number == self.accumulation - 1
            micro = batch if self.accumulation == 1 else batch.micro_batch(number, self.accumulation)
            self._micro, self._is_last, self._num_backwards, self._num_forwards = micro, last, 0, 0
            self._backend.begin(last)
            yield micro
            if self._num_backwards == 0:
                raise UsageError(
                    f"micro-batch {number + 1} of {self.accumulation} of engine {self.name!r} ended without a "
                    f"backward: call engine.backward(loss) once in each"
                )

    def backward(self, loss: Tensor, weight: Tensor | float | None = None) -> None:
        """Adds the gradient of `loss`, a mean over `weight` items (default: the samples of the micro-batch).

        Exactly one call a micro-batch: add the terms of a loss first. With weight 0 the rank takes part and adds
        nothing; PyTorch's own means over no items are fine then, a division of one's own must be by at least 1.
        Collective in the last micro-batch of a turn: every rank calls. Raises UsageError on a second call,
        on weights given in some micro-batches of a turn only, and on a loss that is not a scalar.
        """
        self._check_backward(loss, weight)
        self._num_backwards += 1
        if self._needs_weights:
            weight = self._default_weight() if weight is None else weight
            loss = self._weigh(loss, weight)
        else:
            self._loss = loss.detach()
        if self.scaler is not None:
            loss = loss * self.scaler.scale
        self._backend.backward(loss, self._is_last)

    def step(self) -> StepResult:
        """Ends the turn: updates parameters and averages, or skips on an fp16 overflow and says so.

        Order: reduce, unscale, finite?, clip, update, average. Collective: every rank calls.
        """
        self._require_active()
        if not self._ready:
            raise UsageError(f"step() of engine {self.name!r} without a backward before it in this turn")
        loss, factor = self._totals()
        if self.scaler is not None:
            factor = factor / self.scaler.scale
        lr = self._set_learning_rates()
        norm = self._backend.finish_gradients(factor, self.clip)
        skipped = False
        scale = None
        if self.scaler is not None:
            scale = self.scaler.scale
            skipped = not math.isfinite(norm.item())  # waits for the device; the update depends on it
            self.scaler.update(not skipped)
        if skipped:
            self._backend.discard()
        else:
            self._backend.update()
            self.num_updates += 1
            if self.average is not None:
                self.average.update()
        self._begin_turn()
        self._clock.stepped()
        return StepResult(loss, norm, lr, skipped, scale)

    # -- other engines' turns ----------------------------------------------------------------------------------------

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Another engine's turn: gradients flow through this module, none reach its parameters, nothing is reduced."""
        if self._frozen is not None:
            raise UsageError(f"engine {self.name!r} is frozen already")
        # The objects are held, not their names: a parameter that its user froze must stay so afterwards.
        self._frozen = [p for p in self.module.parameters() if p.requires_grad]
        for p in self._frozen:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in self._frozen:
                p.requires_grad_(True)
            self._frozen = None

    def input_gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The module's output for `x`, and the gradient of the output's sum with respect to `x`, same shape as `x`.

        Further arguments go to the module. Both can be differentiated again, for gradient penalties. Runs the raw
        module with autocast off.
        """
        self._require_active()
        if self._dropouts:
            self._key_dropouts()
        x = x.to(self._precision.dtype)
        if not x.requires_grad:
            x = x.detach().requires_grad_(True)
        with torch.autocast(self._device.type, enabled=False):
            output = self.module(x, *args, **kwargs)
            (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return output, gradient

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The module with its averaged weights in place, for evaluation; the trained ones come back at the end."""
        if self.average is None:
            raise UsageError(f"engine {self.name!r} keeps no averaged weights: give runtime.setup(..., ema=0.999)")
        self.average.swap()
        try:
            yield self.module
        finally:
            self.average.swap()

    # -- what a checkpoint holds -------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Tensors by the module's own names: `module`, `optimizer` (as name/key), `average`; and scalars."""
        names = self._parameter_names()
        optimizer = {}
        for p, entry in self.optimizer.state.items():
            for key, value in entry.items():
                optimizer[f"{names[p]}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return {
            "module": module_tensors(self.module),
            "optimizer": optimizer,
            "average": self.average.tensors() if self.average is not None else {},
            "scalars": {
                "num_updates": self.num_updates,
                "scaler": self.scaler.state() if self.scaler is not None else None,
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Raises ConfigError naming the first tensor that does not fit."""
        _copy_tensors(module_tensors(self.module), state["module"], f"engine {self.name!r}")
        self._load_optimizer(state["optimizer"])
        if self.average is not None:
            _copy_tensors(self.average.tensors(), state["average"], f"averaged weights of engine {self.name!r}")
        self.num_updates = int(state["scalars"]["num_updates"])
        if self.scaler is not None and state["scalars"]["scaler"] is not None:
            self.scaler.load_state(state["scalars"]["scaler"])

    def inherit(self, old: "Engine", *, optimizer: bool) -> None:
        """Takes over what `old` learnt about parameters of the same name and shape, and retires it."""
        mine = {name: p.shape for name, p in self.module.named_parameters()}
        state = old.state()
        if optimizer:
            kept = {key: value for key, value in state["optimizer"].items() if _fits(key, value, mine)}
            self._load_optimizer(kept)
        if self.average is not None:
            self.average.inherit(state["average"])
        self.num_updates = old.num_updates
        if self.scaler is not None and old.scaler is not None:
            self.scaler.load_state(old.scaler.state())
        old.retired = True
        old._backend.retire()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _begin_turn(self) -> None:
        self._micro = None
        self._is_last = True
        self._num_backwards = 0
        self._num_forwards = 0
        self._ready = False
        self._weights_given: bool | None = None
        self._sums: Tensor | None = None
        self._work: dist.Work | None = None
        self._loss = None
        self._loss_divisor = 1.0
        self._backend.begin(last=True)

    def _require_active(self) -> None:
        if self.retired:
            raise UsageError(f"engine {self.name!r} was inherited from: use the engine that took its place")

    def _check_backward(self, loss: Tensor, weight: Tensor | float | None) -> None:
        self._require_active()
        if self._frozen is not None:
            raise UsageError(f"backward() of engine {self.name!r} while it is frozen: call the other engine's backward")
        if self._num_backwards:
            raise UsageError(
                f"a second backward() of engine {self.name!r} in one micro-batch: add the loss terms and call it once, "
                f"or iterate engine.micro_batches(batch), or end the turn with step()"
            )
        if loss.ndim != 0:
            raise UsageError(f"backward() takes a scalar loss; engine {self.name!r} was given shape {[*loss.shape]}")
        given = weight is not None
        if self._weights_given not in (None, given):
            raise UsageError(
                f"engine {self.name!r} was given a weight in some micro-batches of this turn only: "
                f"give it in all, or in none"
            )
        self._weights_given = given
        self._ready = self._ready or self._is_last

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
        sums = torch.stack((weights, weights * loss.detach().double()))
        self._sums = sums if self._sums is None else self._sums + sums
        if self._is_last and self._cluster.world_size > 1:
            self._work = dist.all_reduce(self._sums, async_op=True)
        return loss * (weights / self._loss_divisor).to(loss.dtype)

    def _totals(self) -> tuple[Tensor, Tensor | float]:
        """The mean loss, and the factor that turns the reduced gradients into the gradient of that mean."""
        if self._sums is None:
            assert self._loss is not None
            return self._loss, 1.0
        if self._work is not None:
            self._work.wait()
        weight, weighted_loss = self._sums
        some = weight > 0
        factor = torch.where(some, self._loss_divisor * self._backend.gradient_divisor / weight, 0.0)
        return torch.where(some, weighted_loss / weight, 0.0), factor

    def _set_learning_rates(self) -> float:
        groups = self.optimizer.param_groups
        if self.schedule is None:
            return float(groups[0]["lr"])
        batch = self._clock.batch
        if batch is None:
            raise UsageError(
                f"engine {self.name!r} has a schedule, which needs positions: iterate runtime.batches(...)"
            )
        factor = self.schedule(batch.position, batch.size)
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

    def _parameter_names(self) -> dict[Tensor, str]:
        return {p: name for name, p in self.module.named_parameters()}

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        names = self._parameter_names()
        by_name: dict[str, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            name, _, key = path.rpartition("/")
            by_name.setdefault(name, {})[key] = value
        unknown = sorted(set(by_name) - set(names.values()))
        if unknown:
            raise ConfigError(f"optimizer state of {unknown[0]!r}, which engine {self.name!r} has no parameter for")
        whole = self.optimizer.state_dict()
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        whole["state"] = {i: by_name[names[p]] for i, p in enumerate(ordered) if names[p] in by_name}
        self.optimizer.load_state_dict(whole)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once, detached but not copied."""
    tensors = {name: p.detach() for name, p in module.named_parameters()}
    persistent = module.state_dict(keep_vars=True)
    tensors.update({name: buffer.detach() for name, buffer in module.named_buffers() if name in persistent})
    return tensors


def _copy_tensors(into: dict[str, Tensor], values: dict[str, Tensor], what: str) -> None:
    for name in sorted(into.keys() ^ values.keys()):
        where = "the checkpoint" if name in into else "the module"
        raise ConfigError(f"{what}: {name!r} is missing from {where}; was the model's configuration another one?")
    for name, tensor in into.items():
        if tensor.shape != values[name].shape:
            raise ConfigError(
                f"{what}: {name!r} has shape {[*tensor.shape]}, the checkpoint's has {[*values[name].shape]}; "
                f"was the model's configuration another one?"
            )
        tensor.copy_(values[name])


def _fits(key: str, value: Tensor, shapes: dict[str, torch.Size]) -> bool:
    """Whether optimizer state `name/key` belongs to a parameter in `shapes`; scalars such as a step count fit any."""
    shape = shapes.get(key.rpartition("/")[0])
    return shape is not None and (value.ndim == 0 or value.shape == shape)
