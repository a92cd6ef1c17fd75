"""examples/ as its README says: each is run, and the three loops are compared with one another."""

import ast
import importlib.util
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import trainkit
from tests.jobs import ROOT, run
from trainkit.testing import run_ranks

EXAMPLES = ROOT / "examples"
NUM_STEPS = 12  # three epochs of the letters
Batches = list[tuple[Tensor, Tensor]]
has_fabric = importlib.util.find_spec("lightning") is not None
has_nbclient = all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel"))


def _networks() -> tuple[nn.Module, nn.Module]:
    from examples import own_loop

    torch.manual_seed(1)
    generator, discriminator = own_loop.networks()
    return generator.double(), discriminator.double()


def _quiet_runtime() -> trainkit.Runtime:
    return trainkit.Runtime(strategy="ddp", precision="fp64", seed=0, tracker=trainkit.Tracker())


def _global_batches() -> Batches:
    """The images and latent vectors of own_loop.py, of which one process has all."""
    from examples import own_loop

    runtime = _quiet_runtime()
    images = own_loop.letters()
    batches = runtime.batches(images, batch_size=own_loop.BATCH_SIZE, num_steps=NUM_STEPS)
    return [(batch.data, runtime.randn(batch, own_loop.LATENT_DIM, name="latent")) for batch in batches]


def _own_loop() -> Tensor:
    from examples import own_loop

    networks = _networks()
    return _flat(networks, own_loop.train(_quiet_runtime(), *networks, own_loop.letters(), NUM_STEPS))


def _raw_pytorch(batches: Batches) -> Tensor:
    from examples import raw_pytorch

    networks = _networks()
    return _flat(networks, raw_pytorch.train(*networks, batches))


def _fabric(batches: Batches) -> Tensor:
    from lightning.fabric import Fabric

    from examples import fabric

    devices = dist.get_world_size() if dist.is_initialized() else 1
    runner = Fabric(accelerator="cpu", devices=devices, precision="64-true")
    runner.launch()
    networks = _networks()
    return _flat(networks, fabric.train(runner, *networks, batches))


def _flat(networks: tuple[nn.Module, nn.Module], samples: Tensor) -> Tensor:
    """All weights, and what the averaged generator makes."""
    return torch.cat([*(p.detach().flatten() for network in networks for p in network.parameters()), samples.flatten()])


@pytest.fixture(scope="module")
def batches() -> Batches:
    (found,) = run_ranks(_global_batches, 1)
    return found


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_own_loop_equals_raw_pytorch(num_ranks, batches):
    expected = run_ranks(_raw_pytorch, num_ranks, batches)
    for found, raw in zip(run_ranks(_own_loop, num_ranks), expected, strict=True):
        assert (found - raw).abs().max() < 1e-11 * raw.abs().max()
    before = _flat(_networks(), torch.zeros(expected[0].numel() - _flat(_networks(), torch.zeros(0)).numel()))
    assert (expected[0] - before).abs().max() > 1e-3  # they were trained


@pytest.mark.skipif(not has_fabric, reason="Lightning Fabric is not installed: pip install lightning")
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_fabric_equals_raw_pytorch(num_ranks, batches):
    expected = run_ranks(_raw_pytorch, num_ranks, batches)
    for found, raw in zip(run_ranks(_fabric, num_ranks, batches), expected, strict=True):
        assert (found - raw).abs().max() < 1e-11 * raw.abs().max()


@pytest.mark.skipif(has_fabric, reason="Lightning Fabric is installed")
def test_fabric_says_what_to_install(tmp_path):
    done = run([], cwd=tmp_path, script=EXAMPLES / "fabric.py")
    assert done.returncode == 1 and "pip install lightning" in done.stderr


@pytest.mark.parametrize(
    ("name", "said"), [("own_loop", "step      200  100.0%"), ("raw_pytorch", "step      200  d_loss")]
)
def test_a_loop_runs_on_two_processes(tmp_path, name, said):
    done = run([], 2, cwd=tmp_path, script=EXAMPLES / f"{name}.py")
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    written = {"own_loop": "own_loop/last/manifest.json", "raw_pytorch": "raw_pytorch.pt"}[name]
    assert (tmp_path / "runs" / written).exists()


def test_own_recipe_strategy_and_tracker(tmp_path):
    """The recipe learns, on two processes under the strategy of one's own; the tracker has what it says."""
    database = tmp_path / "metrics.db"
    options = [
        "--config-dir",
        str(EXAMPLES / "own_recipe" / "conf"),
        "experiment=letters_short",
        f"run_dir={tmp_path / 'run'}",
    ]
    tracker = ["tracking.others.mine._target_=examples.own_tracker.SQLite", f"tracking.others.mine.path={database}"]
    done = run([*options, "strategy=one_message", *tracker], 2)
    assert done.returncode == 0, done.stderr
    assert "strategy one_message on 2 ranks" in done.stdout
    ended = re.search(r"ended after step 60: held_out_loss \S+, accuracy (\S+)", done.stdout)
    assert ended is not None and float(ended[1]) > 0.25  # a guess: 0.04
    rows = sqlite3.connect(database).execute("SELECT step, value FROM metrics WHERE name = 'accuracy' ORDER BY step")
    assert [(step, round(value, 4)) for step, value in rows.fetchall()][-1] == (60, float(ended[1]))


def test_own_strategy_equals_one_process():
    from examples import own_strategy

    (expected,) = run_ranks(own_strategy.train, 1, 1)
    for found in run_ranks(own_strategy.train, 2, 2):
        assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


def test_own_tracker(tmp_path):
    done = run([], cwd=tmp_path, script=EXAMPLES / "own_tracker.py")
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["10", "20", "30", "40", "50"]


def _notebook() -> dict[str, Any]:
    return json.loads((EXAMPLES / "notebook.ipynb").read_text())


def test_the_notebook_holds_no_outputs():
    cells = _notebook()["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))


@pytest.mark.skipif(not has_nbclient, reason="nbclient is not installed: pip install nbclient ipykernel")
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.from_dict(_notebook())
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert "largest difference" in str(notebook["cells"][-1]["outputs"])


def test_the_readme_lists_every_example():
    listed = set(re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text()))
    there = {path.name for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__")}
    assert listed == there


def test_each_docstring_says_how_to_run_it():
    for path in EXAMPLES.glob("*.py"):
        assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(Path(path).read_text())) or "")
