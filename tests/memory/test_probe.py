"""grad_accumulation_steps=auto: one rank of two runs out of memory, and both agree, wherever it happens."""

import json

import pytest
import torch
from torch import nn

from tests.jobs import TOY, run
from tests.strategy import scenes
from trainkit import checkpoint
from trainkit.errors import ConfigError, UsageError
from trainkit.memory.probe import fewest_that_fit, is_out_of_memory
from trainkit.testing import run_ranks
from trainkit.training.accumulation import fewest_micro_batches

PLACES = ("forward", "backward", "setup")


class _Greedy(nn.Module):
    """Runs out of memory on the last rank when it sees more than `limit` samples, between two layers."""

    def __init__(self, inner, place, limit, is_last, error=torch.OutOfMemoryError):
        super().__init__()
        self.inner, self.place, self.limit, self.is_last, self.error = inner, place, limit, is_last, error

    def forward(self, x):
        is_too_much = self.is_last and len(x) > self.limit
        x = self.inner[1](self.inner[0](x))
        if is_too_much and self.place == "forward":
            raise self.error("planted")
        if is_too_much and self.place == "backward":
            x = _FailsBackward.apply(x, self.error)
        return self.inner[4](self.inner[3](self.inner[2](x)))


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ctx.error("planted")


def _engine(runtime, place, limit, grad_accumulation_steps, error=torch.OutOfMemoryError):
    is_last = runtime.ranks.rank == runtime.ranks.world_size - 1
    if place == "setup" and is_last and 8 / grad_accumulation_steps > limit:
        raise error("planted")
    return runtime.setup(
        _Greedy(scenes.network(), place, limit, is_last, error),
        lambda groups: torch.optim.AdamW(groups),
        blocks=(nn.Linear,),
        grad_accumulation_steps=grad_accumulation_steps,
    )


def _steps(runtime, engine, num_steps):
    batch_size = 8 * runtime.ranks.world_size
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=batch_size, num_steps=num_steps):
        for micro in engine.micro_batches(batch):
            engine.backward((engine(micro.x) ** 2).mean())
        engine.step()


def _search(strategy, place, limit, error=torch.OutOfMemoryError):
    runtime = scenes.make_runtime(strategy)
    tried = []

    def attempt(num):
        tried.append(num)
        runtime.reset()
        engine = _engine(runtime, place, limit, num, error)
        _steps(runtime, engine, 2)
        engine.retire()

    found = fewest_micro_batches(runtime, attempt, largest=lambda: 8)
    runtime.reset()
    engine = _engine(runtime, place, limit, found)
    _steps(runtime, engine, 3)
    return found, tried, scenes.flat(scenes.whole_state(engine)["module"])


def _without_search(strategy, grad_accumulation_steps):
    runtime = scenes.make_runtime(strategy)
    engine = _engine(runtime, "nowhere", 0, grad_accumulation_steps)
    _steps(runtime, engine, 3)
    return scenes.flat(scenes.whole_state(engine)["module"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("strategy", scenes.EVERY)
def test_one_rank_out_of_memory_is_known_to_all(strategy, place):
    """A share of 8 samples: 8 and 4 are too many, 2 fit, and so do 3."""
    expected = run_ranks(_without_search, 2, strategy, 3)
    for (found, tried, weights), without in zip(run_ranks(_search, 2, strategy, place, 3), expected, strict=True):
        assert (found, tried) == (3, [1, 2, 4, 3])
        assert torch.equal(weights, without)


def test_what_fits_at_once_is_not_split():
    for found, tried, _ in run_ranks(_search, 4, "fsdp", "forward", 8):
        assert (found, tried) == (1, [1])


def _searches_in_vain(strategy):
    with pytest.raises(
        ConfigError, match=r"does not fit into memory in 8 micro-batches, .* use strategy=fsdp or zero3"
    ):
        _search(strategy, "forward", 0)
    return True


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_nothing_fits(strategy):
    assert run_ranks(_searches_in_vain, 2, strategy) == [True, True]


def _fails_otherwise():
    try:
        _search("fsdp", "forward", 3, ZeroDivisionError)
    except (ZeroDivisionError, UsageError) as error:
        return type(error).__name__, str(error)
    raise AssertionError("nothing was raised")


def test_another_error_is_raised_and_known_to_the_rest():
    (first, text), last = run_ranks(_fails_otherwise, 2)
    assert (first, last) == ("PeerError", ("ZeroDivisionError", "planted"))
    assert "another rank failed" in text


def test_numbers_that_are_refused_count_as_too_few():
    def attempt(num):
        if num == 3:
            raise ConfigError("3 does not divide the share")
        if num < 3:
            raise torch.OutOfMemoryError("planted")

    assert fewest_that_fit(attempt, largest=lambda: 8, group=None) == 4


def test_the_cpus_own_error_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_job_keeps_what_it_found_and_does_not_search_again(tmp_path):
    arguments = [*TOY, "precision=fp64"]
    plain = run([*arguments, f"run_dir={tmp_path / 'plain'}"], 2)
    assert plain.returncode == 0, plain.stderr
    searching = [
        *arguments,
        "recipe.grad_accumulation_steps=auto",
        "recipe.fault=out_of_memory",
        f"run_dir={tmp_path / 'auto'}",
    ]
    first = run(searching, 2)
    assert first.returncode == 0, first.stderr
    assert "grad_accumulation_steps=auto: 2 micro-batches a rank fit into memory" in first.stdout
    assert "global batch 8 = 2 ranks x 2 samples x 2 micro-batches" in first.stdout
    manifests = {
        name: json.loads(
            (checkpoint.step_directories(tmp_path / name / "checkpoints")[-1] / "manifest.json").read_text()
        )
        for name in ("plain", "auto")
    }
    assert manifests["auto"]["values"]["found"]["grad_accumulation_steps"] == 2
    assert manifests["auto"]["values"]["config"]["recipe"]["grad_accumulation_steps"] == 2
    losses = [manifests[name]["values"]["metrics"]["held_out_loss"] for name in ("plain", "auto")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    again = run([*searching, "recipe.num_steps=32"], 2)
    assert again.returncode == 0, again.stderr
    assert "grad_accumulation_steps=auto" not in again.stdout
