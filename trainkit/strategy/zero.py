"""ZeRO: DeepSpeed shards optimizer state (1), gradients too (2), parameters too (3) over the processes."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from trainkit.distributed.cluster import Cluster
from trainkit.engine.backend import Backend
from trainkit.errors import ConfigError, UsageError, require_at_least
from trainkit.memory.memory import Memory
from trainkit.optim.source import OptimizerSource
from trainkit.precision import Precision
from trainkit.strategy.base import SMALLEST_BUCKET_MB, Strategy, float32_memory
from trainkit.strategy.fitting import require_elementwise, require_shardable


@dataclass(frozen=True, kw_only=True)
class Zero1(Strategy):
    """DeepSpeed with optimizer state sharded over the processes.

    Every micro-batch must have a sample on every rank, and its loss must depend on every trained parameter.

    Args:
        offload_optimizer: keeps the optimizer's state and step on the CPU.
        bucket_cap_mb: MiB of a message of gradients or parameters.
        config: further keys of DeepSpeed's own configuration; one that trainkit sets is an error.
    """

    name: ClassVar[str] = "zero1"
    needs_group: ClassVar[bool] = True
    stage: ClassVar[int] = 1
    offload_optimizer: bool = False
    bucket_cap_mb: float = 25.0
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_at_least(SMALLEST_BUCKET_MB, "strategy.", bucket_cap_mb=self.bucket_cap_mb)

    def check(self, cluster: Cluster, precision: Precision, device: torch.device) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise ConfigError(
                f"strategy={self.name} needs DeepSpeed: pip install --no-build-isolation deepspeed (after torch); or "
                f"use strategy=fsdp"
            )
        if precision.name == "fp64":
            raise ConfigError(
                f"precision=fp64 with strategy={self.name}: DeepSpeed takes float64 and computes in float32; "
                f"use strategy=single|ddp|fsdp|hsdp, or precision=fp32"
            )
        self._deepspeed_config()

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
        # DeepSpeed takes seconds to import.
        from trainkit.strategy.deepspeed import attach

        if any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for p in module.parameters()):
            raise UsageError(
                f"setup() was given a module that strategy={self.name} has sharded already: make a new "
                f"module (inherit= takes the weights over by name), or use strategy=ddp, where one can grow in place"
            )
        require_shardable(module, self.name)
        require_elementwise(source, self.name, torch.device("cpu") if self.offload_optimizer else device)
        return attach(
            module,
            source.make(),
            stage=self.stage,
            config=self._deepspeed_config(),
            device=device,
            local_rank=cluster.local_rank,
        )

    def predict(
        self, trained: Sequence[int], frozen: Sequence[int], state_tensors: int | None, cluster: Cluster
    ) -> Memory:
        """As for `Strategy`; ZeRO keeps a second copy of the parameters that this rank's optimizer writes to."""
        mine = -(-sum(trained) // cluster.world_size)
        gradients = sum(trained) if self.stage < 2 else mine
        return float32_memory(mine + self._num_computing([*trained, *frozen], cluster), gradients, mine, state_tensors)

    def _num_computing(self, sizes: Sequence[int], cluster: Cluster) -> int:
        return sum(sizes)

    def layout(self, cluster: Cluster) -> str:
        shared = "optimizer state" if self.stage == 1 else "optimizer state and gradients"
        return f"{cluster.world_size} x replicate, {shared} sharded"

    def _deepspeed_config(self) -> dict[str, Any]:
        return merge(self._own_config(), self.config, "strategy.config")

    def _own_config(self) -> dict[str, Any]:
        num_elements = int(self.bucket_cap_mb * 2**20 / 4)
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": num_elements,
            "allgather_bucket_size": num_elements + num_elements % 2,
        }
        if self.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        return {
            # Accumulation, clipping and the mean over the batch are the engine's.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }


@dataclass(frozen=True, kw_only=True)
class Zero2(Zero1):
    """As zero1, with gradients sharded too."""

    name: ClassVar[str] = "zero2"
    stage: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Zero3(Zero1):
    """As zero2, with parameters sharded too: a layer's are gathered while it computes.

    Args:
        offload_parameters: keeps parameters on the CPU.
        keep_below: parameters of fewer elements stay whole on every rank.
    """

    name: ClassVar[str] = "zero3"
    stage: ClassVar[int] = 3
    offload_parameters: bool = False
    keep_below: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, "strategy.", keep_below=self.keep_below)

    @property
    def traffic(self) -> float:
        return 1.5  # parameters are gathered for the forward and for the backward pass, gradients are scattered

    def layout(self, cluster: Cluster) -> str:
        return f"{cluster.world_size} x shard"

    def _num_computing(self, sizes: Sequence[int], cluster: Cluster) -> int:
        # The small ones are whole beside their partitions.
        return -(-sum(sizes) // cluster.world_size) + sum(size for size in sizes if size < self.keep_below)

    def _own_config(self) -> dict[str, Any]:
        config = super()._own_config()
        config["zero_optimization"]["stage3_param_persistence_threshold"] = self.keep_below
        # It would replace torch's own linear function for the whole process, and by one without double gradients.
        config["zero_optimization"]["memory_efficient_linear"] = False
        if self.offload_parameters:
            config["zero_optimization"]["offload_param"] = {"device": "cpu"}
        return config


def merge(own: Mapping[str, Any], given: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Merges two nested configurations.

    Args:
        own: the keys that trainkit sets.
        given: further keys.
        path: of `given`, for messages.

    Raises:
        ConfigError: naming a key that both have.
    """
    merged = dict(own)
    for key, value in given.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(merged[key], Mapping) and isinstance(value, Mapping):
            merged[key] = merge(merged[key], value, f"{path}.{key}")
        else:
            raise ConfigError(
                f"{path}.{key}={value!r}: trainkit sets it already, to {merged[key]!r}; leave this key out, and use "
                f"the strategy's own arguments, recipe.max_grad_norm and recipe.grad_accumulation_steps"
            )
    return merged
