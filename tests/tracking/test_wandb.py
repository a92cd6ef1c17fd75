import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import wandb

from tests.tracking.wandb_files import history, records
from trainkit.tracking import Run, WandB
from trainkit.tracking.command import as_typed


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    wandb.teardown()  # it reads the environment once a process


def tell(tracker, directory, steps, status="finished", resumed_step=None):
    tracker.start(Run(directory=directory, name="a-run", config={"seed": 3}, resumed_step=resumed_step))
    for step in steps:
        tracker.log(step, {"loss": 1.0 / step})
        if step % 5 == 0:
            tracker.evaluation(step, {"held_out_loss": 2.0 / step})
    if status:
        tracker.finish(status)


def test_without_a_key_the_history_is_kept_offline(tmp_path, capfd):
    tracker = WandB(project="a-project", tags=("quick",), group="a-sweep")
    tell(tracker, tmp_path, range(1, 11), status=None)
    tracker.image(10, "grid", np.zeros((8, 8, 3), np.uint8))
    tracker.text(10, "sentences", "the [cat] <sat>")
    tracker.table(10, "words", ["word", "share"], [["cat", 0.5]])
    tracker.finish("finished")

    (segment,) = (tmp_path / "wandb").glob("offline-run-*")
    command = as_typed(["wandb", "sync", str(segment)])
    assert capfd.readouterr() == ("", f"trainkit: Weights & Biases was offline; to upload: {command}\n")
    rows = history(tmp_path)
    assert list(rows) == list(range(1, 11))
    assert rows[4]["loss"] == 0.25
    assert rows[10]["held_out_loss"] == 0.2
    kinds = {name: rows[10][f"{name}._type"] for name in ("grid", "sentences", "words")}
    assert kinds == {"grid": "image-file", "sentences": "html-file", "words": "table-file"}
    (run,) = [record["run"] for record in records(segment) if record["type"] == "run"]
    assert (run["project"], run["display_name"], run["tags"]) == ("a-project", "a-run", ["quick"])
    assert run["run_group"] == "a-sweep"
    assert run["config"]["update"]["seed"] == 3


def test_a_resume_keeps_the_run_and_logs_no_step_twice(tmp_path, capfd):
    first = WandB()
    tell(first, tmp_path, range(1, 13), status="interrupted")
    state = json.loads(json.dumps(first.state_dict()))

    second = WandB()
    second.load_state_dict(state)
    tell(second, tmp_path, range(9, 21), resumed_step=8)

    assert second.state_dict() == state
    assert list(history(tmp_path)) == list(range(1, 21))
    segments = sorted((tmp_path / "wandb").glob(f"offline-run-*-{state['id']}*"))
    assert len(segments) == 2
    assert capfd.readouterr().err.splitlines()[-1].endswith(f"wandb sync {segments[0]} {segments[1]}")


