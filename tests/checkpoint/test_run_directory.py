"""A run directory is one run's: names by the clock, the lock, and who may take it over."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import trainkit
from trainkit.checkpoint import run_directory
from trainkit.checkpoint.run_directory import LOCK_FILE, RunLock, make
from trainkit.errors import ConfigError
from trainkit.testing import run_ranks


def test_names_by_the_clock_are_never_shared(tmp_path):
    paths = [make(tmp_path / "%Y") for _ in range(3)]
    year = time.strftime("%Y")
    assert [path.name for path in paths] == [year, f"{year}-2", f"{year}-3"]
    assert make(tmp_path / "fixed") == make(tmp_path / "fixed")


def _claimed(directory):
    try:
        trainkit.Runtime(device="cpu", run_dir=directory, tracker=trainkit.Tracker())
    except ConfigError as error:
        return str(error)
    return "used"


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_lock_that_cannot_be_written_is_one_line_on_all_ranks(world_size, tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    lines = run_ranks(_claimed, world_size, tmp_path)
    assert lines == [f"run_dir={tmp_path}: cannot be locked: Is a directory; set another"] * world_size


def _hold(directory: Path, connection) -> None:
    RunLock(directory)
    connection.send(os.getpid())
    time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, theirs), daemon=True)
    process.start()
    assert ours.poll(60)
    yield process
    process.kill()
    process.join()


def test_a_directory_in_use_is_refused_unless_its_owner_is_dead(tmp_path, holder):
    with pytest.raises(ConfigError, match=rf"is being used by process {holder.pid} on {socket.gethostname()}"):
        RunLock(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    began = time.monotonic()
    RunLock(tmp_path).release()
    assert time.monotonic() - began < run_directory.HEARTBEAT_S


def test_a_second_runtime_is_refused_until_the_first_is_closed(tmp_path):
    first = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="close"):
        trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run")
    first.close()
    assert not (tmp_path / "run").exists(), "a run that came to nothing leaves no directory"
    trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=tmp_path / "run").close()


def _written_by(path: Path, **changed) -> dict[str, Any]:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": "1", "job": None, "beat": 1, **changed}
    path.write_text(json.dumps(owner))
    return owner


@pytest.mark.parametrize(
    "owner", [{"started": "1"}, {"pid": 2**22 + 1}, None], ids=["another's number", "gone", "cut short"]
)
def test_what_no_process_holds_is_taken_over(tmp_path, owner):
    if owner is None:
        (tmp_path / LOCK_FILE).write_text('{"host": "a')
    else:
        _written_by(tmp_path / LOCK_FILE, **owner)
    RunLock(tmp_path).release()
    assert not (tmp_path / LOCK_FILE).exists()


def test_another_host_is_watched_for_a_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(run_directory, "MAX_SILENCE_S", 0.4)
    path = tmp_path / LOCK_FILE
    owner = _written_by(path, host="elsewhere")
    said: list[str] = []
    RunLock(tmp_path, report=said.append).release()
    assert "was last used by process" in said[0]
    _written_by(path, host="elsewhere")

    def beat(text: str) -> None:
        path.write_text(json.dumps({**owner, "beat": 2}))

    with pytest.raises(ConfigError, match="elsewhere"):
        RunLock(tmp_path, report=beat)


def test_a_restart_of_the_same_job_does_not_wait_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    _written_by(tmp_path / LOCK_FILE, host="elsewhere", job="slurm 7")
    began = time.monotonic()
    RunLock(tmp_path).release()
    assert time.monotonic() - began < run_directory.HEARTBEAT_S


def _make_runtime(directory: str) -> str:
    try:
        runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), run_dir=directory, hang_timeout_s=None)
    except ConfigError as error:
        return str(error)
    runtime.close()
    return str(runtime.run_dir)


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_are_refused_alike(tmp_path, ranks):
    lock = RunLock(make(tmp_path / "run"))
    refused = run_ranks(_make_runtime, ranks, str(tmp_path / "run"))
    assert len(set(refused)) == 1
    assert f"is being used by process {os.getpid()}" in refused[0]
    lock.release()
    dated = run_ranks(_make_runtime, ranks, str(tmp_path / "%Y"))
    assert set(dated) == {str(tmp_path / time.strftime("%Y"))}
