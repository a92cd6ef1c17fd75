"""What setup makes of a module's dtypes and memory formats, and which optimizers and parameters cannot be sharded."""

import os
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from torch import nn

import trainkit
from tests.strategy.scenes import EVERY, SHARDED, data, error, flat, make_runtime, network, precision_of, whole_state
from trainkit.checkpoint.sharded import write_safetensors
from trainkit.distributed.shard import DTYPES
from trainkit.errors import ConfigError
from trainkit.optim.source import OptimizerSource
from trainkit.strategy.fitting import require_elementwise
from trainkit.testing import run_ranks

OPTIMIZERS = sorted(name for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name != "Optimizer")
NOT_ELEMENTWISE = {"Adafactor", "Muon"}
WITH_CLOSURE = {"LBFGS"}
SPARSE = {"SparseAdam"}
NO_DTENSOR = {"Rprop"}


class Rotary(nn.Module):
    """A layer that turns pairs of features by angles, as complex numbers, with buffers of many dtypes."""

    turns: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("turns", torch.polar(torch.ones(2), torch.tensor([0.3, 1.1])))
        self.register_buffer("low", torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn))
        self.register_buffer("wide", torch.tensor([1.0 + 2**-40], dtype=torch.float64))
        for dtype in (torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.bool):
            self.register_buffer(str(dtype)[6:], torch.tensor([1, 0, 1]).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(self.linear(x).unflatten(-1, (2, 2)).contiguous())
        return torch.view_as_real(pairs * self.turns).flatten(-2)


def _runtime(strategy, **given):
    if strategy == "hsdp":
        strategy = trainkit.HSDP(shard_size=min(2, int(os.environ["WORLD_SIZE"])))
    elif strategy == "zero3":
        strategy = trainkit.Zero3(keep_below=4)
    return trainkit.Runtime(strategy=strategy, **{"device": "cpu", "tracker": trainkit.Tracker(), **given})


def _rotary(strategy, directory):
    runtime = _runtime(strategy)
    module = Rotary()
    plain = Rotary()
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), ema_decay=0.5)
    x = torch.linspace(-1, 1, 8).view(2, 4)
    same = torch.allclose(engine(x), plain(x), atol=1e-6)
    dtypes = {name: str(buffer.dtype) for name, buffer in engine.module.named_buffers()}
    runtime.save(f"{directory}/a", engine=engine)
    with torch.no_grad():
        for buffer in engine.module.buffers():
            buffer.zero_()
    runtime.load(f"{directory}/a", engine=engine)
    kept = all(
        torch.equal(mine.to(torch.complex64), theirs.to(torch.complex64))
        for (_, mine), (name, theirs) in zip(engine.module.named_buffers(), plain.named_buffers(), strict=True)
        if name != "wide"
    )
    runtime.close()
    return same, kept, dtypes


@pytest.mark.parametrize("strategy", ["single", *EVERY])
def test_buffers_of_every_dtype_are_used_saved_and_loaded(tmp_path, strategy):
    ranks = 1 if strategy == "single" else 2
    for same, kept, dtypes in run_ranks(_rotary, ranks, strategy, str(tmp_path)):
        assert same
        assert kept
        assert dtypes["turns"] == "torch.complex64"
        assert dtypes["low"] == "torch.float8_e4m3fn"
        assert dtypes["wide"] == "torch.float32"
        assert dtypes["uint16"] == "torch.uint16"


class Noted(trainkit.Tracker):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


def test_what_changes_its_dtype_is_named():
    tracker = Noted()
    runtime = trainkit.Runtime(device="cpu", tracker=tracker)
    module = Rotary()
    runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert tracker.said == ["engine0: stored as torch.float32 from here on: wide (torch.float64)"]
    runtime.close()


def test_what_no_checkpoint_can_hold_is_refused():
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), precision="fp64")
    for persistent in (True, False):
        module = nn.Linear(2, 2)
        module.register_buffer("turns", torch.ones(2, dtype=torch.complex64), persistent=persistent)
        if persistent:
            with pytest.raises(ConfigError, match=r"'turns' of engine 'engine0' is torch.complex128.*persistent=False"):
                runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
        else:
            runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
            assert module.get_buffer("turns").dtype == torch.complex128
    runtime.close()


