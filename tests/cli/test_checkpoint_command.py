"""`trainkit checkpoint`: lists, shows, verifies, exports and compares."""

import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trainkit
from trainkit.cli.main import main
from trainkit.testing import run_ranks


def _save(run_dir):
    runtime = trainkit.Runtime(strategy="fsdp", device="cpu", tracker=trainkit.Tracker())
    torch.manual_seed(0)
    networks = {"G": torch.nn.Linear(3, 4), "D": torch.nn.Linear(4, 1)}
    optimizers = {name: torch.optim.AdamW(network.parameters(), lr=0.1) for name, network in networks.items()}
    engines: dict[str, Any] = {
        n: runtime.setup(network, optimizers[n], name=n, ema_decay=0.5) for n, network in networks.items()
    }
    for batch in runtime.batches(torch.randn(40, 3), batch_size=8, num_steps=4):
        engines["D"].backward(engines["D"](engines["G"](batch.data).detach()).mean())
        engines["D"].step()
        with engines["D"].frozen():
            engines["G"].backward(engines["D"](engines["G"](batch.data)).mean())
        engines["G"].step()
        step = batch.position // 8 + 1
        path = run_dir / "checkpoints" / f"step_{step:08d}"
        runtime.save(path, **engines, step=step, metrics={"held_out_loss": 1.0 / step})
    return {f"{n}.{part}": engine.state_dict()[part] for n, engine in engines.items() for part in ("module", "average")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of two ranks with checkpoints at steps 1 to 4, and the tensors at its end."""
    run_dir = tmp_path_factory.mktemp("command") / "run"
    return run_dir, run_ranks(_save, 2, run_dir)[0]


def _run(capsys, *arguments):
    code = main(["checkpoint", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_ls(saved, capsys):
    code, out, _ = _run(capsys, "ls", saved[0])
    assert code == 0
    for step in range(1, 5):
        (line,) = [line for line in out.splitlines() if f"step_{step:08d}" in line]
        assert f" {8 * step} " in line and f"{1.0 / step:.6g}" in line and "kB" in line


def test_show(saved, capsys):
    code, out, _ = _run(capsys, "show", saved[0], "--tensors")
    assert code == 0
    assert "step_00000004" in out and "in 2 files" in out and "step 4, 32 samples" in out
    assert "G.module: 2 tensors, 16 elements (F32)" in out
    assert "G.optimizer: 6 tensors, 34 elements (F32)" in out
    assert "D.optimizer/weight/exp_avg F32 [1, 4]" in out


def test_verify(saved, capsys, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(saved[0], run_dir)
    assert _run(capsys, "verify", run_dir)[0] == 0
    file = run_dir / "checkpoints" / "step_00000002" / "rank_00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, out, _ = _run(capsys, "verify", run_dir)
    assert code == 1
    assert out.count(": whole") == 3 and f"{file} is damaged" in out


@pytest.mark.parametrize("part", ["module", "average"])
def test_consolidate(saved, capsys, tmp_path, part):
    run_dir, expected = saved
    both, one = tmp_path / "both.safetensors", tmp_path / "sub" / "G.safetensors"
    assert _run(capsys, "consolidate", run_dir, "--output", both, "--part", part)[0] == 0
    assert _run(capsys, "consolidate", run_dir, "--output", one, "--engine", "G", "--part", part)[0] == 0
    G, D = expected[f"G.{part}"], expected[f"D.{part}"]
    named = {**{f"G.{k}": v for k, v in G.items()}, **{f"D.{k}": v for k, v in D.items()}}
    for path, tensors in ((both, named), (one, G)):
        found = load_file(path)
        assert found.keys() == tensors.keys()
        assert all(found[name].shape == t.shape and torch.equal(found[name], t) for name, t in tensors.items())
    code, _, err = _run(capsys, "consolidate", run_dir, "--output", one)
    assert code == 2 and "exists already" in err
    code, _, err = _run(capsys, "consolidate", run_dir, "--output", tmp_path / "x", "--engine", "g")
    assert code == 2 and "holds G, D" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.safetensors", "sub"]


def test_diff(saved, capsys):
    steps = [saved[0] / "checkpoints" / f"step_{step:08d}" for step in (3, 4)]
    code, out, _ = _run(capsys, "diff", steps[0], steps[0])
    assert code == 0 and "they are equal" in out
    code, out, _ = _run(capsys, "diff", *steps)
    assert code == 1 and "position: 24 and 32" in out and "G.module/weight: max|a-b|" in out


def test_what_is_no_checkpoint(capsys, tmp_path):
    for command in (["ls"], ["show"], ["verify"], ["consolidate", "--output", tmp_path / "x"]):
        code, _, err = _run(capsys, command[0], tmp_path / "nowhere", *command[1:])
        assert code == 2 and "nowhere: no such directory" in err
        code, _, err = _run(capsys, command[0], tmp_path, *command[1:])
        assert code == 2 and "holds no" in err


def test_a_damaged_newest_one_is_passed_over_aloud(saved, capsys, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(saved[0], run_dir)
    *_, before, newest = sorted((run_dir / "checkpoints").glob("step_*"))
    (newest / "rank_00000.safetensors").write_bytes(b"")
    code, out, err = _run(capsys, "show", run_dir)
    assert code == 0 and before.name in out
    assert f"passed over: {newest / 'rank_00000.safetensors'} has 0 bytes instead of " in err and err.count("\n") == 1
    for path in run_dir.glob("checkpoints/*/rank_00000.safetensors"):
        path.write_bytes(b"")
    code, _, err = _run(capsys, "show", run_dir)
    assert code == 2 and f"no complete trainkit checkpoint; of the newest, {newest}" in err and err.count("\n") == 1
