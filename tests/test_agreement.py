"""Ranks that were started with different arguments or data: one line that names the key and both values, on all."""

import math
import os
from typing import Any

import numpy as np
import pytest
import torch

import trainkit
from tests.jobs import TOY, TRAIN, run, torchrun
from trainkit import checkpoint
from trainkit.errors import ConfigError, TrainkitError
from trainkit.testing import run_ranks


def _rank() -> int:
    return int(os.environ["RANK"])


def _runtime(**differing):
    given = {key: values[min(_rank(), 1)] for key, values in differing.items()}
    return trainkit.Runtime(**{"device": "cpu", "tracker": trainkit.Tracker(), "hang_timeout_s": None, **given})


def _seeds_by_rank():
    return _runtime(seed=(0, 1))


def _versions():
    version = trainkit.version.__version__
    trainkit.version.__version__ = f"{1 + min(_rank(), 1)}.0"
    try:
        return _runtime()
    finally:
        trainkit.version.__version__ = version


def _strategies():
    return _runtime(strategy=("ddp", "fsdp"))


def _precisions():
    return _runtime(precision=("fp32", "bf16"))


def _learning_rates():
    module = torch.nn.Linear(2, 1)
    return _runtime().setup(module, torch.optim.SGD(module.parameters(), lr=0.1 * (1 + min(_rank(), 1))))


def _shapes():
    module = torch.nn.Linear(2, 1 + min(_rank(), 1))
    return _runtime().setup(module, torch.optim.SGD(module.parameters(), lr=0.1))


def _clips():
    module = torch.nn.Linear(2, 1)
    return _runtime().setup(module, torch.optim.SGD(module.parameters(), lr=0.1), max_grad_norm=1.0 + min(_rank(), 1))


def _lengths():
    return _runtime().batches(torch.ones(64 - min(_rank(), 1), 2), batch_size=8)


def _contents():
    return _runtime().batches(torch.ones(64, 2) * (1 + min(_rank(), 1)), batch_size=8)


def _batch_sizes():
    return _runtime().batches(torch.ones(64, 2), batch_size=8 * (1 + min(_rank(), 1)))


def _numbers_of_steps():
    return _runtime().batches(torch.ones(64, 2), batch_size=8, num_steps=3 + min(_rank(), 1))


def _outcome(make) -> str:
    try:
        make()
    except ConfigError as error:
        return str(error)
    return "nothing was raised"


CASES = [
    (_seeds_by_rank, "seed=0 on rank 0, and seed=1 on rank 1"),
    (_versions, "trainkit=1.0 on rank 0, and trainkit=2.0 on rank 1"),
    (_strategies, "strategy=DDP("),
    (_precisions, "precision=Precision(name='fp32'"),
    (_learning_rates, "optimizer.lr of group 0 of engine0=0.1 on rank 0, and optimizer.lr of group 0 of engine0=0.2"),
    (_shapes, "engine0.weight=[1, 2, torch.float32, True] on rank 0, and engine0.weight=[2, 2, torch.float32, True]"),
    (_clips, "max_grad_norm=1.0 on rank 0, and max_grad_norm=2.0 on rank 1"),
    (_lengths, "len(data)=64 on rank 0, and len(data)=63 on rank 1"),
    (_contents, "fingerprint of the data="),
    (_batch_sizes, "batch_size=8 on rank 0, and batch_size=16 on rank 1"),
    (_numbers_of_steps, "num_steps=3 on rank 0, and num_steps=4 on rank 1"),
]


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_difference_is_refused_on_every_rank(ranks):
    for make, expected in CASES:
        said = run_ranks(_outcome, ranks, make)
        assert len(set(said)) == 1, said
        assert said[0].startswith("ranks disagree: ")
        assert expected in said[0]