def test_a_kill_and_a_resume_log_no_step_twice(tmp_path):
    script = """
        import os, pathlib, signal, sys, time
        from trainkit.tracking import Run, WandB
        tracker = WandB()
        tracker.start(Run(directory=pathlib.Path(sys.argv[1]), name="run"))
        print(tracker.state_dict()["id"], flush=True)
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
    tracker.load_state_dict({"id": process.stdout.strip()})
    tell(tracker, tmp_path, range(9, 21), resumed_step=8)
    rows = history(tmp_path)
    assert list(rows) == list(range(1, 21))  # 12 was not sent when the kill came, and is told by the second process
    assert all({"loss", "held_out_loss"} <= rows[step].keys() for step in range(1, 12))


def test_a_fresh_run_in_a_used_directory_is_another_run(tmp_path):
    first, second = WandB(), WandB()
    tell(first, tmp_path, range(1, 4))
    second.load_state_dict(first.state_dict())
    tell(second, tmp_path, range(1, 4))
    assert second.state_dict() != first.state_dict()


def test_a_fork_gets_a_run_of_its_own_that_names_its_parent(tmp_path):
    first = WandB()
    tell(first, tmp_path, range(1, 9), status="interrupted")
    fork = WandB()
    fork.load_state_dict(first.state_dict())
    (tmp_path / "fork").mkdir()
    tell(fork, tmp_path / "fork", range(5, 7), resumed_step=4)
    parent = first.state_dict()["id"]
    assert fork.state_dict()["id"] != parent
    assert list(history(tmp_path)) == list(range(1, 9))
    assert list(history(tmp_path / "fork")) == [5, 6]
    (segment,) = (tmp_path / "fork" / "wandb").glob("offline-run-*")
    (run,) = [record["run"] for record in records(segment) if record["type"] == "run"]
    assert run["notes"] == f"continues from step 4 of the run {parent}"


def _killed_with_its_service(script, directory):
    """What it printed; it and W&B's service die in the same moment, as a job without memory does."""
    command = [sys.executable, "-c", textwrap.dedent(script), str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGKILL
    return output


def test_what_no_file_held_when_all_was_killed_is_sent_again(tmp_path):
    script = """
        import json, os, pathlib, signal, sys
        import numpy as np
        from trainkit.tracking import Run, WandB
        tracker = WandB()
        tracker.start(Run(directory=pathlib.Path(sys.argv[1]), name="run"))
        children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        service = [int(pid) for pid in children]
        assert service, "there is one to kill"
        for pid in service:
            os.kill(pid, signal.SIGSTOP)  # nothing more is written: the flush interval as its worst case
        for step in range(1, 13):
            tracker.log(step, {"loss": 1.0 / step, "nan": float("nan")})
        tracker.image(12, "grid", np.zeros((8, 8, 3), np.uint8))
        tracker.text(12, "words", "a <b>")
        tracker.table(12, "table", ["a"], [[1]])
        print(json.dumps(tracker.state_dict()), flush=True)
        tracker.log(13, {"loss": 0.0})
        for pid in [*service, os.getpid()]:
            os.kill(pid, signal.SIGKILL)
    """
    state = json.loads(_killed_with_its_service(script, tmp_path))
    assert [row["step"] for row in state["rows"]] == list(range(1, 13))
    tracker = WandB()
    tracker.load_state_dict(state)
    tell(tracker, tmp_path, range(13, 21), resumed_step=12)
    rows = history(tmp_path)
    assert list(rows) == list(range(1, 21))
    assert [rows[step]["loss"] for step in rows] == [1.0 / step for step in range(1, 21)]
    assert {f"{name}._type" for name in ("grid", "words", "table")} <= rows[12].keys()
    assert tracker.state_dict()["rows"] == [], "the file holds all of them"


@pytest.mark.parametrize("dies_before", [6, None])
def test_a_service_that_dies_is_restarted_and_loses_no_row(dies_before, tmp_path):
    """In the midst of training, or between the last row and the end. In a process of its own: W&B has one service."""
    script = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from trainkit.tracking import Run, WandB

        def kill_the_service():
            (pid,) = map(int, Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split())
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

        tracker = WandB()
        tracker.start(Run(directory=Path(sys.argv[1]), name="a-run"))
        for step in range(1, 13):
            if step == {dies_before}:
                kill_the_service()
            tracker.log(step, {{"loss": 1.0 / step}})
            if step == 5:
                tracker.image(step, "grid", np.zeros((8, 8, 3), np.uint8))
        if {dies_before} is None:
            tracker.log(13, {{}})
            kill_the_service()
        tracker.finish("finished")
    """)
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stderr.count("the process of Weights & Biases ended") == 1, ended.stderr
    assert "Traceback" not in ended.stderr and "has not written" not in ended.stderr
    rows = history(tmp_path)
    assert [step for step in rows if step < 13] == list(range(1, 13))
    assert all(rows[step]["loss"] == pytest.approx(1.0 / step) for step in range(1, 13))
    assert rows[5]["grid._type"] == "image-file"


@pytest.mark.parametrize(
    ("number", "delay_s"),
    [
        ("SIGTERM", 0.0),
        ("SIGTERM", 0.003),
        ("SIGTERM", 0.3),
        ("SIGUSR1", 0.0),
    ],
)
def test_a_signal_to_the_whole_job_while_it_ends(number, delay_s, tmp_path):
    """As Slurm sends it: the service gets it too, before or in the last call, or after it."""
    script = textwrap.dedent(f"""
        import os, signal, sys, threading, time
        from pathlib import Path
        from trainkit.tracking import Run, WandB
        tracker = WandB()
        tracker.start(Run(directory=Path(sys.argv[1]), name="a-run"))
        (pid,) = map(int, Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split())
        for step in range(1, 13):
            tracker.log(step, {{"loss": 1.0 / step}})
        timer = threading.Timer({delay_s}, os.kill, (pid, signal.{number}))
        timer.start()
        tracker.finish("interrupted")
        timer.join()
    """)
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Traceback" not in ended.stderr and "has not written" not in ended.stderr, ended.stderr
    assert number == "SIGTERM" or "started again" not in ended.stderr, "it can be kept from the service"
    assert list(history(tmp_path)) == list(range(1, 13))
    last = sorted((tmp_path / "wandb").glob("offline-run-*"))[-1]
    assert [record["exit"]["exit_code"] for record in records(last) if record["type"] == "exit"] == [1]


def test_what_comes_late_goes_into_the_next_row(tmp_path):
    """After an interruption, an evaluation of the last step that was told."""
    first = WandB()
    tell(first, tmp_path, range(1, 5), status="interrupted")
    second = WandB()
    second.load_state_dict(first.state_dict())
    second.start(Run(directory=tmp_path, name="run", resumed_step=4))
    second.evaluation(4, {"held_out_loss": 7.0})
    second.log(5, {"loss": 0.5})
    second.finish("finished")
    rows = history(tmp_path)
    assert list(rows) == [1, 2, 3, 4, 5]
    assert (rows[5]["loss"], rows[5]["held_out_loss"]) == (0.5, 7.0)


def test_a_loop_of_ones_own_that_never_closes_loses_nothing(tmp_path):
    script = """
        import sys
        import numpy
        import trainkit
        from trainkit.tracking import Trackers, WandB
        runtime = trainkit.Runtime(device="cpu", run_dir=sys.argv[1], log_every=1, tracker=Trackers(wandb=WandB()))
        for step in range(1, 6):
            runtime.log(step, loss=1.0 / step)
        runtime.log_image(5, grid=numpy.zeros((8, 8)))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rows = history(tmp_path)
    assert list(rows) == [1, 2, 3, 4, 5] and "grid._type" in rows[5]
    assert "wandb sync" in process.stderr and "failed" not in process.stderr


def test_a_refused_key_is_reported_and_the_run_kept_offline(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    tell(WandB(), tmp_path, range(1, 4))
    assert list(history(tmp_path)) == [1, 2, 3]
    error = capfd.readouterr().err
    assert "logged offline" in error
    assert "WANDB_MODE=offline" in error


def test_disabled_by_the_environment(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tell(WandB(), tmp_path, range(1, 4))
    assert list((tmp_path / "wandb").glob("*run-*")) == []
    assert capfd.readouterr() == ("", "")
