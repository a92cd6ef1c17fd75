"""Low precision under every strategy: two engines' loss scales, parts that are kept in fp32, and what is told."""

from typing import Any

import pytest
import torch
from torch import nn

import trainkit
from tests.present import present
from tests.strategy import scenes
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks

NUM_STEPS, PLANTED, FIRST_SCALE = 6, 3, 1024.0
BACKENDS: Any = torch.backends  # conv and matmul are attributes that a type checker does not see


def _adam(groups):
    return torch.optim.Adam(groups, lr=0.01)


def _two_engines(strategy, on_planted_step):
    """D's loss overflows on rank 1 in one step of six ("overflow"), or D has no turn in that step ("left out").

    Returns, by step, whether each engine skipped; its loss scale after it; D's state around the step; the final states.
    """
    precision = trainkit.Precision(name="fp16", initial_scale=FIRST_SCALE)
    runtime = scenes.make_runtime(strategy, precision=precision)
    torch.manual_seed(3)
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5))
    G = runtime.setup(generator, _adam, ema_decay=0.9)
    D = runtime.setup(scenes.network(), _adam, blocks=(nn.Linear,), max_grad_norm=0.5, ema_decay=0.9)
    data = {"x": scenes.data(torch.float32)["x"]}
    told, around = [], []
    for step, batch in enumerate(runtime.batches(data, batch_size=8, num_steps=NUM_STEPS)):
        is_planted = step == PLANTED
        if is_planted:
            around.append(scenes.whole_state(D))
        if is_planted and on_planted_step == "left out":
            D.scaler.update(False)  # so that later steps round as they do after an overflow
            d_skipped = None
        else:
            huge = 1e30 if is_planted and runtime.ranks.rank == 1 else 1.0
            d_skipped = _turn_of_D(runtime, G, D, batch, huge).skipped
        if is_planted:
            around.append(scenes.whole_state(D))
        with D.frozen():
            G.backward(-D(G(runtime.randn(batch, 3, name="G's"))).float().mean())
        told.append((d_skipped, G.step().skipped, D.scaler.scale, G.scaler.scale))
    return told, around, (scenes.whole_state(D), scenes.whole_state(G)), (D.num_updates, G.num_updates)


def _turn_of_D(runtime, G, D, batch, factor):
    with torch.no_grad():
        fake = G(runtime.randn(batch, 3, name="D's"))
    _, gradient = D.input_gradient(batch.x)
    penalty = (gradient.norm(dim=1) - 1).square().mean()
    D.backward(factor * (D(fake).float().mean() - D(batch.x).float().mean() + penalty))
    return D.step()


def _differing(state, other):
    """Names of the tensors whose bits differ, or that only one of the two has."""
    flat, flat_other = (
        {f"{part}.{name}": tensor for part, tensors in each.items() for name, tensor in tensors.items()}
        for each in (state, other)
    )
    assert flat.keys() == flat_other.keys()
    return [name for name, tensor in flat.items() if not torch.equal(tensor, flat_other[name])]


@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_an_overflow_in_one_engines_turn_on_one_rank(strategy):
    """It skips that step on all ranks, halves that engine's scale, and leaves no trace in what is trained."""
    left_out = run_ranks(_two_engines, 2, strategy, "left out")
    for result, (_, _, expected, _) in zip(run_ranks(_two_engines, 2, strategy, "overflow"), left_out, strict=True):
        told, (before, after), finals, num_updates = result
        assert [d_skipped for d_skipped, *_ in told] == [step == PLANTED for step in range(NUM_STEPS)]
        assert [g_skipped for _, g_skipped, *_ in told] == [False] * NUM_STEPS
        assert [scale for _, _, scale, _ in told] == [FIRST_SCALE] * PLANTED + [FIRST_SCALE / 2] * 3
        assert [scale for *_, scale in told] == [FIRST_SCALE] * NUM_STEPS
        assert num_updates == (NUM_STEPS - 1, NUM_STEPS)
        assert before["optimizer"] and before["average"]
        assert _differing(before, after) == []
        assert len(_differing(after, finals[0])) > 0  # it went on
        for final, other in zip(finals, expected, strict=True):
            assert _differing(final, other) == []


class Head(nn.Linear):
    pass


