"""Parameters that a step, a rank or a micro-batch does not use, and ones that are thawed or frozen on the way."""

import re

import pytest
import torch
from torch import nn

import trainkit
from tests.strategy import scenes
from trainkit.data.order import Order
from trainkit.errors import UsageError
from trainkit.testing import run_ranks

NUM_STEPS, BATCH = 5, 12
ZERO = ("zero1", "zero2", "zero3")
# (step, rank, micro-batch) -> the heads that are used
USES = {
    "by rank": lambda step, rank, micro: (rank % 2,),
    "in turns": lambda step, rank, micro: (step % 2,),
    "earlier micro-batch only": lambda step, rank, micro: (micro % 2,),
    "all": lambda step, rank, micro: (0, 1, 2),
    "one never": lambda step, rank, micro: (0,),
    "by rank and in turns": lambda step, rank, micro: ((rank + step + micro) % 3,),
}


class _Heads(nn.Module):
    """A body and heads; heads 0 and 1 have the same shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(5, 6)
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1), nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 1))])

    def forward(self, x, heads):
        hidden = torch.tanh(self.body(x))
        return sum(self.heads[head](hidden) for head in heads).squeeze(-1)


def _adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)


def _switch(module, thawed, step):
    """The body begins as `not thawed` and changes after two steps."""
    for p in module.body.parameters():
        p.requires_grad_(thawed == (step >= 2))


def _setup(runtime, module, grad_accumulation_steps, per_block, inherit=None):
    return runtime.setup(
        module,
        _adamw(module.parameters()),
        blocks=(nn.Linear,) if per_block else (),
        max_grad_norm=0.5,
        ema_decay=0.9,
        grad_accumulation_steps=grad_accumulation_steps,
        inherit=inherit,
    )


def _train(strategy, use, grad_accumulation_steps=1, thawed=None, per_block=False, set_up_again=False):
    """The state after training, and what was raised."""
    if strategy == "ddp unused":
        strategy = trainkit.DDP(find_unused_parameters=True)
    runtime = scenes.make_runtime(strategy)
    module, norms = _Heads(), []
    if thawed is not None:
        _switch(module, thawed, 0)
    engine = _setup(runtime, module, grad_accumulation_steps, per_block)
    batches = runtime.batches(scenes.data(runtime.dtype), batch_size=BATCH, num_steps=NUM_STEPS)
    try:
        for step, batch in enumerate(batches):
            if thawed is not None and step == 2:
                _switch(module, thawed, step)
                if set_up_again:
                    engine = _setup(runtime, module, grad_accumulation_steps, per_block, inherit=engine)
            for number, micro in enumerate(engine.micro_batches(batch)):
                output = engine(micro.x, USES[use](step, runtime.ranks.rank, number))
                engine.backward((output - micro.y).square().mean())
            norms.append(float(engine.step().grad_norm))
    except UsageError as raised:
        return None, str(raised)
    state = scenes.whole_state(engine)
    return [scenes.flat(state["module"]), scenes.flat(state["average"]), torch.tensor(norms).double()], None


def _plain(world_size, use, grad_accumulation_steps=1, thawed=None):
    """One process and the whole batch, in bare PyTorch."""
    order, data, module = Order(scenes.NUM_SAMPLES, seed=0), scenes.data(torch.float64), _Heads().double()
    optimizer = _adamw(module.parameters())
    average, norms = scenes.in_order_of_names(module), []
    for step in range(NUM_STEPS):
        if thawed is not None:
            _switch(module, thawed, step)
        indices = torch.from_numpy(order.indices(torch.arange(step * BATCH, (step + 1) * BATCH).numpy()))
        x, y, loss = data["x"][indices], data["y"][indices], torch.zeros(())
        for rank in range(world_size):
            for micro in range(grad_accumulation_steps):
                chosen = slice(rank + micro * world_size, None, world_size * grad_accumulation_steps)
                output = module(x[chosen], USES[use](step, rank, micro))
                loss = loss + (output - y[chosen]).square().sum() / BATCH
        optimizer.zero_grad()
        loss.backward()
        trained = [p for p in module.parameters() if p.requires_grad]
        norms.append(float(nn.utils.clip_grad_norm_(trained, 0.5)))
        optimizer.step()
        average = 0.9 * average + 0.1 * scenes.in_order_of_names(module)
    return [scenes.in_order_of_names(module), average, torch.tensor(norms).double()]


def _require_equal(results, expected):
    for result, error in results:
        assert error is None, error
        for ours, reference in zip(result, expected, strict=True):
            assert scenes.error(ours, reference) < 1e-6


@pytest.mark.parametrize("use", [use for use in USES if use != "all"])
@pytest.mark.parametrize(
    ("strategy", "world_size", "grad_accumulation_steps"),
    [(strategy, *split) for strategy in ("ddp unused", "fsdp") for split in ((2, 1), (2, 2), (4, 1))]
    + [("hsdp", 4, 1)],
)
def test_a_parameter_has_the_gradient_of_one_process_or_none(strategy, world_size, grad_accumulation_steps, use):
    results = run_ranks(_train, world_size, strategy, use, grad_accumulation_steps)
    _require_equal(results, _plain(world_size, use, grad_accumulation_steps))


@pytest.mark.parametrize("use", ["in turns", "one never", "earlier micro-batch only"])
def test_one_process(use):
    for strategy in ("single", "fsdp"):
        _require_equal(run_ranks(_train, 1, strategy, use, 2), _plain(1, use, 2))


@pytest.mark.parametrize(
    ("strategy", "use", "says"),
    [
        ("ddp", "by rank", r"loss of the last micro-batch does not depend on 6 of 10 .* 'heads\.[01]\.weight'"),
        ("ddp", "in turns", r"loss of the last micro-batch does not depend on 6 of 10 .* 'heads\.1\.weight'"),
        ("ddp", "earlier micro-batch only", r"loss of the last .* 'heads\.0\.weight'.*find_unused_parameters=true"),
        *(
            (strategy, use, r"loss of a micro-batch does not depend on [46] of 10 .* 'heads\.[01]\.weight'")
            for strategy in ZERO
            for use in ("in turns", "by rank and in turns", "earlier micro-batch only")
        ),
    ],
)
def test_what_cannot_be_reduced_is_named(strategy, use, says):
    for _, error in run_ranks(_train, 2, strategy, use, 2):
        assert error is not None
        assert re.search(says, error)


@pytest.mark.parametrize("use", ["by rank", "in turns"])
def test_blocks_of_which_not_every_rank_runs_all(use):
    """FSDP gathers the weights of a block on all ranks together."""
    results = run_ranks(_train, 2, "fsdp", use, 1, None, True)
    if use == "in turns":
        _require_equal(results, _plain(2, use))
    for rank, (_, error) in enumerate(results if use == "by rank" else []):
        assert re.match(rf"'heads\.0' took part .* {1 - rank} times on rank {rank}.*per_block=false", error)


@pytest.mark.parametrize("thawed", [True, False])
@pytest.mark.parametrize(
    ("strategy", "set_up_again"), [("single", False), ("fsdp", False), ("hsdp", False), ("ddp", True)]
)
def test_thawed_and_frozen_on_the_way(strategy, set_up_again, thawed):
    """Clipping and averages included."""
    world_size = 1 if strategy == "single" else 2
    results = run_ranks(_train, world_size, strategy, "all", 2, thawed, False, set_up_again)
    _require_equal(results, _plain(world_size, "all", 2, thawed))


@pytest.mark.parametrize("thawed", [True, False])
@pytest.mark.parametrize("strategy", ["ddp", *ZERO])
def test_what_was_spread_at_setup_cannot_be_thawed_or_frozen(strategy, thawed):
    advice = "inherit=engine" if strategy == "ddp" else "before setup, on a new module .* or use strategy=fsdp"
    for _, error in run_ranks(_train, 2, strategy, "all", 1, thawed):
        assert re.match(rf"requires_grad of 'body\.weight' was switched after setup.*{advice}", error)


def _thawed_while_gathered():
    """After an evaluation the module shows gathered parameters; the optimizer holds none of those that are thawed."""
    runtime = scenes.make_runtime("fsdp")
    module = _Heads()
    _switch(module, True, 0)
    engine = runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=0.1))
    batch = next(runtime.batches(scenes.data(runtime.dtype), batch_size=BATCH))
    with torch.no_grad():
        engine(batch.x, (0,))
    _switch(module, True, 2)
    with pytest.raises(UsageError, match=r"'body\.weight' requires a gradient since setup, and the optimizer does not"):
        engine.backward(engine(batch.x, (0, 1, 2)).mean())
    return True


def test_thawed_without_an_optimizer():
    assert run_ranks(_thawed_while_gathered, 2) == [True, True]


def _thawed_with_a_group_of_its_own(strategy):
    """Under a schedule; an optimizer that is made by a factory holds what is trained at setup only."""
    runtime = scenes.make_runtime(strategy)
    module, lrs = _Heads(), []
    _switch(module, True, 0)
    engine = runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=0.1), schedule=trainkit.Schedule(total=10))
    for step, batch in enumerate(runtime.batches(scenes.data(runtime.dtype), batch_size=BATCH, num_steps=4)):
        if step == 2:
            _switch(module, True, step)
            engine.optimizer.add_param_group({"params": list(module.body.parameters()), "lr": 0.01})
        engine.backward((engine(batch.x, (0, 1, 2)) - batch.y).square().mean())
        engine.step()
        lrs.append([group["lr"] for group in engine.optimizer.param_groups])
    return scenes.flat(scenes.whole_state(engine)["module"]), lrs


def test_thawed_with_a_group_of_its_own():
    ((alone, lrs),) = run_ranks(_thawed_with_a_group_of_its_own, 1, "single")
    assert [len(rates) for rates in lrs] == [1, 1, 2, 2]
    assert all(rates[1] == pytest.approx(0.1 * rates[0]) for rates in lrs[2:])
    for weights, _ in run_ranks(_thawed_with_a_group_of_its_own, 2, "fsdp"):
        assert scenes.error(weights, alone) < 1e-12


def _resumed_after_a_thaw(strategy, path):
    """Whether a run that is saved after a thaw, and goes on from frozen parameters, comes to the same weights."""
    runtime = scenes.make_runtime(strategy)
    engines = []
    for is_resumed in (False, True):
        module, start = _Heads(), 0
        _switch(module, True, 0)
        engine = _setup(runtime, module, 1, False)
        if is_resumed:
            start = runtime.load(path, model=engine).position
        batches = runtime.batches(
            scenes.data(runtime.dtype), batch_size=BATCH, start=start, num_steps=5 - start // BATCH
        )
        for batch in batches:
            step = batch.position // BATCH
            _switch(module, True, step)
            engine.backward((engine(batch.x, (0, 1, 2)) - batch.y).square().mean())
            engine.step()
            if step == 3 and not is_resumed:
                runtime.save(path, model=engine)
        engines.append(scenes.whole_state(engine))
    return all(
        torch.equal(engines[0][part][name], value) for part in engines[1] for name, value in engines[1][part].items()
    )


@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_a_checkpoint_from_after_a_thaw(strategy, tmp_path):
    world_size = 1 if strategy == "single" else 2
    assert run_ranks(_resumed_after_a_thaw, world_size, strategy, str(tmp_path / "saved")) == [True] * world_size


def _penalty_alone():
    """The last bias has no part in a penalty: it must not decay."""
    runtime = scenes.make_runtime("ddp")
    last = nn.Linear(4, 1)
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), last)
    engine = runtime.setup(module, _adamw(module.parameters()))
    before = last.bias.detach().clone()
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=BATCH, num_steps=2):
        engine.backward(engine.input_gradient(batch.x)[1].square().mean())
        engine.step()
    return torch.equal(before, last.bias.detach())


def test_a_parameter_without_part_in_a_penalty_stays():
    assert run_ranks(_penalty_alone, 2) == [True, True]


def _empty_last_micro_batch(heads):
    """Every rank has two samples, so that the last of three micro-batches holds none anywhere."""
    runtime = trainkit.Runtime(strategy="ddp", precision="fp64", device="cpu", tracker=trainkit.Tracker())
    module = _Heads()
    engine = runtime.setup(module, _adamw(module.parameters()), grad_accumulation_steps=3)
    (batch,) = runtime.batches(torch.randn(8, 5, dtype=torch.float64), batch_size=4, num_steps=1)
    try:
        for micro in engine.micro_batches(batch):
            engine.backward(engine(micro.data, heads).square().sum() / max(len(micro), 1))
        engine.step()
    except UsageError as error:
        return str(error)
    return None


def test_an_empty_last_micro_batch_hides_no_unused_parameter():
    """A gradient of zero in the place of none would decay the head."""
    for said in run_ranks(_empty_last_micro_batch, 2, (0,)):
        assert "holds nothing that counts" in said
        assert "'heads.1.weight': set strategy.find_unused_parameters=true" in said
    assert run_ranks(_empty_last_micro_batch, 2, (0, 1, 2)) == [None, None]
