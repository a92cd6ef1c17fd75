"""What is measured and saved with averaged weights in place, and with buffers that each rank has for itself."""

import pytest
import torch
from torch import nn

from tests.strategy import scenes
from trainkit.errors import UsageError
from trainkit.testing import run_ranks


def _setup(runtime, module, **given):
    return runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9), ema_decay=0.5, **given)


def _train(runtime, engine, num_steps=3):
    batches = runtime.batches(scenes.data(runtime.dtype), batch_size=12, num_steps=num_steps)
    for batch in batches:
        engine.backward((engine(batch.x).squeeze(-1) - batch.y).square().mean())
        engine.step()


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def _saved_within(strategy, path):
    runtime = scenes.make_runtime(strategy)
    engine = _setup(runtime, scenes.network())
    _train(runtime, engine)
    before = scenes.whole_state(engine)
    assert not _same(before["module"], before["average"])
    with engine.averaged():
        runtime.save(path, model=engine)
        within = scenes.whole_state(engine)
    other = _setup(runtime, scenes.network())
    runtime.load(path, model=other)
    after = scenes.whole_state(other)
    return all(_same(state[part], before[part]) for state in (within, after) for part in before)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_a_save_within_holds_trained_weights_and_averages(strategy, tmp_path):
    assert run_ranks(_saved_within, 2, strategy, str(tmp_path / "saved")) == [True, True]


def _misuse(strategy, path):
    runtime = scenes.make_runtime(strategy)
    engine = _setup(runtime, scenes.network())
    _train(runtime, engine)
    runtime.save(path, model=engine)
    before = scenes.whole_state(engine)
    batch = next(runtime.batches(scenes.data(runtime.dtype), batch_size=12))
    with engine.averaged():
        with (
            pytest.raises(UsageError, match=r"averaged\(\) of engine 'engine0' within averaged\(\)"),
            engine.averaged(),
        ):
            pass
        with pytest.raises(UsageError, match=r"backward\(\) of .* within averaged\(\)"):
            engine.backward(engine(batch.x).mean())
        with pytest.raises(UsageError, match=r"step\(\) of .* within averaged\(\)"):
            engine.step()
        with pytest.raises(UsageError, match=r"loading of .* within averaged\(\)"):
            runtime.load(path, model=engine)
        with pytest.raises(UsageError, match=r"inherit of .* within averaged\(\)"):
            _setup(runtime, scenes.network(), inherit=engine)
    return _same(scenes.whole_state(engine)["module"], before["module"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_would_take_averages_for_weights_is_refused(strategy, tmp_path):
    assert run_ranks(_misuse, 2, strategy, str(tmp_path / "saved")) == [True, True]


def _normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))


def _evaluate(runtime, engine):
    """The held-out loss with the weights, and with their averages."""
    losses = []
    engine.module.eval()
    with torch.no_grad():
        sums = []
        for batch in runtime.evaluation_batches(scenes.data(runtime.dtype), batch_size=20):
            sums.append((engine(batch.x).squeeze(-1) - batch.y).square().sum())
        losses.append(runtime.ranks.all_reduce_sum({"loss": sum(sums)})["loss"])
        with engine.averaged() as module:
            x, y = (
                scenes.data(runtime.dtype)[key][runtime.ranks.rank :: runtime.ranks.world_size] for key in ("x", "y")
            )
            losses.append(runtime.ranks.all_reduce_sum({"loss": (module(x).squeeze(-1) - y).square().sum()})["loss"])
    engine.module.train()
    return losses


def _evaluated_again(strategy, path):
    runtime = scenes.make_runtime(strategy)
    engine = _setup(runtime, _normalised())
    _train(runtime, engine)
    own = engine.module[1].running_mean.clone()
    before = _evaluate(runtime, engine)
    runtime.save(path, model=engine)
    other = _setup(runtime, _normalised())
    runtime.load(path, model=other)
    return own, before, _evaluate(runtime, other)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_a_metric_is_that_of_the_checkpoint(strategy, tmp_path):
    """BatchNorm's running statistics are of each rank's own samples; a checkpoint holds rank 0's."""
    results = run_ranks(_evaluated_again, 2, strategy, str(tmp_path / "saved"))
    assert not torch.equal(results[0][0], results[1][0])
    for _, before, after in results:
        assert before == after == results[0][1]
