"""Fully sharded data parallelism (FSDP2): parameters, gradients and optimizer state are sharded over processes."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from trainkit.distributed.cluster import Cluster
from trainkit.distributed.shard import Shard, broadcast_from_first
from trainkit.engine.backend import Backend
from trainkit.engine.sharded_tensors import ShardedTensors
from trainkit.errors import ConfigError, UsageError
from trainkit.memory.memory import Memory
from trainkit.optim.source import OptimizerSource
from trainkit.planning.reduce_plan import Kind
from trainkit.precision import Precision
from trainkit.strategy.base import Strategy, float32_memory
from trainkit.strategy.fitting import require_elementwise, require_shardable
from trainkit.strategy.fsdp_use import Use


@dataclass(frozen=True, kw_only=True)
class FSDP(Strategy):
    """Each process holds 1/N of parameters, gradients and optimizer state; a block's are gathered while it computes.

    Args:
        per_block: gathers the blocks that `setup(..., blocks=...)` names one at a time; false: the module as a whole,
            which takes more memory and fewer, larger messages. The rest of a module is always one unit.
        reshard_after_forward: blocks free gathered parameters after their forward pass and gather them again for the
            backward pass: less memory, more communication.
        cpu_offload: keeps parameters, gradients and optimizer state in host memory. Needs a GPU.
    """

    name: ClassVar[str] = "fsdp"
    needs_group: ClassVar[bool] = True
    per_block: bool = True
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    _meshes: dict[dist.ProcessGroup, DeviceMesh] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check(self, cluster: Cluster, precision: Precision, device: torch.device) -> None:
        if self.cpu_offload and device.type == "cpu":
            raise ConfigError(
                "strategy.cpu_offload=true: there is no GPU to offload from; use strategy.cpu_offload=false"
            )

    def attach(
        self,
        module: nn.Module,
        source: OptimizerSource,
        *,
        cluster: Cluster,
        device: torch.device,
        deterministic: bool,
        blocks: Sequence[type[nn.Module]],
    ) -> Backend:
        if any(isinstance(part, FSDPModule) for part in module.modules()):
            raise UsageError(
                f"setup() was given a module that strategy={self.name} has sharded already: make a new "
                f"module (inherit= takes the weights over by name), or use strategy=ddp, where one can grow in place"
            )
        parts = []
        if self.per_block and blocks:
            parts = [part for part in module.modules() if isinstance(part, tuple(blocks)) and part is not module]
        require_shardable(module, self.name, parts)
        mesh = self._mesh(cluster, device)
        require_elementwise(source, self.name, device, mesh)
        broadcast_from_first([*module.parameters(), *module.buffers()])
        policy = CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy()
        settings: dict[str, Any] = {"mesh": mesh, "offload_policy": policy}
        for part in reversed(parts):  # inner ones first
            fully_shard(part, reshard_after_forward=self.reshard_after_forward, **settings)
        fully_shard(module, reshard_after_forward=False, **settings)
        # The backend copies such a view.
        warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({type(module).__name__}\) returned a view")
        return _FSDPBackend(
            _FSDPTensors(module, source.make(), mesh), mesh, reshard_after_forward=self.reshard_after_forward
        )

    @property
    def traffic(self) -> float:
        # A reduce-scatter and an all-gather are an all-reduce; parameters that were freed are gathered once more.
        return 1.5 if self.reshard_after_forward else 1.0

    def predict(
        self, trained: Sequence[int], frozen: Sequence[int], state_tensors: int | None, cluster: Cluster
    ) -> Memory:
        share = self._shape(cluster)[-1]
        mine = -(-sum(trained) // share)
        return float32_memory(mine - (-sum(frozen) // share), mine, mine, state_tensors)

    def layout(self, cluster: Cluster) -> str:
        return f"{cluster.world_size} x shard"

    def _shape(self, cluster: Cluster) -> tuple[int, ...]:
        return (cluster.world_size,)

    def _mesh(self, cluster: Cluster, device: torch.device) -> DeviceMesh:
        world = dist.group.WORLD
        assert world is not None
        if world not in self._meshes:
            shape = self._shape(cluster)
            names = ("replicate", "shard")[-len(shape) :]
            self._meshes[world] = init_device_mesh(device.type, shape, mesh_dim_names=names)
        return self._meshes[world]


@dataclass(frozen=True, kw_only=True)
class HSDP(FSDP):
    """Sharded within groups of processes, replicated across groups, so that parameters are gathered over fast links.

    Args:
        shard_size: processes that share one copy; null: those of one machine.
    """

    name: ClassVar[str] = "hsdp"
    own_plan: ClassVar[Kind | None] = "hierarchical"
    shard_size: int | None = None

    def check(self, cluster: Cluster, precision: Precision, device: torch.device) -> None:
        super().check(cluster, precision, device)
        size = self._shard_size(cluster)
        if size < 1 or cluster.world_size % size:
            divisors = [str(n) for n in range(1, cluster.world_size + 1) if cluster.world_size % n == 0]
            raise ConfigError(
                f"strategy.shard_size={size} does not divide the job's {cluster.world_size} processes: "
                f"it must be one of {', '.join(divisors)}"
            )

    @property
    def traffic(self) -> float:
        return 1.0  # parameters are gathered within a machine, whose links are not what a step waits for

    def layout(self, cluster: Cluster) -> str:
        replicate, shard = self._shape(cluster)
        return f"{replicate} x replicate, {shard} x shard"

    def _shape(self, cluster: Cluster) -> tuple[int, ...]:
        size = self._shard_size(cluster)
        return (cluster.world_size // size, size)

    def _shard_size(self, cluster: Cluster) -> int:
        return self.shard_size if self.shard_size is not None else cluster.local_world_size


class _FSDPBackend(Backend):
    adds_to_sums = gathers_parameters = True

    def __init__(self, tensors: "_FSDPTensors", mesh: DeviceMesh, *, reshard_after_forward: bool) -> None:
        super().__init__(tensors, gradient_divisor=mesh.size())
        self.reshard_after_forward = reshard_after_forward
        self._is_differentiated_twice = False
        self.units = tensors.units
        self.num_replicas = mesh.size() // mesh["shard"].size()
        self._use = Use(self.parameters, tensors.module, self.units)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # An in-place operation of the caller's on a view would silently remove the hook that FSDP has put on it.
        return tree_map(_not_a_view, self.module(*args, **kwargs))

    def input_gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # The second differentiation needs the parameters that the first would free, and adds to gradients that the
        # first would reduce: gathered parameters stay, and nothing is reduced, until the backward pass has ended.
        self._is_differentiated_twice = True
        self._set_automatic(False)
        return super().input_gradient(x, *args, **kwargs)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()
        if self._is_differentiated_twice:
            self._is_differentiated_twice = False
            # What FSDP does at the end of a backward pass: once to end this one, once more with the reduction.
            assert isinstance(self.module, FSDPModule)
            end_backward = self.module._get_fsdp_state()._root_post_backward_final_callback
            end_backward()
            self._set_automatic(True)
            with self._use.of_every_unit():
                end_backward()
            self.tensors.refresh()

    def _set_automatic(self, on: bool) -> None:
        """Sets whether FSDP frees gathered parameters and reduces gradients by itself."""
        for unit in self.units:
            reshards = on and self.reshard_after_forward and unit is not self.module
            unit.set_reshard_after_forward(reshards, recurse=False)
            unit.set_reshard_after_backward(on, recurse=False)
            unit.set_requires_gradient_sync(on, recurse=False)

    def leaves(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for unit in self.units:
            unit.unshard()
            for name, p in self.module.named_parameters():
                if name in self.trainable and not isinstance(p, DTensor):
                    found[name] = p
            unit.reshard()
        return found

    def own_sums(self) -> Tensor:
        gradients = self._local_gradients()
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        self.norms = list(gradients), norms
        # Replicas hold the same gradients; the sum is over all ranks.
        squared = norms.double().square().sum() / self.num_replicas
        return torch.cat((squared[None], self._use.counts(squared.device)))

    def update(
        self, factor: Tensor | float, max_grad_norm: float | None, *, sums: Tensor | None, gate: Tensor | None
    ) -> tuple[Tensor, bool]:
        assert sums is not None
        for name in self._use.end(sums[1:]):
            # A parameter that no rank has used has no gradient, not one of zero, on which an optimizer would act.
            self.parameters[name].grad = None
        result = super().update(factor, max_grad_norm, sums=sums, gate=gate)
        # A forward pass without a backward pass has left gathered parameters, which are outdated now.
        self.tensors.refresh()
        return result

    @contextmanager
    def frozen(self) -> Iterator[None]:
        # Gathered parameters are other objects, which copy requires_grad whenever they are gathered.
        self.tensors.refresh()
        with super().frozen():
            try:
                yield
            finally:
                self.tensors.refresh()

    def follow_requires_grad(self) -> None:
        self._use.show_requires_grad()
        super().follow_requires_grad()

    def _leaves_in_use(self) -> list[Tensor]:
        return self._use.gathered()

    def _norm(self, gradients: Mapping[str, Tensor], sums: Tensor | None, *, as_one: bool) -> Tensor:
        assert sums is not None
        return sums[0].sqrt()

    def _local_gradients(self) -> dict[str, Tensor]:
        gradients = super()._local_gradients()
        with torch.no_grad():  # without it, a local part is a node of autograd's: a millisecond a step for BERT-tiny
            return {name: g.to_local() for name, g in gradients.items() if isinstance(g, DTensor)}


class _FSDPTensors(ShardedTensors):
    """Parameters and optimizer state as DTensors, of which each rank holds rows."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh) -> None:
        super().__init__(module, optimizer)
        self.units = [part for part in module.modules() if isinstance(part, FSDPModule)]
        shard_mesh = mesh["shard"]
        self.num_shards, self.shard_rank = shard_mesh.size(), shard_mesh.get_local_rank()
        self.group = shard_mesh.get_group()

    def weights(self) -> dict[str, Shard]:
        shards = {}
        for name, p in self.parameters.items():
            detached = p.detach()
            assert isinstance(detached, DTensor)
            num_rows = p.shape[0]
            first = min(self.shard_rank * -(-num_rows // self.num_shards), num_rows)
            start = first * (p.numel() // num_rows)
            shards[name] = Shard(detached.to_local(), start, p.shape, self.group)
        return shards

    def refresh(self) -> None:
        for unit in self.units:
            unit.reshard()

    def _state_shard(self, value: Any, weight: Shard) -> Shard:
        if isinstance(value, DTensor):
            return weight.like(value.to_local())
        return super()._state_shard(value, weight)

    def _state_value(self, shard: Shard, p: nn.Parameter) -> Any:
        if shard.shape != p.shape:
            return shard.local
        sharded = torch.zeros_like(p, dtype=shard.local.dtype)
        assert isinstance(sharded, DTensor)
        sharded.to_local().copy_(shard.local)
        return sharded


def _not_a_view(value: Any) -> Any:
    is_view = isinstance(value, Tensor) and value.requires_grad and value._is_view()
    return value.clone() if is_view else value
