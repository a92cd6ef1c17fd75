"""The kinds of module, optimizer and use that the table of parity.py has: each a small run, equal or refused."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import trainkit

NUM_SAMPLES, NUM_STEPS = 64, 10
SHARDED, ZERO = ("fsdp", "hsdp", "zero1", "zero2", "zero3"), ("zero1", "zero2", "zero3")


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, eps=1e-3, weight_decay=0.1)


@dataclass(frozen=True)
class Kind:
    """What is special about a run.

    refused: strategies that refuse it wherever `is_refused` says so of (ranks, ranks x micro-batches).
    """

    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = _adamw
    batch_size: int = 32
    refused: tuple[str, ...] = ()
    is_refused: Callable[[str, int, int], bool] = lambda strategy, ranks, shares: True


KINDS = {
    "Adafactor": Kind(lambda parameters: torch.optim.Adafactor(parameters, lr=0.01), refused=SHARDED),
    "Muon": Kind(
        lambda parameters: torch.optim.Muon(parameters, lr=0.01),
        refused=SHARDED,
        is_refused=lambda strategy, ranks, shares: strategy in ZERO or ranks > 1,
    ),
    "LAMB": Kind(lambda parameters: trainkit.optim.Lamb(parameters, lr=0.01, eps=1e-3, weight_decay=0.1)),
    "heads in turns": Kind(refused=ZERO),
    "heads by share": Kind(refused=ZERO, is_refused=lambda strategy, ranks, shares: shares > 1),
    "thawed": Kind(refused=("ddp", *ZERO), is_refused=lambda strategy, ranks, shares: strategy != "ddp" or ranks > 1),
    "channels_last": Kind(),
    "complex": Kind(),
    "tied": Kind(),
    "scalar": Kind(refused=SHARDED),
    "BatchNorm": Kind(),
    "empty shares": Kind(batch_size=5, refused=ZERO, is_refused=lambda strategy, ranks, shares: shares > 5),
    "weight 0": Kind(),
}


class Module(nn.Module):
    """Two layers and two heads, and what `kind` asks for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        has_bias = kind != "Muon"  # it is for matrices
        self.body = nn.Sequential(nn.Linear(8, 8, has_bias), nn.Tanh(), nn.Linear(8, 8, has_bias))
        self.heads = nn.ModuleList([nn.Linear(8, 1, has_bias), nn.Linear(8, 1, has_bias)])
        if kind == "tied":
            self.body[2].weight = self.body[0].weight
        if kind == "thawed":
            self.body.requires_grad_(False)
        if kind == "channels_last":
            self.filter = nn.Conv2d(2, 8, 3, padding=1)
            self.filter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if kind == "complex":
            self.register_buffer("turn", torch.polar(torch.ones(4), torch.linspace(0, 1, 4)), persistent=False)
        if kind == "scalar":
            self.gain = nn.Parameter(torch.tensor(0.7))
        if kind == "BatchNorm":
            self.norm = nn.BatchNorm1d(8).eval()  # by running statistics: those of a share are not those of a batch
            assert self.norm.running_var is not None
            self.norm.running_var.fill_(0.5)

    turn: Tensor

    def forward(self, x: Tensor, step: int, head: Tensor) -> Tensor:
        if self.kind == "channels_last":
            x = self.filter(x.reshape(len(x), 2, 2, 2)).mean((2, 3))
        hidden = self.body(x)
        if self.kind == "complex":
            pairs = torch.view_as_complex(hidden.unflatten(-1, (4, 2)).contiguous())
            hidden = torch.view_as_real(pairs * self.turn).flatten(-2)
        if self.kind == "scalar":
            hidden = hidden * self.gain
        if self.kind == "BatchNorm":
            hidden = self.norm(hidden)
        if self.kind == "heads in turns":
            found: Tensor = self.heads[step % 2](hidden).squeeze(-1)
            return found
        if self.kind == "heads by share":  # a share uses those of its samples, one where there are several shares
            used = [self.heads[i](hidden).squeeze(-1) * (head == i) for i in head.unique().tolist()]
            return torch.stack(used).sum(0)
        both: Tensor = (self.heads[0](hidden) + self.heads[1](hidden)).squeeze(-1)
        return both


def train(
    kind: str, runtime: trainkit.Runtime, grad_accumulation_steps: int
) -> tuple[dict[str, trainkit.Engine], dict[str, Tensor]]:
    module, what = Module(kind), KINDS[kind]
    optimizer = what.optimizer(list(module.parameters()))
    engine = runtime.setup(module, optimizer, max_grad_norm=1.0, grad_accumulation_steps=grad_accumulation_steps)
    generator = torch.Generator().manual_seed(1)
    data = {
        "x": torch.randn(NUM_SAMPLES, 8, generator=generator).to(runtime.dtype),
        "y": torch.randn(NUM_SAMPLES, generator=generator).to(runtime.dtype),
        "num": torch.randint(1, 4, (NUM_SAMPLES,), generator=generator),  # items that a sample counts for
    }
    for step, batch in enumerate(runtime.batches(data, batch_size=what.batch_size, num_steps=NUM_STEPS)):
        if kind == "thawed" and step == NUM_STEPS // 2:
            engine.module.body.requires_grad_(True)
        for micro in engine.micro_batches(batch):
            num = micro.num
            if kind == "weight 0":  # of the whole of every second batch, and of most of the others
                num = num * (micro.positions % 16 == 0) * (step % 2)
            count = num.sum()
            squares = (engine(micro.x, step, micro.positions % 2) - micro.y).square() * num
            engine.backward(squares.sum() / count.clamp(min=1), weight=count)
        engine.step()
    return {"model": engine}, {}