def _network(kind):
    torch.manual_seed(0)
    if kind == "channels_last":
        network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 2, 3), nn.Flatten())
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = nn.Linear(75, 8)
    first.weight = nn.Parameter(first.weight.detach().t().contiguous().t())
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 18))


def _train_in_another_format(kind, strategy, directory):
    """Weights after three steps, and after a load in a new engine and three more."""
    runtime = _runtime(strategy, precision=precision_of(strategy))
    x = torch.randn(48, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(runtime.dtype)
    data = x if kind == "channels_last" else x.flatten(1)

    def engine_of():
        module = _network(kind)
        return runtime.setup(module, torch.optim.Adam(module.parameters(), lr=0.01, eps=1e-3), ema_decay=0.5, name="a")

    def train(engine, start):
        for batch in runtime.batches(data, batch_size=8, start=start, num_steps=3):
            engine.backward(engine(batch.data).square().mean())
            engine.step()

    engine = engine_of()
    train(engine, 0)
    runtime.save(f"{directory}/a", a=engine)
    train(engine, 24)
    through = flat(whole_state(engine)["module"])
    again = engine_of()
    train(again, runtime.load(f"{directory}/a", a=again).position)
    resumed = flat(whole_state(again)["module"])
    runtime.close()
    return through, resumed


@pytest.mark.parametrize("kind", ["channels_last", "transposed"])
def test_other_memory_formats_train_save_and_load(tmp_path, kind):
    (oracle, _), *_ = run_ranks(_train_in_another_format, 1, kind, "single", str(tmp_path / "single"))
    for strategy in ("single", *EVERY):
        ranks = 1 if strategy == "single" else 2
        found = run_ranks(_train_in_another_format, ranks, kind, strategy, str(tmp_path / strategy))
        for through, resumed in found:
            assert error(through, oracle) < (1e-12 if precision_of(strategy) == "fp64" else 1e-5), strategy
            assert torch.equal(through, resumed), strategy


def _one_step(name, strategy):
    """("weights", ...) after three steps of torch.optim's `name`, or ("refused", the line)."""
    runtime = _runtime(strategy, precision=precision_of(strategy))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
    kind = getattr(torch.optim, name)
    try:
        engine = runtime.setup(module, kind(module.parameters(), lr=0.01))
    except ConfigError as refused:
        return "refused", str(refused)
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(runtime.dtype)
    for batch in runtime.batches(x, batch_size=8, num_steps=3):
        engine.backward(engine(batch.data).square().mean())
        engine.step()
    weights = flat(whole_state(engine)["module"])
    runtime.close()
    return "weights", weights


@cache
def _oracle(name):
    return run_ranks(_one_step, 1, name, "single")[0][1]


def _misses(name, strategy, ranks):
    """What is neither one process's weights nor, where the optimizer cannot be, a line that says so."""
    refused = name in WITH_CLOSURE | SPARSE or (strategy in SHARDED and name in NOT_ELEMENTWISE)
    refused = refused or (strategy in ("fsdp", "hsdp") and name in NO_DTENSOR)
    goal = 1e-12 if precision_of(strategy) == "fp64" else 2e-5
    misses = []
    for kind, found in run_ranks(_one_step, ranks, name, strategy):
        if refused:
            is_right = kind == "refused" and name in found and "use" in found
        else:
            is_right = kind == "weights" and error(found, _oracle(name)) < goal
        misses += [] if is_right else [(name, strategy, kind, found)]
    return misses


@pytest.mark.parametrize("strategy", EVERY)
def test_every_optimizer_of_torch_is_one_process_or_refused(strategy):
    assert [miss for name in OPTIMIZERS for miss in _misses(name, strategy, 2)] == []


def test_every_optimizer_on_four_ranks_one_without_a_row():
    """Each under two of the strategies, and each of these with several."""
    pairs = [(name, EVERY[(number + add) % len(EVERY)]) for number, name in enumerate(OPTIMIZERS) for add in (0, 3)]
    assert [miss for name, strategy in pairs for miss in _misses(name, strategy, 4)] == []


class Whole(torch.optim.SGD):
    """Divides by the norm of what it is given, as a user's own might."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad / p.grad.norm(), alpha=group["lr"])


class Trusted(Whole):
    acts_elementwise = True


def _own(kind, strategy):
    module = nn.Linear(4, 6)
    try:
        _runtime(strategy).setup(module, lambda groups: kind(groups, lr=0.1))
    except ConfigError as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_an_optimizer_of_ones_own_is_tried(strategy):
    for said in run_ranks(_own, 2, Whole, strategy):
        assert f"strategy={strategy} gives an optimizer shards of parameters, and Whole does not update each" in said
    assert run_ranks(_own, 2, Trusted, strategy) == [None, None]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_norm_of_the_whole_parameter_is_accepted(strategy):
    """DTensor sums a norm over ranks by itself."""
    assert run_ranks(_own, 2, Whole, strategy) == [None, None]


class OnDevice(torch.optim.SGD):
    devices: ClassVar[set[str]] = set()

    def step(self, closure=None):
        OnDevice.devices |= {p.device.type for group in self.param_groups for p in group["params"]}
        return super().step()


def test_an_optimizer_that_starts_at_rate_0_is_tried_otherwise():
    module = nn.Linear(3, 2)

    def require(kind) -> None:
        source = OptimizerSource(module, kind(module.parameters(), lr=0.0), engine_name="a")
        require_elementwise(source, "zero1", torch.device("cpu"))

    require(torch.optim.AdamW)
    with pytest.raises(ConfigError, match=r"Adafactor does not update each element independently .*differ by"):
        require(torch.optim.Adafactor)


def test_an_optimizer_is_tried_where_it_will_be_used():
    """Some of an optimizer's settings are refused on a CPU, such as capturable=True."""
    module = nn.Linear(2, 2)
    source = OptimizerSource(module, OnDevice(module.parameters(), lr=0.1), engine_name="a")
    with pytest.raises(ConfigError, match="acts_elementwise = True"):  # numbers on `meta` cannot be compared
        require_elementwise(source, "zero1", torch.device("meta"))
    assert OnDevice.devices == {"meta"}


def _adagrad(strategy, path, is_resumed):
    """Weights after six steps with groups, a schedule and a first accumulator; saved after three, or loaded."""
    runtime = make_runtime(strategy)
    module = network()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in module.parameters() if p.ndim == 2]},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0, "lr": 0.1},
    ]
    optimizer = torch.optim.Adagrad(groups, lr=0.05, weight_decay=0.1, initial_accumulator_value=0.3)
    engine = runtime.setup(module, optimizer, name="a", schedule=trainkit.Schedule(total=6))
    start = runtime.load(path, a=engine).position if is_resumed else 0
    for batch in runtime.batches(data(runtime.dtype), batch_size=12, start=start, num_steps=6 - start // 12):
        engine.backward((engine(batch.x).squeeze(-1) - batch.y).square().mean())
        engine.step()
        if batch.position == 24 and not is_resumed:
            runtime.save(path, a=engine)
    weights = flat(whole_state(engine)["module"])
    runtime.close()
    return weights


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_adagrad_keeps_its_groups_its_schedule_and_its_state(tmp_path, strategy):
    """DeepSpeed puts one of its own in its place, whose rates nobody sets and whose state nobody saves."""
    (oracle,) = run_ranks(_adagrad, 1, "single", str(tmp_path / "single"), False)
    for is_resumed in (False, True):
        for weights in run_ranks(_adagrad, 2, strategy, str(tmp_path / strategy), is_resumed):
            assert error(weights, oracle) < 5e-7


class Odd(nn.Module):
    """Has an expanded buffer, and frozen parameters of dtypes that cannot be averaged."""

    expanded: torch.Tensor
    int8: torch.Tensor

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("expanded", torch.tensor([[1.0, 2.0]]).expand(3, 2))
        for dtype in (torch.int8, torch.float8_e4m3fn):
            p = nn.Parameter(torch.ones(2).to(dtype), requires_grad=False)
            self.register_parameter(str(dtype)[6:], p)

    def forward(self, x):
        return self.linear(x)


def _odd(strategy, path):
    runtime = _runtime(strategy)
    module = Odd()
    trained = list(module.linear.parameters())
    engine = runtime.setup(module, torch.optim.SGD(trained, lr=0.1), name="a", ema_decay=0.5)
    for batch in runtime.batches(torch.ones(8, 2), batch_size=4, num_steps=2):
        engine.backward(engine(batch.data).square().mean())
        engine.step()
    runtime.save(path, a=engine)
    with torch.no_grad():
        module.expanded[0] = 0.0
        module.int8.zero_()
    runtime.load(path, a=engine)
    runtime.close()
    return module.expanded.tolist(), module.int8.tolist(), module.float8_e4m3fn.dtype


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_expanded_buffers_and_8_bit_parameters_are_saved(tmp_path, strategy):
    for expanded, integers, low in run_ranks(_odd, 1 if strategy == "single" else 2, strategy, str(tmp_path / "a")):
        assert expanded == [[1.0, 2.0]] * 3
        assert integers == [1, 1]
        assert low == torch.float8_e4m3fn


def test_lazy_modules_and_sparse_gradients_are_refused():
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    lazy = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ConfigError, match=r"'0.weight' of engine 'a' has no shape yet: call the module once"):
        runtime.setup(lazy, lambda groups: torch.optim.SGD(groups, lr=0.1), name="a")
    sparse = nn.Sequential(nn.Embedding(4, 2, sparse=True))
    with pytest.raises(ConfigError, match=r"'0.weight' of engine 'b' has sparse gradients"):
        runtime.setup(sparse, torch.optim.SparseAdam(sparse.parameters()), name="b")
    runtime.close()