def _kept(strategy, name, fp32_modules, **kwargs):
    """The dtypes that each layer of a network is given and returns: first in a forward pass, then in a penalty's."""
    precision = trainkit.Precision(name=name, fp32_modules=fp32_modules, initial_scale=FIRST_SCALE)
    runtime = scenes.make_runtime(strategy, precision=precision, **kwargs)
    torch.manual_seed(0)
    layers = {"first": nn.Linear(5, 9), "middle": nn.Linear(9, 7), "head": Head(7, 7), "last": nn.Linear(7, 1)}
    module = nn.Sequential()
    for layer_name, layer in layers.items():
        module.add_module(layer_name, layer)
    seen: dict[str, list[Any]] = {}

    def see(layer_name):
        return lambda layer, given, out: seen.setdefault(layer_name, []).append((given[0].dtype, out.dtype))

    for layer_name, layer in layers.items():
        layer.register_forward_hook(see(layer_name))
    engine = runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=0.1), blocks=(nn.Linear,))
    losses = []
    for batch in runtime.batches(scenes.data(torch.float32), batch_size=16, num_steps=3):
        output = engine(batch.x)
        _, gradient = engine.input_gradient(batch.x)
        engine.backward((output.float().squeeze(-1) - batch.y).square().mean() + gradient.square().mean())
        losses.append(float(engine.step().loss))
    assert losses[-1] < losses[0]
    return seen


LOW = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("fp32_modules", [("Head", "mid*"), ("head", "middle")])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero3"])
def test_parts_that_are_kept_in_float32(strategy, name, fp32_modules):
    wide, low = torch.float32, LOW[name]
    for seen in run_ranks(_kept, 2, strategy, name, fp32_modules):
        forward, penalty = ({layer: dtypes[i] for layer, dtypes in seen.items()} for i in (0, 1))
        assert {layer: out for layer, (_, out) in forward.items()} == {
            "first": low,
            "middle": wide,
            "head": wide,
            "last": low,
        }
        assert set(penalty.values()) == {(wide, wide)}


def test_nothing_is_kept_unless_named():
    seen = run_ranks(_kept, 1, "ddp", "fp16", ())[0]
    assert {dtypes[0][1] for dtypes in seen.values()} == {torch.float16}


def _exactness(fp32_modules):
    """A kept layer's output and float32's, for an input that fp16 would round and one that it cannot hold."""
    runtime = scenes.make_runtime("ddp", precision=trainkit.Precision(name="fp16", fp32_modules=fp32_modules))
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    engine = runtime.setup(nn.Sequential(layer), lambda groups: torch.optim.SGD(groups, lr=0.1))
    x = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5], [1e5, 1e6, 1.0, 2.0, 3.0]])
    return engine(x).detach(), nn.functional.linear(x, layer.weight, layer.bias).detach()


def test_a_kept_layer_computes_what_float32_does():
    kept, expected = _exactness(("0",))
    assert torch.equal(kept, expected)
    rounded, _ = _exactness(())
    assert not torch.isfinite(rounded[1]).all() and not torch.equal(rounded[0].float(), expected[0])


def _half_input(fp32_modules):
    """A kept layer behind one that returns fp16 is given fp32."""
    given = []

    class Looking(nn.Linear):
        def forward(self, x):
            given.append(x.dtype)
            return super().forward(x)

    runtime = scenes.make_runtime("ddp", precision=trainkit.Precision(name="fp16", fp32_modules=fp32_modules))
    module = nn.Sequential(nn.Linear(5, 3), Looking(3, 2))
    engine = runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=0.1))
    out = engine(torch.ones(2, 5))
    out.float().sum().backward()
    return given[0], out.dtype, present(module.get_parameter("1.weight").grad).dtype


def test_a_kept_layer_is_given_float32():
    assert _half_input(("Looking",)) == (torch.float32, torch.float32, torch.float32)
    assert _half_input(()) == (torch.float16, torch.float16, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("fp32_modules", [(), ("Head",), ("Sequential",)])
def test_parts_of_compiled_blocks_are_kept_too(fp32_modules):
    runtime = scenes.make_runtime(
        "ddp", precision=trainkit.Precision(name="bf16", fp32_modules=fp32_modules), compile=True
    )
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), Head(7, 1)]
    engine = runtime.setup(nn.Sequential(*layers), lambda groups: torch.optim.SGD(groups, lr=0.1))
    x = torch.rand(4, 5)
    out = engine(x).detach()
    assert out.dtype == (torch.float32 if fp32_modules else torch.bfloat16)
    exact = x
    for layer in layers:
        exact = nn.functional.linear(exact, layer.weight, layer.bias).detach()
    assert (scenes.error(out, exact) < 1e-6) == (fp32_modules == ("Sequential",))


