"""Trust ratios are of whole parameters under every strategy: what a step does is the same everywhere."""

import pytest
from torch import nn

import trainkit
from tests.distributed import run_ranks
from tests.strategy import scenes
from trainkit.optim import Lamb

CLIP = 0.75
WHERE = [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4), ("hsdp", 2), ("hsdp", 4)]
WHERE += [(f"zero{stage}", ranks) for stage in (1, 2, 3) for ranks in (1, 2, 4)]


def groups_of(module):
    return [
        {"params": [p for p in module.parameters() if p.ndim == 2]},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def make_optimizer(module):
    return Lamb(groups_of(module), lr=0.02, weight_decay=0.1, clip=CLIP)


def _train(strategy, per_block=False, arguments=None):
    """Weights, moments and gradient norms, of all ranks, in float64."""
    runtime = scenes.make_runtime(strategy) if arguments is None else _runtime_of(strategy, arguments)
    module = scenes.network()
    engine = runtime.setup(module, make_optimizer(module), blocks=(nn.Linear,) if per_block else ())
    assert engine.clip == CLIP
    norms = []
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=scenes.BATCH, num_steps=scenes.NUM_STEPS):
        loss, weight = scenes.loss_of("weighted", engine, engine.input_gradient, batch.x, batch.y, batch.num)
        engine.backward(loss, weight=weight)
        norms.append(float(engine.step().grad_norm))
    state = scenes.whole_state(engine)
    return scenes.flat(state["module"]), scenes.flat(state["optimizer"]), norms


def _runtime_of(strategy, arguments):
    kinds = {"zero1": trainkit.Zero1, "zero2": trainkit.Zero2, "zero3": trainkit.Zero3}
    return trainkit.Runtime(strategy=kinds[strategy](**arguments), device="cpu", tracker=trainkit.Tracker())


@pytest.fixture(scope="module")
def alone():
    return run_ranks(_train, 1, "single")[0]


def _require_equal(strategy, found, expected):
    weights, state, norms = found
    tolerance = 1e-11 if scenes.precision_of(strategy) == "fp64" else 2e-6
    assert norms == pytest.approx(expected[2], rel=1e-5 if tolerance > 1e-11 else 1e-11)
    assert scenes.error(weights, expected[0]) < tolerance
    assert scenes.error(state, expected[1]) < tolerance


@pytest.mark.parametrize(("strategy", "ranks"), WHERE)
def test_every_strategy_is_one_process(alone, strategy, ranks):
    assert max(alone[2]) > CLIP > min(alone[2])  # some steps are clipped, others not
    for found in run_ranks(_train, ranks, strategy):
        _require_equal(strategy, found, alone)


@pytest.mark.parametrize("ranks", [2, 4])
def test_block_by_block(alone, ranks):
    for found in run_ranks(_train, ranks, "fsdp", True):
        _require_equal("fsdp", found, alone)
