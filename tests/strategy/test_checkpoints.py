"""A checkpoint holds names and whole tensors: what one strategy wrote, every other reads, on any number of ranks."""

import pytest
import torch
from torch import nn

from tests.distributed import run_ranks
from tests.strategy import scenes


def _engine(runtime):
    module = scenes.network()
    module.register_buffer("seen", torch.zeros(3))
    groups = [
        {"params": [p for p in module.parameters() if p.ndim == 2]},
        {"params": [p for p in module.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
    return runtime.setup(module, optimizer, blocks=(nn.Linear,), ema=0.9, clip=1.0)


def _steps(runtime, engine, start, num_steps):
    for batch in runtime.batches(scenes.data(runtime.dtype), batch_size=12, start=start, num_steps=num_steps):
        engine.backward(((engine(batch.x).squeeze(-1) - batch.y) ** 2).mean())
        engine.step()
    engine.module.seen += 1.0


def _save(strategy, path):
    runtime = scenes.make_runtime(strategy, precision="fp32")
    engine = _engine(runtime)
    _steps(runtime, engine, 0, 3)
    runtime.save(path, network=engine, step=3)
    return scenes.whole_state(engine)


def _load_and_go_on(strategy, path):
    runtime = scenes.make_runtime(strategy, precision="fp32")
    engine = _engine(runtime)
    start = runtime.load(path, network=engine)
    loaded = scenes.whole_state(engine)
    _steps(runtime, engine, start, 2)
    return loaded, scenes.whole_state(engine)


def _whole(strategy):
    runtime = scenes.make_runtime(strategy, precision="fp32")
    engine = _engine(runtime)
    _steps(runtime, engine, 0, 3)
    _steps(runtime, engine, 36, 2)
    return scenes.whole_state(engine)


@pytest.mark.parametrize(
    ("wrote", "reads"),
    [
        (("fsdp", 2), ("ddp", 1)),
        (("ddp", 1), ("fsdp", 4)),
        (("hsdp", 4), ("zero2", 2)),
        (("zero1", 2), ("zero3", 4)),
        (("zero2", 4), ("hsdp", 4)),
        (("zero3", 4), ("zero1", 1)),
        (("zero3", 2), ("ddp", 2)),
        (("fsdp", 4), ("zero3", 2)),
    ],
)
def test_any_strategy_goes_on_where_another_stopped(tmp_path, wrote, reads):
    expected = run_ranks(_whole, 1, "ddp")[0]
    written = run_ranks(_save, wrote[1], wrote[0], tmp_path / "checkpoint")[0]
    for loaded, final in run_ranks(_load_and_go_on, reads[1], reads[0], tmp_path / "checkpoint"):
        for part in ("module", "optimizer", "average"):
            assert loaded[part].keys() == written[part].keys() == expected[part].keys()
            for name, tensor in written[part].items():
                assert torch.equal(loaded[part][name], tensor), (part, name)
            assert scenes.error(scenes.flat(final[part]), scenes.flat(expected[part])) < 1e-6