@pytest.mark.parametrize(
    ("fp32_modules", "says"),
    [
        (("haed",), r"precision.fp32_modules=haed: no module has such a part; .*Did you mean 'head'"),
        (("head", "Hed"), r"precision.fp32_modules=Hed: no module has .* Did you mean 'Head'"),
        (("layers.*",), r"precision.fp32_modules=layers.\*: no module has"),
    ],
)
@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_a_name_without_a_part_is_an_error_before_training(name, fp32_modules, says):
    with pytest.raises(ConfigError, match=says):
        _kept("ddp", name, fp32_modules)


def test_a_name_may_belong_to_another_engines_module():
    runtime = scenes.make_runtime("ddp", precision=trainkit.Precision(name="bf16", fp32_modules=("Head", "Bilinear")))
    for module in (nn.Sequential(Head(5, 1)), nn.Sequential(nn.Bilinear(1, 1, 1))):
        runtime.setup(module, _adam)
    assert next(runtime.batches(torch.ones(8, 5), batch_size=4)).size == 4


def test_keep_must_be_a_list():
    with pytest.raises(ConfigError, match=r"precision.fp32_modules=head: must be a list of names, such as \[head\]"):
        trainkit.Precision(name="fp16", fp32_modules="head")


@pytest.mark.parametrize("key", ["initial_scale", "growth_interval"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_loss_scale_that_cannot_be(key, value):
    with pytest.raises(ConfigError, match=rf"precision.{key}={value}: must be"):
        trainkit.Precision(name="fp16", **{key: value})


def test_a_loss_scale_stays_a_number():
    scaler = present(trainkit.Precision(name="fp16", growth_interval=1).scaler())
    for _ in range(1100):  # as where every gradient is zero
        scaler.update(True)
    assert scaler.scale == 2.0**64
    scaler.load_state_dict({"scale": 1e-323, "num_good_steps": 0})
    assert scaler.scale == 2.0**-24


def _losses(strategy):
    runtime = scenes.make_runtime(strategy, precision="bf16")
    engine = runtime.setup(scenes.network(), _adam, blocks=(nn.Linear,))
    data = {"x": scenes.data(torch.float32)["x"]}
    losses, dtypes = [], set()
    for batch in runtime.batches(data, batch_size=20, num_steps=30):
        output = engine(batch.x)
        dtypes.add(output.dtype)
        engine.backward((output.float().squeeze(-1) - batch.x.sum(dim=1)).square().mean())
        losses.append(float(engine.step().loss))
    return losses, dtypes


@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_bf16_learns_under_every_strategy(strategy):
    for losses, dtypes in run_ranks(_losses, 2, strategy):
        assert dtypes == {torch.bfloat16}
        assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.fixture
def _switches():
    """torch's own switches, put back afterwards."""
    places = [BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn]
    places += [BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv]
    before = [place.fp32_precision for place in places]
    yield
    for place, value in zip(places, before, strict=True):
        place.fp32_precision = value


@pytest.mark.parametrize("name", ["fp64", "fp32", "bf16", "fp16"])
def test_tf32_is_off_where_it_was_not_asked_for(_switches, name):
    torch.set_float32_matmul_precision("medium")
    BACKENDS.cudnn.conv.fp32_precision = "tf32"
    told = trainkit.Precision(name=name).apply(torch.device("cpu"))
    assert told == f"{name} on the CPU (torch: float32 products ieee, convolutions ieee)"
    places = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.mkldnn.matmul)
    assert {place.fp32_precision for place in places} == {"ieee"}


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match=r"precision=tf32: the CPU cannot; use precision=fp64\|fp32\|bf16\|fp16"):
        trainkit.Precision(name="tf32").apply(torch.device("cpu"))


@pytest.mark.parametrize(("name", "mode"), [("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")])
def test_what_a_gpu_uses_is_read_back_from_torch(_switches, monkeypatch, name, mode):
    """The switches exist without a GPU; only its name and generation are made up here."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    told = trainkit.Precision(name=name, fp32_modules=("Head",)).apply(torch.device("cuda"))
    kept = ", kept in fp32: Head" if name == "bf16" else ""
    assert told == f"{name} on a GPU (torch: float32 products {mode}, convolutions {mode}){kept}"
    assert BACKENDS.cuda.matmul.fp32_precision == BACKENDS.cudnn.conv.fp32_precision == mode


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tf32_rounds_products_on_a_gpu(_switches):
    a, b = (torch.randn(512, 512, device="cuda", dtype=torch.float64) for _ in range(2))
    errors = {}
    for name in ("fp32", "tf32"):
        trainkit.Precision(name=name).apply(torch.device("cuda"))
        errors[name] = float((a.float() @ b.float() - a @ b).abs().max())
    assert errors["tf32"] > 10 * errors["fp32"]
