"""A small network, trained in a few ways under any strategy, and the same in bare PyTorch."""

import os

import torch
from torch import nn

import trainkit
from trainkit.data.order import Order

NUM_SAMPLES, BATCH, NUM_STEPS = 60, 16, 6
SHARDED = ("fsdp", "hsdp", "zero1", "zero2", "zero3")
EVERY = ("ddp", *SHARDED)
SPLITS = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 4))
LOSSES = ("weighted", "penalised", "penalty alone")


def precision_of(strategy):
    return "fp32" if strategy.startswith("zero") else "fp64"


def tolerance(strategy):
    return 1e-12 if precision_of(strategy) == "fp64" else 5e-7


def make_runtime(strategy, **kwargs):
    precision = precision_of(strategy if isinstance(strategy, str) else strategy.name)
    if strategy == "hsdp":
        strategy = trainkit.HSDP(shard_size=min(2, int(os.environ["WORLD_SIZE"])))
    elif strategy == "zero3":
        strategy = trainkit.Zero3(keep_below=4)  # or nothing of so small a network would be spread
    given = {"precision": precision, "device": "cpu", "tracker": trainkit.Tracker(), **kwargs}
    return trainkit.Runtime(strategy=strategy, **given)


def network(num_hidden=7):
    torch.manual_seed(0)
    # A gradient penalty does not depend on a last bias, which ZeRO refuses.
    last = nn.Linear(num_hidden, 1, bias=False)
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, num_hidden), nn.Tanh(), last)


def data(dtype):
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(NUM_SAMPLES, 5, dtype=torch.float64, generator=generator).to(dtype),
        "y": torch.randn(NUM_SAMPLES, dtype=torch.float64, generator=generator).to(dtype),
        "num": torch.randint(0, 4, (NUM_SAMPLES,), generator=generator),  # items a sample; some have none
    }


def loss_of(kind, forward, input_gradient, x, y, num):
    """(loss, weight) of one micro-batch."""
    if kind == "weighted":
        count = num.sum()
        return ((forward(x).squeeze(-1) - y) ** 2 * num).sum() / count.clamp(min=1), count
    _, gradient = input_gradient(x)
    penalty = ((gradient.norm(dim=1) - 1) ** 2).mean()
    if kind == "penalised":
        penalty = 10 * penalty + forward(x).mean() + 0.1 * (forward(x * 0.5) ** 2).mean()
    return penalty, len(x)


def train(strategy, grad_accumulation_steps, kind, per_block=False):
    """Weights, averaged weights and gradient norms, in float64."""
    runtime = make_runtime(strategy)
    module = network()
    engine = runtime.setup(
        module,
        # Adam would blow up what rounding leaves of a gradient that is zero.
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        blocks=(nn.Linear,) if per_block else (),
        max_grad_norm=0.5,
        ema_decay=0.9,
        grad_accumulation_steps=grad_accumulation_steps,
    )
    norms = []
    for batch in runtime.batches(data(runtime.dtype), batch_size=BATCH, num_steps=NUM_STEPS):
        for micro in engine.micro_batches(batch):
            loss, weight = loss_of(kind, engine, engine.input_gradient, micro.x, micro.y, micro.num)
            engine.backward(loss, weight=weight)
        norms.append(float(engine.step().grad_norm))
    state = whole_state(engine)
    return flat(state["module"]), flat(state["average"]), torch.tensor(norms, dtype=torch.float64)


def train_plainly(kind, dtype=torch.float64):
    """The same in bare PyTorch: one process, whole batches."""
    order, everything = Order(NUM_SAMPLES, seed=0), data(dtype)
    module = network().to(dtype)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    average, norms = in_order_of_names(module), []

    def input_gradient(x):
        x = x.detach().requires_grad_(True)
        output = module(x)
        return output, torch.autograd.grad(output.sum(), x, create_graph=True)[0]

    for step in range(NUM_STEPS):
        indices = torch.from_numpy(order.indices(torch.arange(step * BATCH, (step + 1) * BATCH).numpy()))
        loss, _ = loss_of(kind, module, input_gradient, *(everything[key][indices] for key in ("x", "y", "num")))
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), 0.5)))
        optimizer.step()
        average = 0.9 * average + 0.1 * in_order_of_names(module)
    return in_order_of_names(module), average, torch.tensor(norms, dtype=torch.float64)


def whole_state(engine):
    """`engine.state_dict()` on every rank. Collective."""
    state, parts = engine.state_dict(), ("module", "optimizer", "average")
    gathered = [{part: {name: tensor.clone() for name, tensor in sorted(state[part].items())} for part in parts}]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(gathered, src=0)
    return gathered[0]


def flat(tensors):
    return torch.cat([tensor.flatten().double() for tensor in tensors.values()])


def in_order_of_names(module):
    return flat({name: p.detach() for name, p in sorted(module.named_parameters())})


def error(a, b):
    return float((a - b).abs().max() / b.abs().max())
