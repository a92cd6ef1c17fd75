"""ShardedTensors: a module's parameters and its optimizer's state, as this rank holds them."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainkit.distributed.shard import Shard
from trainkit.memory.memory import Memory
from trainkit.optim.sharded import ParameterRange, ShardedOptimizer, mask_after_steps, mask_range, require_whole


class ShardedTensors:
    """The parameters and optimizer state of one engine, by the module's own parameter names, whole on every rank.

    Strategies that shard them derive from it.

    Args:
        module: the module, whose parameters are named.
        optimizer: the optimizer that updates them.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.parameters = dict(module.named_parameters())
        self._masking: RemovableHandle | None = None

    def weights(self) -> dict[str, Shard]:
        """The shard of each parameter that this rank holds, in full precision: what the optimizer writes to."""
        return {name: Shard.whole(p) for name, p in self.parameters.items()}

    def refresh(self) -> None:
        """Makes the module compute with `weights` that were written to. Collective: every rank must call."""

    def ranges(self) -> dict[Tensor, list[ParameterRange]]:
        """The parameters, or ranges of them, that each of the optimizer's tensors consists of.

        See `ShardedOptimizer.set_ranges`.
        """
        weights = self.weights()
        return {
            p: [ParameterRange(name, weights[name].start, weights[name].local.numel(), weights[name].shape.numel())]
            for name, p in self.parameters.items()
        }

    def give_to_optimizer(self, trainable: Collection[str], device: torch.device) -> None:
        """Gives the optimizer the `ranges` that its tensors consist of. Collective: every rank must call.

        Args:
            trainable: names of the parameters that require a gradient.
            device: where sums over ranks are computed.

        Raises:
            ConfigError: where it is given shards of parameters and cannot work with them.
        """
        ranges = self.ranges()
        require_whole(self.optimizer, ranges)
        if isinstance(self.optimizer, ShardedOptimizer):
            weights = self.weights()
            # A frozen parameter may be whole on every rank.
            group = next((weights[name].group for name in trainable), None)
            self.optimizer.set_ranges(ranges, group=group, device=device)

    def set_masks(self, masks: Mapping[str, Tensor], averages: Mapping[str, Shard]) -> None:
        """See `EngineState.set_masks`. Collective: every rank must call."""
        if self._masking is not None:
            self._masking.remove()
        if isinstance(self.optimizer, ShardedOptimizer):
            self.optimizer.set_masks(masks)
        else:
            self._masking = mask_after_steps(self.optimizer, self.weights(), masks)
        for name in averages.keys() & masks.keys():
            mask_range(averages[name].local, masks[name], averages[name].start, averages[name].shape.numel())
        self.refresh()

    def optimizer_state(self) -> dict[str, dict[str, Shard]]:
        """The shards of the optimizer's state that this rank holds, by parameter and key."""
        weights = self.weights()
        return {
            name: {key: self._state_shard(value, weights[name]) for key, value in self.optimizer.state[p].items()}
            for name, p in self.parameters.items()
            if p in self.optimizer.state
        }

    @staticmethod
    def empty_state(weight: Shard, shape: torch.Size, dtype: torch.dtype) -> Shard:
        """A shard of zeros that a state of a parameter can be read into.

        Args:
            weight: of the parameter; see `weights`, which looks at all of them.
            shape: of the whole state; one of the parameter's own shape is sharded as the parameter is.
            dtype: of the state.
        """
        if shape == weight.shape:
            return weight.like(torch.zeros_like(weight.local, dtype=dtype))
        return Shard.whole(torch.zeros(shape, dtype=dtype))

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Shard]]) -> None:
        """The inverse of `optimizer_state`, of shards that `empty_state` makes.

        Parameters that it does not name begin without state.
        """
        names = {p: name for name, p in self.parameters.items()}
        loaded = self.optimizer.state_dict()
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        loaded["state"] = {
            i: {key: self._state_value(shard, p) for key, shard in state[names[p]].items()}
            for i, p in enumerate(ordered)
            if names[p] in state
        }
        self.optimizer.load_state_dict(loaded)
        for i, p in enumerate(ordered):
            for key, value in loaded["state"].get(i, {}).items():
                held = self.optimizer.state[p][key]
                if isinstance(held, Tensor) and held.dtype != value.dtype and held.shape != p.shape:
                    # Such as NAdam's product, float32 beside float64 parameters: load_state_dict casts it too.
                    self.optimizer.state[p][key] = value.to(held.device)

    def inherit_optimizer_state(self, old: "ShardedTensors") -> None:
        """Copies the optimizer's state of parameters that `old` has under the same names and shapes.

        Collective: every rank must call.
        """
        weights = self.weights()
        mine = {name: shard.shape for name, shard in weights.items()}
        kept: dict[str, dict[str, Shard]] = {}
        for name, entry in old.optimizer_state().items():
            whole = {key: shard.full() for key, shard in entry.items()}
            if all(value.ndim == 0 or value.shape == mine.get(name) for value in whole.values()) and name in mine:
                kept[name] = {k: self.empty_state(weights[name], v.shape, v.dtype) for k, v in whole.items()}
                for key, value in whole.items():
                    kept[name][key].take(value)
        self.load_optimizer_state(kept)

    def memory(self, gradient_bytes: int) -> Memory:
        """The bytes that this rank holds, counted from its tensors; of gradients as given."""
        state = [shard.local for entry in self.optimizer_state().values() for shard in entry.values()]
        return Memory(self.parameter_bytes(), gradient_bytes, sum(num_bytes(tensor) for tensor in state))

    def parameter_bytes(self) -> int:
        """The bytes of parameters that this rank holds."""
        return sum(num_bytes(shard.local) for shard in self.weights().values())

    def _state_shard(self, value: Any, weight: Shard) -> Shard:
        return Shard.whole(value if isinstance(value, Tensor) else torch.tensor(value))

    def _state_value(self, shard: Shard, p: nn.Parameter) -> Any:
        return shard.local


def num_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
