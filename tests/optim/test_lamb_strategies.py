"""Trust ratios are of whole parameters under every strategy: what a step does is the same everywhere."""

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn

import trainkit
from tests.strategy import scenes
from trainkit.errors import UsageError
from trainkit.ops.bits import pack_bits
from trainkit.optim import AdamW, Lamb
from trainkit.strategy.deepspeed import _Slices
from trainkit.testing import RankError, run_ranks

CLIP = 0.75
KINDS = {"zero1": trainkit.Zero1, "zero2": trainkit.Zero2, "zero3": trainkit.Zero3}
WHERE = [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4), ("hsdp", 2), ("hsdp", 4), ("zero1", 2), ("zero2", 2)]
WHERE += [("zero3", 1), ("zero3", 2), ("zero2", 4), ("zero3", 4)]
OFFLOADED = [
    ("zero1", {"offload_optimizer": True}),
    ("zero3", {"offload_optimizer": True, "offload_parameters": True, "keep_below": 4}),
]
OPTIMIZERS = {
    "lamb": lambda groups: Lamb(groups, lr=0.02, weight_decay=0.1, max_grad_norm=CLIP),
    "adamw": lambda groups: AdamW(groups, lr=0.02, weight_decay=0.1),
}


def _runtime(strategy, arguments):
    if arguments is None:
        return scenes.make_runtime(strategy)
    return trainkit.Runtime(strategy=KINDS[strategy](**arguments), device="cpu", tracker=trainkit.Tracker())


def _engine(runtime, optimizer="lamb", per_block=False):
    module = scenes.network()
    groups = [
        {"params": [p for p in module.parameters() if p.ndim == 2]},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return runtime.setup(module, OPTIMIZERS[optimizer](groups), blocks=(nn.Linear,) if per_block else (), ema_decay=0.9)


def _steps(runtime, engine):
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=scenes.BATCH, num_steps=scenes.NUM_STEPS):
        loss, weight = scenes.loss_of("weighted", engine, engine.input_gradient, batch.x, batch.y, batch.num)
        engine.backward(loss, weight=weight)
        yield engine.step()


def _train(strategy, arguments=None, per_block=False):
    """Weights, moments and gradient norms."""
    runtime = _runtime(strategy, arguments)
    engine = _engine(runtime, per_block=per_block)
    assert engine.max_grad_norm == CLIP
    norms = [float(result.grad_norm) for result in _steps(runtime, engine)]
    state = scenes.whole_state(engine)
    return scenes.flat(state["module"]), scenes.flat(state["optimizer"]), norms


def _require_equal(strategy, found, expected):
    tolerance = 1e-11 if scenes.precision_of(strategy) == "fp64" else 2e-6
    assert found[2] == pytest.approx(expected[2], rel=10 * tolerance)
    for ours, reference in zip(found[:2], expected, strict=False):
        assert scenes.error(ours, reference) < tolerance


@pytest.fixture(scope="module")
def alone():
    return run_ranks(_train, 1, "single")[0]


@pytest.mark.parametrize(("strategy", "ranks"), WHERE)
def test_every_strategy_is_one_process(alone, strategy, ranks):
    assert max(alone[2]) > CLIP > min(alone[2])  # some steps are clipped, others not
    for found in run_ranks(_train, ranks, strategy):
        _require_equal(strategy, found, alone)


@pytest.mark.parametrize(("strategy", "arguments"), OFFLOADED, ids=str)
def test_offload_changes_nothing(alone, strategy, arguments):
    for found in run_ranks(_train, 2, strategy, arguments):
        _require_equal(strategy, found, alone)


def test_block_by_block(alone):
    for found in run_ranks(_train, 4, "fsdp", None, True):
        _require_equal("fsdp", found, alone)


def _train_a_head(strategy):
    runtime = scenes.make_runtime(strategy)
    module = scenes.network()
    module[0].requires_grad_(False)
    engine = runtime.setup(module, Lamb(list(module.parameters()), lr=0.02, weight_decay=0.1, max_grad_norm=CLIP))
    list(_steps(runtime, engine))
    return scenes.flat(scenes.whole_state(engine)["module"])


