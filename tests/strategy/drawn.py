"""Small runs that are drawn at random: under a strategy, and the same in plain PyTorch in one process."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import trainkit
from trainkit.data.order import Order
from trainkit.precision import Name
from trainkit.strategy import Strategy, StrategyName

NUM_SAMPLES, NUM_STEPS = 24, 4
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PATTERNS = ("every", "heads by step", "heads by micro-batch", "heads by rank", "thawed", "frozen")
MODULES = ("mlp", "tied", "scalar", "convolution")
OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, eps=1e-3, weight_decay=0.1),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.05, eps=1e-3, initial_accumulator_value=0.1),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01, eps=1e-2, momentum=0.5),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "Lamb": lambda params: trainkit.optim.Lamb(params, lr=0.01, eps=1e-3, weight_decay=0.1, max_grad_norm=None),
}


@dataclass(frozen=True)
class Drawn:
    """A run."""

    module: str
    optimizer: str
    strategy: StrategyName
    precision: Name
    pattern: str
    ranks: int
    grad_accumulation_steps: int
    batch_size: int
    max_grad_norm: float | None


class Heads(nn.Module):
    """A body of one kind and two heads, of which a forward uses those that it is given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6))
        if kind == "tied":
            self.body[2].weight = self.body[0].weight
        if kind == "scalar":
            self.gain = nn.Parameter(torch.tensor(0.7))
        if kind == "convolution":
            self.filter = nn.Conv2d(2, 6, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)])

    def forward(self, x: Tensor, heads: tuple[int, ...]) -> Tensor:
        if self.kind == "convolution":
            x = self.filter(x.reshape(len(x), 2, 3, 1)).mean((2, 3))
        hidden = self.body(x)
        if self.kind == "scalar":
            hidden = hidden * self.gain
        return sum(self.heads[i](hidden) for i in heads).squeeze(-1)


def heads_of(drawn: Drawn, step: int, rank: int, micro: int) -> tuple[int, ...]:
    return {
        "heads by step": (step % 2,),
        "heads by micro-batch": (min(micro, 1),),
        "heads by rank": (rank % 2,),
    }.get(drawn.pattern, (0, 1))


def switch(drawn: Drawn, module: nn.Module, step: int) -> None:
    """What the user's loop does to requires_grad before a step."""
    if drawn.pattern == "thawed" and step in (0, 2):
        module.body.requires_grad_(step == 2)
    if drawn.pattern == "frozen" and step == 2:
        module.body.requires_grad_(False)


def data(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(NUM_SAMPLES, 6, dtype=torch.float64, generator=generator).to(dtype),
        "y": torch.randn(NUM_SAMPLES, dtype=torch.float64, generator=generator).to(dtype),
        "num": torch.randint(0, 3, (NUM_SAMPLES,), generator=generator),  # items a sample: some have none
    }


def loss_of(output: Tensor, y: Tensor, num: Tensor) -> tuple[Tensor, Tensor]:
    count = num.sum()
    return ((output.to(y.dtype) - y) ** 2 * num).sum() / count.clamp(min=1), count


def train(drawn: Drawn) -> tuple[str, object]:
    """("weights", by name in float64 on rank 0) or ("refused", the error's one line). Collective: every rank calls."""
    world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    strategies: dict[str, Callable[[], Strategy | StrategyName]] = {
        "hsdp": lambda: trainkit.HSDP(shard_size=min(2, world_size)),
        "zero3": lambda: trainkit.Zero3(keep_below=4),  # or nothing of so small a network would be sharded
        "ddp": lambda: trainkit.DDP(find_unused_parameters="heads" in drawn.pattern),
    }
    runtime = None
    try:
        runtime = trainkit.Runtime(
            strategy=strategies.get(drawn.strategy, lambda: drawn.strategy)(),
            precision=drawn.precision,
            device="cpu",
            tracker=trainkit.Tracker(),
        )
        module = Heads(drawn.module)
        switch(drawn, module, 0)
        engine = runtime.setup(
            module,
            OPTIMIZERS[drawn.optimizer](list(module.parameters())),
            max_grad_norm=drawn.max_grad_norm,
            grad_accumulation_steps=drawn.grad_accumulation_steps,
        )
        batches = runtime.batches(data(runtime.dtype), batch_size=drawn.batch_size, num_steps=NUM_STEPS)
        for step, batch in enumerate(batches):
            switch(drawn, engine.module, step)
            for number, micro in enumerate(engine.micro_batches(batch)):
                output = engine(micro.x, heads_of(drawn, step, rank, number))
                loss, count = loss_of(output, micro.y, micro.num)
                engine.backward(loss, weight=count)
            engine.step()
        weights = engine.state_dict()["module"]
        return "weights", {name: tensor.double().clone() for name, tensor in weights.items()}
    except trainkit.errors.TrainkitError as error:
        return "refused", f"{type(error).__name__}: {error}"
    finally:
        if runtime is not None:
            runtime.close()


def train_plainly(drawn: Drawn) -> dict[str, Tensor]:
    """The same by its definition: one process, the gradient of the weighted mean over each global batch.

    Each share's pass is the one that a rank makes, so that numbers of few digits are rounded in the same places: losses
    are weighted before the pass, and the sum of weights divides gradients after it.
    """
    dtype = torch.float64 if drawn.precision not in AUTOCAST else torch.float32
    order, everything = Order(NUM_SAMPLES, seed=0), data(dtype)
    module = Heads(drawn.module).to(dtype)
    switch(drawn, module, 0)
    optimizer = OPTIMIZERS[drawn.optimizer](list(module.parameters()))
    cast, is_split = AUTOCAST.get(drawn.precision), drawn.ranks * drawn.grad_accumulation_steps > 1
    for step in range(NUM_STEPS):
        switch(drawn, module, step)
        positions = torch.arange(step * drawn.batch_size, (step + 1) * drawn.batch_size)
        indices = torch.from_numpy(order.indices(positions.numpy()))
        total = everything["num"][indices].sum()
        optimizer.zero_grad()
        for rank in range(drawn.ranks):
            for micro in range(drawn.grad_accumulation_steps):
                chosen = indices[rank :: drawn.ranks][micro :: drawn.grad_accumulation_steps]
                with torch.autocast("cpu", cast) if cast is not None else nullcontext():
                    output = module(everything["x"][chosen], heads_of(drawn, step, rank, micro))
                loss, count = loss_of(output, everything["y"][chosen], everything["num"][chosen])
                (loss * count if is_split else loss).backward()
        for p in module.parameters():
            if p.grad is not None and is_split:
                p.grad /= total.clamp(min=1)
        if drawn.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), drawn.max_grad_norm)
        optimizer.step()
    return {name: p.detach().double() for name, p in module.named_parameters()}