def test_optimizer_state_keeps_its_dtype_through_a_load(tmp_path):
    """NAdam's product of momenta is float32 beside float64 parameters, and torch's load_state_dict casts it."""
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), precision="fp64")
    modules = []
    for is_resumed in (False, True):
        module = network()
        engine = runtime.setup(module, torch.optim.NAdam(module.parameters(), lr=0.01), name="a")
        start = runtime.load(tmp_path / "a", a=engine).position if is_resumed else 0
        for batch in runtime.batches(data(runtime.dtype), batch_size=12, start=start, num_steps=6 - start // 12):
            engine.backward((engine(batch.x).squeeze(-1) - batch.y).square().mean())
            engine.step()
            if batch.position == 24 and not is_resumed:
                runtime.save(tmp_path / "a", a=engine)
        modules.append(flat(engine.state_dict()["module"]))
    assert torch.equal(*modules)
    runtime.close()


class Scaled(nn.Module):
    def __init__(self, dtype=torch.float32, shape=()):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.ones(shape, dtype=dtype))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
        self.second[0].weight = self.first[0].weight


def _refusal(strategy, kind):
    module = {
        "scalar": Scaled,
        "complex": lambda: Scaled(torch.complex64, (2,)),
        "tied": Tied,
    }[kind]()
    try:
        _runtime(strategy).setup(
            module, torch.optim.SGD(module.parameters(), lr=0.1), blocks=(nn.Sequential,) if kind == "tied" else ()
        )
    except ConfigError as refused:
        return str(refused)
    return None


@pytest.mark.parametrize("strategy", SHARDED)
def test_parameters_that_cannot_be_sharded_are_named(strategy):
    for kind, name in (("scalar", "'gain', which has no dimension"), ("complex", "'gain', which is torch.complex64")):
        assert all(
            f"strategy={strategy} cannot shard {name}" in said for said in run_ranks(_refusal, 2, strategy, kind)
        )
    if strategy in ("fsdp", "hsdp"):
        for said in run_ranks(_refusal, 2, strategy, "tied"):
            assert "'first.0.weight' and 'second.0.weight' are one parameter" in said


def test_ddp_takes_them_all():
    for kind in ("scalar", "complex", "tied"):
        assert run_ranks(_refusal, 2, "ddp", kind) == [None, None]


def test_dtypes_of_checkpoints_are_those_of_safetensors(tmp_path):
    tensors = {name: torch.ones(3).to(dtype) for name, dtype in DTYPES.items()}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype
            assert torch.equal(read.to(torch.complex64), tensor.to(torch.complex64))
