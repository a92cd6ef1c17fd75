"""EngineState: what a checkpoint holds of an engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainkit.distributed.shard import Shard, aliases, buffer_shards, gathered, require_fitting, take_fitting
from trainkit.engine.backend import Backend
from trainkit.engine.learning_rates import LearningRates
from trainkit.errors import ConfigError, UsageError
from trainkit.memory.memory import Memory
from trainkit.optim.ema import ExponentialMovingAverage
from trainkit.optim.groups import hyperparameters, restore
from trainkit.precision import LossScaler

Shapes = Mapping[str, Mapping[str, tuple[torch.Size, torch.dtype]]]
Shards = dict[str, dict[str, Shard]]


@dataclass(frozen=True)
class Snapshot:
    """What one rank held of an engine.

    Args:
        shards: as `EngineState.shards`.
        scalars: as `EngineState.scalars`.
    """

    shards: Shards
    scalars: dict[str, Any]


class EngineState:
    """Reads and writes an engine's weights, optimizer state, averages, loss scale and counters, by name.

    Args:
        backend: the module and its optimizer.
        name: of the engine, for messages.
        average: the averaged weights, if any.
        scaler: the loss scaler, if any.
        rates: the learning rates.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        name: str,
        average: ExponentialMovingAverage | None,
        scaler: LossScaler | None,
        rates: LearningRates,
    ) -> None:
        self.num_updates = 0
        """Steps that updated the parameters."""
        self.is_averaged = False
        """Whether the module has the averaged weights in place."""
        self._backend, self._name, self._average = backend, name, average
        self._scaler, self._rates = scaler, rates
        self._first_groups = hyperparameters(backend.optimizer)

    @property
    def _module(self) -> nn.Module:
        return self._backend.module

    def parameter_sizes(self) -> tuple[list[int], list[int]]:
        """The elements of each trained parameter, and of each of the others."""
        sizes = {name: shard.shape.numel() for name, shard in self.weights().items()}
        trained = [size for name, size in sizes.items() if name in self._backend.trainable]
        return trained, [size for name, size in sizes.items() if name not in self._backend.trainable]

    def weights(self) -> dict[str, Shard]:
        """The shard of each parameter that this rank holds, in full precision: what the optimizer writes to."""
        return self._backend.tensors.weights()

    def memory(self) -> Memory:
        """The bytes that this rank holds, counted from its tensors; gradients and state once a step has been made."""
        return self._backend.tensors.memory(self._backend.gradient_bytes)

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Keeps weights at exactly 0 where a mask is set: now, after every step, and in their averages.

        Collective: every rank must call.

        Args:
            masks: by parameter name, the bits of whole parameters as `trainkit.ops.bits.pack_bits` makes them, equal on
                every rank. They replace those that were set before. No checkpoint holds them: set them again after
                loading one.

        Raises:
            UsageError: where a mask fits no trained parameter.
        """
        self.require_trained("set_masks()")
        self._backend.tensors.set_masks(masks, self._average_shards())

    def require_trained(self, what: str) -> None:
        """Raises UsageError within `Engine.averaged`, for `what` needs the trained weights in place."""
        if self.is_averaged:
            raise UsageError(
                f"{what} of engine {self._name!r} within averaged(), where its module has the averaged weights: end "
                f"that block first"
            )

    def buffers(self) -> list[Tensor]:
        """The buffers that differ between ranks and of which a checkpoint holds rank 0's; of the averages, too."""
        averaged = self._average.buffers() if self._average is not None else []
        return [*(shard.local for shard in buffer_shards(self._module).values()), *averaged]

    def shards(self) -> Shards:
        """The shards that this rank holds, as `module`, `optimizer` (by name/key), `average` and `error_feedback`.

        Collective where a lossy plan has errors to carry over.
        """
        module, average = self._module_shards(), self._average_shards()
        if self.is_averaged:
            module, average = average, module
        feedback = self._backend.reduction.error_feedback()
        return {
            "module": module,
            "optimizer": {
                f"{name}/{key}": shard
                for name, entry in self._backend.tensors.optimizer_state().items()
                for key, shard in entry.items()
            },
            "average": average,
            "error_feedback": feedback.shards() if feedback is not None else {},
        }

    def scalars(self) -> dict[str, Any]:
        """The JSON-able rest of a checkpoint."""
        return {
            "num_updates": self.num_updates,
            "scaler": self._scaler.state_dict() if self._scaler is not None else None,
            "comm": self._backend.reduction.choice(),
            "groups": {"first": self._first_groups, "now": self._rates.groups()},
            "aliases": aliases(self._module),
        }

    def state_dict(self, rank: int) -> dict[str, Any]:
        """Whole tensors by part and name, as `shards` has them, and `scalars`. Collective: every rank must call.

        Args:
            rank: of this process. Where a strategy shards tensors, rank 0 alone gets them, on the CPU.
        """
        parts = {part: gathered(shards, rank) for part, shards in self.shards().items()}
        return {**parts, "scalars": self.scalars()}

    def snapshot(self) -> "Snapshot":
        """A copy, in the CPU's memory, of what this rank holds; see `restore`."""
        parts = {
            part: {name: shard.like(shard.local.detach().to("cpu", copy=True)) for name, shard in shards.items()}
            for part, shards in self.shards().items()
        }
        return Snapshot(parts, self.scalars())

    def restore(self, snapshot: "Snapshot") -> None:
        """Takes over the snapshot of an engine of the same shape and strategy. Collective: every rank must call."""
        self.choose_plan(snapshot.scalars)
        shards = self.empty(
            {
                part: {name: (shard.shape, shard.local.dtype) for name, shard in by_name.items()}
                for part, by_name in snapshot.shards.items()
            }
        )
        with torch.no_grad():
            for part, by_name in snapshot.shards.items():
                for name, shard in by_name.items():
                    shards[part][name].local.copy_(shard.local.view(shards[part][name].local.shape))
        self.loaded(shards, snapshot.scalars)

    def choose_plan(self, scalars: Mapping[str, Any]) -> None:
        """Reduces gradients along the plan of a checkpoint, on the same machines. Comes before `empty`. Collective."""
        self._backend.reduction.choose(scalars.get("comm"))

    def empty(self, saved: Shapes) -> Shards:
        """Shards that a checkpoint is to be read into, by part and name; `loaded` ends it.

        Args:
            saved: shapes and dtypes of what the checkpoint holds.

        Raises:
            ConfigError: naming the first tensor that does not fit.
        """
        self.require_trained("loading")
        where = f"engine {self._name!r}"
        require_fitting(self._module_shards(), saved["module"], where)
        if self._average is not None:
            require_fitting(self._average.shards(), saved["average"], f"averaged weights of {where}")
        weights = self._backend.tensors.weights()
        optimizer = {}
        for path, (shape, dtype) in saved["optimizer"].items():
            name = path.rpartition("/")[0]
            if name not in weights:
                raise ConfigError(f"optimizer state of {name!r}, which {where} has no parameter for")
            optimizer[path] = self._backend.tensors.empty_state(weights[name], shape, dtype)
        return {
            "module": self._module_shards(),
            "optimizer": optimizer,
            "average": self._average_shards(),
            "error_feedback": self._backend.reduction.empty_errors(saved["error_feedback"]),
        }

    def loaded(self, shards: Mapping[str, Mapping[str, Shard]], scalars: Mapping[str, Any]) -> list[str]:
        """Takes over what was read into the shards of `empty`. Collective: every rank must call.

        Returns:
            Lines about hyperparameters that stay what this run was given.

        Raises:
            ConfigError: for optimizer state that does not fit.
        """
        if (feedback := self._backend.reduction.error_feedback()) is not None:
            feedback.load(shards["error_feedback"])
        by_name: dict[str, dict[str, Shard]] = {}
        for path, shard in shards["optimizer"].items():
            name, _, key = path.rpartition("/")
            by_name.setdefault(name, {})[key] = shard
        self._backend.tensors.load_optimizer_state(by_name)
        self._backend.tensors.refresh()
        self.num_updates = int(scalars["num_updates"])
        if self._scaler is not None and scalars["scaler"] is not None:
            self._scaler.load_state_dict(scalars["scaler"])
        groups = scalars.get("groups")  # older checkpoints have none
        return restore(self._backend.optimizer, self._first_groups, groups) if groups is not None else []

    def inherit(self, old: "EngineState", *, optimizer: bool) -> None:
        """Copies what `old` holds under the same names and shapes. Collective: every rank must call.

        Args:
            old: the state of the engine that this one replaces.
            optimizer: whether the optimizer's state is copied too.
        """
        take_fitting(self._module_shards(), old._module_shards())
        self._backend.tensors.refresh()
        if optimizer:
            self._backend.tensors.inherit_optimizer_state(old._backend.tensors)
        if self._average is not None:
            self._average.reset()
            if old._average is not None:
                take_fitting(self._average.shards(), old._average.shards())
        self._backend.reduction.inherit(
            old._backend.reduction, {name: p.numel() for name, p in self._backend.trainable.items()}
        )
        self.num_updates = old.num_updates
        if self._scaler is not None and old._scaler is not None:
            self._scaler.load_state_dict(old._scaler.state_dict())

    def _module_shards(self) -> dict[str, Shard]:
        return {**self._backend.tensors.weights(), **buffer_shards(self._module)}

    def _average_shards(self) -> dict[str, Shard]:
        return self._average.shards() if self._average is not None else {}