def test_a_frozen_first_layer_changes_nothing_about_the_others():
    expected = run_ranks(_train_a_head, 1, "single")[0]
    for strategy in ("fsdp", "zero1", "zero2", "zero3"):
        for found in run_ranks(_train_a_head, 2, strategy):
            assert scenes.error(found, expected) < (1e-11 if strategy == "fsdp" else 2e-6), strategy


def _with_norms_of_its_own(strategy):
    with mock.patch.object(Lamb, "_summed", lambda self, squares, parts: squares):
        return _train(strategy)


@pytest.mark.parametrize("strategy", ["fsdp", "zero2", "zero3"])
def test_norms_of_parts_alone_are_seen(alone, strategy):
    found = run_ranks(_with_norms_of_its_own, 2, strategy)[0]
    assert scenes.error(found[0], alone[0]) > 1e-3


def _with_a_piece_too_few():
    ranges = _Slices.ranges

    def fewer(tensors):
        return {p: [*held[:-1], replace(held[-1], num=0)] for p, held in ranges(tensors).items()}

    with mock.patch.object(_Slices, "ranges", fewer):
        _engine(scenes.make_runtime("zero2"))


def test_what_lies_nowhere_is_refused_on_every_rank():
    told = r"ranks of a group hold 0 elements of '4\.weight', which has 7: remove strategy\.config"
    with pytest.raises(RankError, match=told) as caught:
        run_ranks(_with_a_piece_too_few, 2)
    assert caught.value.kind == "ConfigError"


def _masks():
    generator = torch.Generator().manual_seed(4)
    shapes = {"0.weight": (9, 5), "2.weight": (7, 9), "2.bias": (7,)}
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


def _train_masked(strategy, optimizer):
    """Weights and averages by name; checks after every step that masks and copies hold here."""
    runtime = scenes.make_runtime(strategy)
    engine = _engine(runtime, optimizer)
    list(_steps(runtime, engine))
    engine.state.set_masks({name: pack_bits(mask) for name, mask in _masks().items()})
    held = {name: shard.local for name, shard in engine.state.weights().items()}
    copies = {name: torch.zeros(local.shape, dtype=torch.bfloat16) for name, local in held.items()}
    engine.optimizer.set_copies(copies)
    for _ in _steps(runtime, engine):
        assert all(torch.equal(copies[name], local.bfloat16()) for name, local in held.items())
    state = scenes.whole_state(engine)
    return {part: state[part] for part in ("module", "average")}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_and_copies_are_those_of_one_process(optimizer):
    expected = run_ranks(_train_masked, 1, "single", optimizer)[0]
    for name, mask in _masks().items():
        for part in ("module", "average"):
            assert torch.equal(expected[part][name] != 0, mask), (part, name)
    for strategy, ranks in (("ddp", 2), ("fsdp", 2), ("zero1", 2), ("zero3", 2), ("fsdp", 4)):
        for found in run_ranks(_train_masked, ranks, strategy, optimizer):
            for part in ("module", "average"):
                assert scenes.error(scenes.flat(found[part]), scenes.flat(expected[part])) < 2e-6
                assert all(torch.equal(found[part][name] != 0, mask) for name, mask in _masks().items())


def test_an_optimizer_without_masks_is_masked_after_steps():
    runtime = scenes.make_runtime("single")
    engine = runtime.setup(scenes.network(), lambda groups: torch.optim.Adam(groups, lr=0.02), ema_decay=0.9)
    engine.state.set_masks({name: pack_bits(mask) for name, mask in _masks().items()})
    list(_steps(runtime, engine))
    state = scenes.whole_state(engine)
    for name, mask in _masks().items():
        for part in ("module", "average"):
            assert torch.equal(state[part][name] != 0, mask), (part, name)
    with pytest.raises(UsageError, match="there is no parameter 'nowhere'"):
        engine.state.set_masks({"nowhere": pack_bits(torch.ones(3, dtype=torch.bool))})


def test_the_smaller_clip_counts():
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
    for own, engines, both in ((1.0, None, 1.0), (1.0, 0.5, 0.5), (0.25, 0.5, 0.25), (None, 0.5, 0.5)):
        optimizer = partial(Lamb, lr=0.1, max_grad_norm=own)
        engine = runtime.setup(scenes.network(), optimizer, max_grad_norm=engines)
        assert engine.max_grad_norm == both
