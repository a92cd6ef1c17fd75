"""A checkpoint holds names and tensors: what one strategy wrote, every other reads, on any number of ranks."""

import pytest
import torch
from torch import nn

from benchmarks import handover
from tests.strategy import scenes
from trainkit import checkpoint
from trainkit.optim import Lamb
from trainkit.testing import run_ranks

PARTS = ("module", "optimizer", "average")
WHERE = (*handover.WHERE, ("hsdp", 4))
# Each writes for itself and for two others, and reads of itself and of two others.
LAMB_WHERE = (("ddp", 2), ("fsdp", 4), ("zero2", 2), ("zero3", 2))
CELLS = [(wrote, reads) for i, wrote in enumerate(WHERE) for reads in (wrote, WHERE[i - 4], WHERE[i - 2])]


def _engine(runtime, kind=torch.optim.AdamW):
    module = scenes.network()
    module.register_buffer("seen", torch.zeros(3))
    groups = [
        {"params": [p for p in module.parameters() if p.ndim == 2]},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return runtime.setup(
        module, kind(groups, lr=0.01, weight_decay=0.1), blocks=(nn.Linear,), ema_decay=0.9, max_grad_norm=1.0
    )


def _steps(runtime, engine, start, num_steps):
    losses = []
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=12, start=start, num_steps=num_steps):
        engine.backward(((engine(batch.x).squeeze(-1) - batch.y) ** 2).mean())
        losses.append(float(engine.step().loss))
    engine.module.seen += 1.0
    return losses


def _runtime(strategy):
    return scenes.make_runtime(strategy, deterministic=True)


def _save_and_go_on(strategy, path, *kind):
    runtime = _runtime(strategy)
    engine = _engine(runtime, *kind)
    _steps(runtime, engine, 0, 3)
    runtime.save(path, network=engine, step=3)
    return scenes.whole_state(engine), _steps(runtime, engine, 36, 10)


def _load_and_go_on(strategy, path, again, *kind):
    runtime = _runtime(strategy)
    engine = _engine(runtime, *kind)
    start = runtime.load(path, network=engine).position
    loaded = scenes.whole_state(engine)
    runtime.save(again, network=engine, step=3)
    return loaded, _steps(runtime, engine, start, 10)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(where it lies, its tensors, the losses of the ten steps that followed) of each strategy and number of ranks."""
    directory = tmp_path_factory.mktemp("written")
    found = {}
    for strategy, ranks in WHERE:
        path = directory / f"{strategy}_{ranks}"
        found[strategy, ranks] = path, *run_ranks(_save_and_go_on, ranks, strategy, path)[0]
    return found


@pytest.mark.parametrize(("wrote", "reads"), CELLS, ids=lambda cell: f"{cell[0]}x{cell[1]}")
def test_any_strategy_goes_on_where_another_stopped(written, tmp_path, wrote, reads):
    path, state, losses = written[wrote]
    saved = checkpoint.read_whole(path)
    assert saved.keys() == {f"network.{part}/{name}" for part in PARTS for name in state[part]}
    assert all(
        torch.equal(saved[f"network.{part}/{name}"], state[part][name]) for part in PARTS for name in state[part]
    )
    tolerance = 2e-6 if any(strategy.startswith("zero") for strategy, _ in (wrote, reads)) else 1e-9
    for loaded, following in run_ranks(_load_and_go_on, reads[1], reads[0], path, tmp_path / "again"):
        for part in PARTS:
            assert loaded[part].keys() == state[part].keys()
            for name, tensor in loaded[part].items():
                assert torch.equal(tensor, state[part][name].to(tensor.dtype)), (part, name)
        if wrote == reads:
            assert following == losses
        else:
            assert following == pytest.approx(losses, rel=tolerance)
    again = checkpoint.read_whole(tmp_path / "again")
    assert again.keys() == saved.keys()
    assert [name for name in saved if not torch.equal(again[name], saved[name].to(again[name].dtype))] == []


@pytest.mark.parametrize("number", range(len(LAMB_WHERE)), ids=lambda n: f"{LAMB_WHERE[n - 1][0]}-{LAMB_WHERE[n][0]}")
def test_lamb_goes_on_where_another_strategy_stopped(tmp_path, number):
    (wrote, ranks), (reads, num_readers) = LAMB_WHERE[number - 1], LAMB_WHERE[number]
    state, losses = run_ranks(_save_and_go_on, ranks, wrote, tmp_path / "written", Lamb)[0]
    assert {name.rpartition("/")[2] for name in state["optimizer"]} == {"step", "exp_avg", "exp_avg_sq"}
    assert all(state["optimizer"][name] == 3 for name in state["optimizer"] if name.endswith("/step"))
    for loaded, following in run_ranks(
        _load_and_go_on, num_readers, reads, tmp_path / "written", tmp_path / "again", Lamb
    ):
        for name, tensor in loaded["optimizer"].items():
            assert torch.equal(tensor, state["optimizer"][name].to(tensor.dtype)), name
        assert following == pytest.approx(losses, rel=1e-5)


def _values_alone(path):
    runtime = _runtime("ddp")
    runtime.save(path, epoch=3, names=["a"])
    return runtime.load(path).values


@pytest.mark.parametrize("ranks", [1, 2])
def test_values_are_saved_without_an_engine(ranks, tmp_path):
    for values in run_ranks(_values_alone, ranks, tmp_path / "saved"):
        assert {name: values[name] for name in ("epoch", "names")} == {"epoch": 3, "names": ["a"]}
