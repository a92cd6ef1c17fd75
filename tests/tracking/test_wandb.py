import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import wandb

from trainkit.tracking import Run, WandB


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    wandb.teardown()  # it reads the environment once a process


def records(segment):
    """What W&B's own reader finds in an offline run's directory."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [json.loads(line) for line in output.splitlines()]


def history(directory):
    """{step: row} over all segments of a run; fails where a step is told twice."""
    rows = {}
    for segment in sorted((directory / "wandb").glob("offline-run-*")):
        for record in records(segment):
            if record["type"] == "history":
                row = record["history"]["item"]
                assert row["_step"] not in rows, "told twice"
                rows[row["_step"]] = row
    return rows


def tell(tracker, directory, steps, status="finished", resumed_step=None):
    tracker.start(Run(directory=directory, name="a-run", config={"seed": 3}, resumed_step=resumed_step))
    for step in steps:
        tracker.log(step, {"loss": 1.0 / step})
        if step % 5 == 0:
            tracker.evaluation(step, {"held_out_loss": 2.0 / step})
    if status:
        tracker.finish(status)


def test_without_a_key_the_history_is_kept_offline(tmp_path, capfd):
    tracker = WandB(project="a-project", tags=("quick",))
    tell(tracker, tmp_path, range(1, 11), status=None)
    tracker.image(10, "grid", np.zeros((8, 8, 3), np.uint8))
    tracker.text(10, "sentences", "the [cat] <sat>")
    tracker.table(10, "words", ["word", "share"], [["cat", 0.5]])
    tracker.finish("finished")

    (segment,) = (tmp_path / "wandb").glob("offline-run-*")
    assert capfd.readouterr() == (f"Weights & Biases was offline; to upload: wandb sync {segment}\n", "")
    rows = history(tmp_path)
    assert list(rows) == list(range(1, 11))
    assert rows[4]["loss"] == 0.25
    assert rows[10]["held_out_loss"] == 0.2
    kinds = {name: rows[10][f"{name}._type"] for name in ("grid", "sentences", "words")}
    assert kinds == {"grid": "image-file", "sentences": "html-file", "words": "table-file"}
    (run,) = [record["run"] for record in records(segment) if record["type"] == "run"]
    assert (run["project"], run["display_name"], run["tags"]) == ("a-project", "a-run", ["quick"])
    assert run["config"]["update"]["seed"] == 3


def test_a_resume_keeps_the_run_and_tells_no_step_twice(tmp_path, capfd):
    first = WandB()
    tell(first, tmp_path, range(1, 13), status="interrupted")
    state = json.loads(json.dumps(first.state()))

    second = WandB()
    second.load_state(state)
    tell(second, tmp_path, range(9, 21), resumed_step=8)

    assert second.state() == state
    assert list(history(tmp_path)) == list(range(1, 21))
    segments = sorted((tmp_path / "wandb").glob(f"offline-run-*-{state['id']}*"))
    assert len(segments) == 2
    assert capfd.readouterr().out.splitlines()[-1].endswith(f"wandb sync {segments[0]} {segments[1]}")


def test_a_kill_and_a_resume_tell_no_step_twice(tmp_path):
    script = """
        import os, pathlib, signal, sys, time
        from trainkit.tracking import Run, WandB
        tracker = WandB()
        tracker.start(Run(directory=pathlib.Path(sys.argv[1]), name="run"))
        print(tracker.state()["id"], flush=True)
        for step in range(1, 13):
            tracker.log(step, {"loss": 1.0 / step})
            tracker.evaluation(step, {"held_out_loss": 2.0 / step})
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr

    tracker = WandB()
    tracker.load_state({"id": process.stdout.strip()})
    tell(tracker, tmp_path, range(9, 21), resumed_step=8)
    rows = history(tmp_path)
    assert list(rows) == list(range(1, 21))  # 12 was not sent when the kill came, and is told by the second process
    assert all({"loss", "held_out_loss"} <= rows[step].keys() for step in range(1, 12))


def test_a_fresh_run_in_a_used_directory_is_another_run(tmp_path):
    first, second = WandB(), WandB()
    tell(first, tmp_path, range(1, 4))
    second.load_state(first.state())
    tell(second, tmp_path, range(1, 4))
    assert second.state() != first.state()


def test_a_checkpoint_of_another_directory_continues_after_its_step(tmp_path):
    tracker = WandB()
    tracker.load_state({"id": "abcd1234"})
    tell(tracker, tmp_path, range(3, 7), resumed_step=4)
    assert list(history(tmp_path)) == [5, 6]


def test_a_refused_key_is_reported_and_the_run_kept_offline(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    tell(WandB(), tmp_path, range(1, 4))
    assert list(history(tmp_path)) == [1, 2, 3]
    error = capfd.readouterr().err
    assert "kept offline" in error
    assert "WANDB_MODE=offline" in error


def test_disabled_by_the_environment(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tell(WandB(), tmp_path, range(1, 4))
    assert list((tmp_path / "wandb").glob("*run-*")) == []
    assert capfd.readouterr() == ("", "")