class Measured(trainkit.Recipe):
    """One weight, and held-out losses that are given."""

    best_metric = "loss"

    def __init__(self, runtime, *, losses, num_steps, data="a"):
        self.runtime, self.losses, self.data = runtime, losses, data
        self.num_samples = 4 * num_steps
        module = torch.nn.Linear(2, 1)
        self.engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1), name="engine")

    def engines(self):
        return {"engine": self.engine}

    def batches(self, start=0):
        return self.runtime.batches(torch.ones(8, 2), batch_size=4, start=start)

    def train_step(self, batch):
        self.engine.backward(self.engine(batch.data).mean())
        return self.engine.step().metrics()

    def evaluate(self):
        return {"loss": self.losses[self.runtime.position // 4]}

    def fingerprints(self):
        return {"train": "t", "held_out": self.data}


def _fit(run_dir, losses, data="a", data_changed="refuse", num_steps=6, **cadence):
    """The directories of checkpoints that are left, by step."""
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=run_dir, hang_timeout_s=None)
    recipe = Measured(runtime, losses=losses, num_steps=num_steps, data=data)
    trainer = trainkit.Trainer(recipe, keep_last=1, data_changed=data_changed, **cadence)
    try:
        trainer.fit()
    except TrainkitError as error:
        return str(error)
    paths = checkpoint.step_directories(run_dir / "checkpoints")
    return {int(p.name[5:]): checkpoint.read_manifest(p)["values"]["metrics"].get("loss") for p in paths}


def test_the_best_is_kept_whatever_the_cadences(tmp_path):
    losses = [9.0, math.nan, 3.0, 1.0, 2.0, math.nan, 4.0]
    cadences: dict[str, dict[str, Any]] = {
        "apart": {"evaluate_every": 1, "save_every": 2},
        "one": {"evaluate_every": 1, "save_every": None},
        "both": {"evaluate_every": 1, "save_every": 1},
    }
    for name, cadence in cadences.items():
        assert _fit(tmp_path / name, losses, **cadence) == {3: 1.0, 6: 4.0}


def test_the_last_checkpoint_holds_what_was_measured_after_it(tmp_path):
    assert _fit(tmp_path / "run", [0.5] * 7, evaluate_every=None, save_every=3) == {6: 0.5}


@pytest.mark.parametrize("value", [torch.tensor(0.25), np.float32(0.25), 0.25])
def test_metrics_that_are_scalars_of_libraries_are_saved(tmp_path, value):
    assert _fit(tmp_path / "run", [value] * 7, evaluate_every=2, save_every=2)[6] == 0.25


@pytest.mark.parametrize("value", ["0.25", torch.ones(2), None])
def test_a_metric_that_is_no_number_is_named_at_once(tmp_path, value):
    said = _fit(tmp_path / "run", [value] * 7, evaluate_every=2, save_every=2)
    assert said.startswith("metric loss=")
    assert "must be a number" in said


def test_other_data_under_a_run_are_refused_or_accepted(tmp_path):
    assert _fit(tmp_path / "run", [1.0] * 7, evaluate_every=3, save_every=3) == {3: 1.0, 6: 1.0}
    refused = _fit(tmp_path / "run", [5.0] * 10, data="b", num_steps=9, evaluate_every=3, save_every=3)
    assert "the held_out data are not those" in refused
    assert "data_changed=accept" in refused
    accepted = _fit(
        tmp_path / "run", [5.0] * 10, data="b", data_changed="accept", num_steps=9, evaluate_every=3, save_every=3
    )
    assert accepted == {9: 5.0}, "1.0 was measured on other data, and is the best of nothing here"


def test_what_cannot_be_saved_is_named_at_once(tmp_path):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    with pytest.raises(TrainkitError, match="'model' cannot be saved beside engines, because it is not JSON-able"):
        runtime.save(tmp_path / "a", model=torch.nn.Linear(1, 1))
    runtime.close()


def test_a_linked_checkpoint_is_unlinked_and_stays_whole(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "manifest.json").write_text("{}")
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    (directory / "step_00000001").symlink_to(kept)
    (directory / "step_00000002").mkdir()
    checkpoint.prune(directory, ["step_00000001"])
    assert [path.name for path in directory.iterdir()] == ["step_00000002"]
    assert (kept / "manifest.json").is_file()


SCRIPT = """
import os, runpy, sys
key, sys.argv = sys.argv[1], [sys.argv[0], *sys.argv[2:], f"{sys.argv[1]}={1 + int(os.environ.get('RANK', 0))}"]
runpy.run_path(TRAIN, run_name="__main__")
"""


@pytest.mark.slow
def test_configurations_that_differ_by_rank_are_one_line(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("TRAIN", repr(str(TRAIN))))
    for key in ("recipe.batch_size", "optimizer.lr", "evaluate_every", "seed"):
        start = torchrun if key == "seed" else run
        done = start([key, *TOY, f"run_dir={tmp_path / 'run'}"], 2, script=script)
        assert done.returncode != 0
        said = done.stderr + done.stdout
        assert f"ranks disagree: {key}=1 on rank 0, and {key}=2 on rank 1" in said
        assert ("Traceback" in said) == (key == "seed"), "torchrun adds one of its own"
    assert not (tmp_path / "run").exists()
