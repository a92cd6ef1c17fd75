"""Hyper-parameters that a user's own scheduler has changed come back with a checkpoint; tied weights by both names."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import trainkit
from tests.strategy.scenes import EVERY, error, flat, make_runtime, precision_of, whole_state
from trainkit.cli.main import main
from trainkit.config import compose
from trainkit.errors import ConfigError
from trainkit.job import train
from trainkit.testing import run_ranks

SCHEDULERS = {
    "StepLR": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
    "one-cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=8),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
}


class Noted(trainkit.Tracker):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))


def _train(strategy, kind, directory):
    """Weights after eight steps, the second time with a load after four; and the rates of each."""
    found = []
    for interrupted in (False, True):
        runtime = make_runtime(strategy)
        x = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(runtime.dtype)

        def begin(runtime=runtime):
            module = _network()
            engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), name="a")
            return engine, SCHEDULERS[kind](engine.optimizer)

        def steps(engine, scheduler, start, num, rates, runtime=runtime, x=x):
            for batch in runtime.batches(x, batch_size=8, start=start, num_steps=num):
                loss = engine(batch.data).square().mean()
                engine.backward(loss)
                rates.append(engine.step().lr)
                scheduler.step(*((1.0,) if kind == "plateau" else ()))

        rates: list[float] = []
        engine, scheduler = begin()
        steps(engine, scheduler, 0, 4, rates)
        if interrupted:
            runtime.save(f"{directory}/{kind}", a=engine, scheduler=scheduler.state_dict())
            engine, scheduler = begin()
            loaded = runtime.load(f"{directory}/{kind}", a=engine)
            scheduler.load_state_dict(loaded.values["scheduler"])
        steps(engine, scheduler, 32, 4, rates)
        found.append((flat(whole_state(engine)["module"]), rates))
        runtime.close()
    return found


@pytest.mark.parametrize("strategy", ["single", *EVERY])
def test_rates_of_ones_own_scheduler_go_on_after_a_load(tmp_path, strategy):
    for kind in SCHEDULERS if strategy in ("single", "ddp") else ("StepLR",):
        for through, resumed in run_ranks(_train, 1 if strategy == "single" else 2, strategy, kind, str(tmp_path)):
            assert resumed[1] == through[1], kind
            assert len(set(through[1])) > 2, "a rate that stays would tell nothing"
            assert error(resumed[0], through[0]) < (1e-12 if precision_of(strategy) == "fp64" else 1e-6)


def test_a_rate_that_is_given_anew_stays_and_is_said(tmp_path):
    tracker = Noted()
    for lr in (0.1, 0.3):
        runtime = trainkit.Runtime(device="cpu", tracker=tracker)
        module = _network()
        engine = runtime.setup(module, torch.optim.Adam(module.parameters(), lr=lr, betas=(0.8, 0.9)), name="a")
        if lr == 0.1:
            engine.optimizer.param_groups[0]["lr"] = 0.05
            engine.optimizer.param_groups[0]["betas"] = (0.7, 0.9)
            runtime.save(tmp_path / "a", a=engine)
        else:
            runtime.load(tmp_path / "a", a=engine)
            assert engine.optimizer.param_groups[0]["lr"] == 0.3
            assert engine.optimizer.param_groups[0]["betas"] == (0.7, 0.9)
            assert "a: optimizer.lr is 0.3, and was 0.05 in the checkpoint" in tracker.said
        runtime.close()


def test_a_scheduler_goes_on_from_a_rate_that_is_set(tmp_path):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    for lr in (0.1, 0.3):
        module = _network()
        engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=lr), name="a")
        if lr == 0.3:
            runtime.load(tmp_path / "a", a=engine)
        scheduler = torch.optim.lr_scheduler.LambdaLR(engine.optimizer, lambda step: 0.5**step)
        scheduler.step()
        assert engine.optimizer.param_groups[0]["lr"] == lr / 2
        if lr == 0.1:
            runtime.save(tmp_path / "a", a=engine)
    runtime.close()


@pytest.mark.parametrize("schedule", [None, trainkit.Schedule(shape="constant")])
def test_an_added_group_takes_its_rate_from_the_checkpoint(tmp_path, schedule):
    tracker = Noted()
    runtime = trainkit.Runtime(device="cpu", tracker=tracker)

    def begin(lr):
        module = _network()
        module[0].requires_grad_(False)
        engine = runtime.setup(module, torch.optim.SGD(module[2].parameters(), lr=0.1), name="a", schedule=schedule)
        if lr is not None:
            module[0].requires_grad_(True)
            engine.optimizer.add_param_group({"params": list(module[0].parameters()), "lr": lr})
        return engine

    engine = begin(0.05)
    engine.optimizer.param_groups[1]["lr"] = np.float32(0.025)
    runtime.save(tmp_path / "a", a=engine)
    engine = begin(0.05)
    runtime.load(tmp_path / "a", a=engine)
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.1, pytest.approx(0.025)]
    assert not any("parameter groups" in line for line in tracker.said)
    runtime.load(tmp_path / "a", a=begin(None))
    assert "a: the optimizer has 1 parameter groups, the checkpoint's 2: the others stay as they are" in tracker.said
    runtime.close()


def test_a_scheduler_of_torch_as_schedule_is_refused():
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    module = _network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"schedule=StepLR: must be a function .*of engine.optimizer instead"):
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        runtime.setup(module, optimizer, schedule=schedule)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="LBFGS evaluates the loss several times"):
        runtime.setup(module, torch.optim.LBFGS(module.parameters()))
    with pytest.raises(ConfigError, match=r"engine1.* cannot be made: Invalid learning rate: -1"):
        runtime.setup(module, lambda groups: torch.optim.SGD(groups, lr=-1.0))
    runtime.close()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.lr=-1", "optimizer.lr=-1.0: Invalid learning rate"),
        ("optimizer.betas=[2,3]", r"optimizer.betas=\(2.0, 3.0\): Invalid beta"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1.0: Invalid weight_decay"),
    ],
)
def test_a_refused_optimizer_value_is_named_by_its_key(override, said):
    with pytest.raises(ConfigError, match=said):
        train(compose(["recipe=bert", override, "data.path=/nowhere"]))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.embedding(x))


def _save_tied(strategy, directory):
    runtime = make_runtime(strategy)
    module = Tied()
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), ema_decay=0.5, name="a")
    for batch in runtime.batches(torch.arange(6).repeat(4), batch_size=8, num_steps=2):
        engine.backward(engine(batch.data).square().mean())
        engine.step()
    runtime.save(f"{directory}/a", a=engine)
    runtime.close()
    return int(os.environ["RANK"])


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp", "zero3"])
def test_one_file_of_tied_weights_loads_strictly(tmp_path, strategy):
    run_ranks(_save_tied, 1 if strategy == "single" else 2, strategy, str(tmp_path))
    for part in ("module", "average"):
        output = tmp_path / f"{part}.safetensors"
        assert main(["checkpoint", "consolidate", str(tmp_path / "a"), "--output", str(output), "--part", part]) == 0
        module = Tied()
        before = module.embedding.weight.detach().clone()
        module.load_state_dict(load_file(output), strict=True)
        assert not torch.equal(module.embedding.weight, before)
