"""A strategy of your own: all gradients of a step are summed in one all-reduce, after the backward pass.

    python examples/own_strategy.py            # checks it: 2 processes against one, on the same batches
    trainkit train --processes 2 --config-dir examples/own_recipe/conf recipe=letters strategy=one_message

DistributedDataParallel sends buckets of 25 MB while the backward pass runs. A single message can be faster where its
latency is above the time that its bytes take: a small model on a slow network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

import trainkit
from trainkit.strategy import Backend, Cluster, OptimizerSource, ShardedTensors
from trainkit.testing import run_ranks


@dataclass(frozen=True, kw_only=True)
class OneMessage(trainkit.Strategy):
    """The module on every process. Its fields are the keys of conf/strategy/one_message.yaml."""

    name: ClassVar[str] = "one_message"
    max_num_bytes: int = 100_000_000

    def check(self, cluster: Cluster, precision: trainkit.Precision, device: torch.device) -> None:
        """Raises ConfigError where this strategy cannot run, before anything is started."""
        if self.max_num_bytes < 1:
            raise trainkit.errors.ConfigError(f"strategy.max_num_bytes={self.max_num_bytes}: must be 1 or more")

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
        """Collective: every rank must call."""
        num_bytes = sum(p.nbytes for p in module.parameters() if p.requires_grad)
        if num_bytes > self.max_num_bytes:
            raise trainkit.errors.ConfigError(
                f"strategy=one_message copies gradients of {num_bytes} bytes, and strategy.max_num_bytes="
                f"{self.max_num_bytes}: raise it, or use strategy=ddp"
            )
        return _OneMessageBackend(ShardedTensors(module, source.make()), cluster.world_size)


class _OneMessageBackend(Backend):
    """Runs the forward and backward passes of one engine, which does the rest: accumulation, clipping, loss scaling."""

    def __init__(self, tensors: ShardedTensors, world_size: int) -> None:
        super().__init__(tensors)  # whole on every rank
        self.world_size = world_size
        for tensor in (*self.module.parameters(), *self.module.buffers()) if world_size > 1 else ():
            dist.broadcast(tensor.detach(), src=0)  # every rank begins with the weights of rank 0

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradients of a micro-batch; after the last one of a step they are summed over ranks."""
        loss.backward()
        if not last or self.world_size == 1:
            return
        parameters = list(self.trainable.values())
        message = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(message)
        for p, summed in zip(parameters, message.split([p.numel() for p in parameters]), strict=True):
            p.grad = summed.view_as(p)


def train(grad_accumulation_steps: int) -> Tensor:
    """The parameters after ten steps, in float64. Collective: every rank must call."""
    runtime = trainkit.Runtime(strategy=OneMessage(), precision="fp64", seed=0, tracker=trainkit.Tracker())
    module = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    engine = runtime.setup(
        module,
        torch.optim.AdamW(module.parameters(), lr=1e-2),
        max_grad_norm=0.5,
        grad_accumulation_steps=grad_accumulation_steps,
    )
    data = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    for batch in runtime.batches(data, batch_size=10, num_steps=10):  # shares of 5: micro-batches of 3 and 2
        for micro in engine.micro_batches(batch):
            engine.backward((engine(micro.data) - micro.data.sum(dim=1, keepdim=True)).square().mean())
        engine.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def main() -> None:
    (expected,) = run_ranks(train, 1, 1)
    for rank, found in enumerate(run_ranks(train, 2, 2)):
        difference = float((found - expected).abs().max() / expected.abs().max())
        print(f"rank {rank} of 2: largest difference from one process {difference:.0e}")
        assert difference < 1e-12


if __name__ == "__main__":
    main()
