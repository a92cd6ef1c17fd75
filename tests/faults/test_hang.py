"""A rank that does not arrive: the job ends with its name and its line, and leaves no process."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import trainkit
from benchmarks.overhead_distributed import Collectives
from tests.faults import faulty
from tests.jobs import ROOT, TOY, run, torchrun
from tests.present import present
from trainkit.distributed.cluster import Cluster
from trainkit.errors import ConfigError
from trainkit.health import hang, location
from trainkit.health.diagnosis import diagnose
from trainkit.health.hang import Watchdog
from trainkit.health.hang_report import EXIT_CODE
from trainkit.health.location import location_of
from trainkit.health.rank_status import RankStatus
from trainkit.testing import run_ranks

HANG_AFTER_S = 4.0
KILLED_AFTER_S = 35.0  # torchrun's SIGKILL comes 30 s after its SIGTERM
START_S = 60.0  # of a job on a busy machine
OWN_LOOP = ROOT / "tests" / "faults" / "own_loop.py"


def _hang(run_dir: Path, *overrides: str, ranks: int = 4, start=run) -> str:
    """The report of a job that must hang and end."""
    target = "recipe._target_=tests.faults.faulty.Faulty"
    settings = [target, "recipe.num_steps=200", f"hang_timeout_s={HANG_AFTER_S}", f"run_dir={run_dir}", *overrides]
    began = time.monotonic()
    job = start([*TOY, *settings], ranks, timeout_s=START_S + HANG_AFTER_S + 2 * KILLED_AFTER_S)
    assert job.returncode != 0
    assert time.monotonic() - began < START_S + HANG_AFTER_S + KILLED_AFTER_S
    assert faulty.processes_left(run_dir) == []
    report = (run_dir / "hang" / "report.txt").read_text()
    assert job.stderr.count(report) == 1, "one rank says it once"
    return report


def _line(text: str, path: Path = Path(faulty.__file__)) -> str:
    """`tests/faults/faulty.py:52`, of the only line with `text`."""
    (number,) = [i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line]
    return f"{path.relative_to(ROOT)}:{number} "


def _stacks(run_dir: Path) -> dict[int, str]:
    return {int(path.stem[5:]): path.read_text() for path in (run_dir / "hang").glob("rank_*.txt")}


def test_a_stopped_rank_is_named_with_its_line(tmp_path):
    report = _hang(tmp_path / "run", "recipe.fault=stops", start=torchrun)
    assert re.search(r"Ranks 0, 1 and 3 waited at step 9, in \w+ at tests/user/toy.py:\d+ \(train_step\)", report)
    where = _line("os.kill(os.getpid(), signal.SIGSTOP)")
    assert re.search(rf"Rank 2 \(process \d+ on \S+\) did not arrive: it was stopped, at {where}", report)
    stacks = _stacks(tmp_path / "run")
    assert sorted(stacks) == [0, 1, 2, 3]
    for rank in (0, 1, 3):
        assert "last collective: gloo:all_reduce of " in stacks[rank] and "MainThread" in stacks[rank]


def test_a_rank_in_another_collective_is_named_with_its_line(tmp_path):
    report = _hang(tmp_path / "run", "recipe.fault=other_group", start=torchrun)
    assert re.search(r"Ranks 0, 1 and 3 waited at step 9, in \w+ at tests/user/toy.py:\d+ \(train_step\)", report)
    where = _line("dist.all_reduce(torch.ones(3), group=self.group)")
    assert re.search(rf"Rank 2 \(.*\) did not arrive: it waits elsewhere at step 9, in all_reduce at {where}", report)
    assert sorted(_stacks(tmp_path / "run")) == [0, 1, 2, 3]


def test_a_rank_that_waits_for_its_data_is_named_with_its_line(tmp_path):
    report = _hang(tmp_path / "run", "data.train._target_=tests.faults.faulty.SleepyPoints")
    where = _line("time.sleep(3600)  # the disk is gone")
    assert re.search(rf"Rank 2 \(.*\) did not arrive: it is at step \d+, at {where}", report)
    assert re.search(r"Ranks 0, 1 and 3 waited at step \d+, in \w+ at tests/user/toy.py:\d+ ", report)


def test_two_ranks_need_no_majority(tmp_path):
    report = _hang(tmp_path / "run", "recipe.fault=sleeps", "strategy=fsdp", ranks=2)
    where = _line("time.sleep(3600)  # it computes something")
    assert re.search(rf"Rank 1 \(.*\) did not arrive: it is at step 9, at {where}", report)
    assert "Rank 0 waited at step 9, in " in report


def test_the_same_group_ends_one_way_or_the_other(tmp_path):
    """gloo may notice that sizes differ, hang, or neither; the job must end and say why."""
    settings = ["recipe._target_=tests.faults.faulty.Faulty", "recipe.fault=same_group", "recipe.num_steps=200"]
    job = run([*TOY, *settings, f"hang_timeout_s={HANG_AFTER_S}", f"run_dir={tmp_path / 'run'}"], 4)
    assert job.returncode != 0
    assert faulty.processes_left(tmp_path / "run") == []
    assert "Rank 2" in job.stderr or "gloo" in job.stderr


def test_a_rank_that_left_its_loop_is_named(tmp_path):
    job = run(["leaves", tmp_path / "run"], 2, script=OWN_LOOP)
    assert job.returncode != 0
    where = _line("time.sleep(3600)  # it has something else to do", OWN_LOOP)
    assert re.search(rf"Rank 1 \(.*\) did not arrive: it has left its loop .* after step 9, at {where}", job.stderr)
    assert sorted(_stacks(tmp_path / "run")) == [0, 1]


def test_one_process_alone_says_where_it_stands(tmp_path):
    job = run(["sleeps"], script=OWN_LOOP)
    assert job.returncode == EXIT_CODE
    where = _line("time.sleep(3600)  # one process alone", OWN_LOOP)
    assert f"Rank 0 was at step 9, at {where}" in job.stderr
    assert 'File "' in job.stderr and "thread MainThread" in job.stderr  # no directory: the stacks come here


# -- pure: what is known of ranks -> who is named ----------------------------------------------------------------------


def _status(rank: int, line: str, *, waits: bool, beats: int = 5, **others) -> RankStatus:
    known = {"step": beats, "is_training": True, **others}
    return RankStatus(rank=rank, host="h", pid=100 + rank, time=0.0, line=line, waits=waits, beats=beats, **known)


def _named(statuses: list[RankStatus], world_size: int, last_seen: Sequence[RankStatus] = ()) -> list[int]:
    answers = {status.rank: status for status in statuses}
    text = diagnose(answers, answers | {status.rank: status for status in last_seen}, world_size, now=9.0)
    return [int(rank) for rank in re.findall(r"Rank (\d+) [^.]*did not arrive", text)]


def test_who_did_not_arrive():
    a, b = "a.py:1 (f)", "b.py:2 (g)"
    assert _named([_status(r, a, waits=True) for r in (0, 1, 3)], 4) == [2]
    assert _named([_status(0, a, waits=True), _status(1, b, waits=False)], 2) == [1]
    # The many did not arrive where one waits.
    assert _named([_status(0, a, waits=True), *(_status(r, b, waits=False) for r in (1, 2, 3))], 4) == [1, 2, 3]
    assert _named([*(_status(r, a, waits=True) for r in (0, 2, 3)), _status(1, b, waits=True)], 4) == [1]
    assert _named([*(_status(r, a, waits=True) for r in (0, 2, 3)), _status(1, a, waits=True, beats=4)], 4) == [1]
    # No majority, and nobody who only waits: both are told, and none is accused.
    assert _named([_status(0, a, waits=True), _status(1, b, waits=True)], 2) == []
    assert _named([_status(r, a, waits=True) for r in range(4)], 4) == []
    assert _named([_status(r, a, waits=False) for r in range(4)], 4) == []
    left = _status(1, a, waits=False, has_left=True)
    answers = {0: _status(0, a, waits=True)}
    assert "Rank 1 (process 101 on h) did not arrive: it closed its runtime after step 5." in diagnose(
        answers, {1: left}, 2, now=9.0
    )
    assert "Rank 1 did not arrive: it has published no status" in diagnose(answers, {}, 2, now=9.0)


def test_ranks_are_listed_in_short():
    answers = {r: _status(r, "a.py:1 (f)", waits=True) for r in (0, 1, 2, 3, 5, 7)}
    assert diagnose(answers, {}, 9, now=0.0).startswith("Ranks 0 to 3, 5 and 7 waited at step 5, at a.py:1 (f).")


def test_the_line_is_the_users():
    event = threading.Event()
    waiting = threading.Thread(target=lambda: event.wait(), daemon=True)
    waiting.start()
    there = location_of(present(waiting.ident))
    here = str(Path(__file__).relative_to(ROOT))
    assert there.line.startswith(f"{here}:") and there.line.endswith("(<lambda>)")
    assert (there.function, there.waits, there.is_at_prompt) == ("", False, False)
    assert location_of(present(waiting.ident)).trace == there.trace, "it has not moved"
    event.set()


# -- pure: limits ------------------------------------------------------------------------------------------------------


def _watchdog(hang_timeout_s="auto") -> Watchdog:
    return Watchdog(Cluster(), torch.device("cpu"), hang_timeout_s=hang_timeout_s)


def test_modules_that_wait_and_that_start_a_run_are_there():
    assert [path for path in (*location._WAITING, *location._OUTER) if not Path(path).exists()] == []


def test_the_limit_is_learnt_by_activity():
    watchdog = _watchdog()
    assert watchdog.limit_s == 1800
    batches = watchdog.watched(iter(range(30)), 0)
    for _ in range(20):
        next(batches)
        assert watchdog.limit_s == 1800, "too few steps say nothing"
    next(batches)
    assert (watchdog.limit_s, watchdog.step) == (60, 21)
    watchdog._beat_at -= 20
    next(batches)
    assert watchdog.limit_s == pytest.approx(200, abs=5)
    for expected in (1800, 500):
        with watchdog.during("evaluation"):
            assert watchdog.limit_s == pytest.approx(expected, abs=5)
            watchdog._beat_at -= 50
        assert watchdog.limit_s == pytest.approx(200, abs=5)
    watchdog.end()
    assert _watchdog(7.5).limit_s == 7.5


def test_nothing_to_save_takes_no_time_from_the_first_save(tmp_path):
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    runtime.finish_saving()
    with runtime._watchdog.during("saving"):
        assert runtime._watchdog.limit_s == 1800
    runtime.save(tmp_path / "saved", value=1)
    with runtime._watchdog.during("saving"):
        assert runtime._watchdog.limit_s < 1800, "now it is known"


def test_a_rank_that_waits_for_the_device_waits():
    """In the calls of `tolist` and `item` by which the guard and the means read what a GPU has computed."""
    for module in ("health/guard.py", "tracking/means.py"):
        path = str(Path(trainkit.__file__).parent / module)
        assert location._waits([location._StackFrame(path, 1, "read")], location._StackFrame("train.py", 1, "main"))
    path = str(Path(trainkit.__file__).parent / "engine" / "backward.py")
    assert location._function([location._StackFrame(path, 1, "run_backward")]) == "backward"


def test_a_wait_for_data_has_a_limit_of_its_own():
    watchdog, limits = _watchdog(), []

    def fetch():
        for number in range(25):
            limits.append(watchdog.limit_s)
            if number == 22:
                watchdog._beat_at -= 90
            yield number

    for _ in watchdog.watched(fetch(), 0):
        pass
    assert limits == [1800.0] * 21 + [600.0] * 2 + [pytest.approx(900, abs=5)] * 2
    assert watchdog.limit_s == 60, "a step is as long as before"
    watchdog.end()


def test_one_process_alone_is_warned_once_a_stall(monkeypatch, capfd):
    watchdog = _watchdog()
    watchdog._num_done["step"], watchdog._waited_s = 30, 61.0
    assert [watchdog._alarm() for _ in range(3)] == [""] * 3
    assert capfd.readouterr().err.count("trainkit: no progress for 61 s") == 1
    watchdog.beat()
    assert watchdog._alarm() == ""
    assert capfd.readouterr().err.count("to end it instead, set hang_timeout_s=SECONDS") == 1
    told = _watchdog(60.0)
    told._waited_s = 61.0
    assert "hang_timeout_s" in told._alarm(), "a limit that was given is kept"


class _Peer:
    """A store of two ranks, of which the other has told this."""

    def __init__(self, status: RankStatus, is_awake: bool) -> None:
        self.status, self.is_awake, self.alarm = status, is_awake, ""

    def exchange(self, mine: RankStatus) -> str:
        return self.alarm

    def statuses(self) -> dict[int, RankStatus]:
        if self.is_awake:
            self.status = replace(self.status, time=self.status.time + 1)
        return {1: self.status}

    def raise_alarm(self, text: str) -> None:
        self.alarm = text


@pytest.mark.parametrize(
    ("peer", "is_awake", "hang_timeout_s", "is_alarmed"),
    [
        ({"waits": True}, True, "auto", True),
        ({"waits": False, "moves": True}, True, "auto", False),  # it computes something for itself
        ({"waits": False, "is_fetching": True}, True, "auto", False),  # its disk is slow
        ({"waits": False, "is_fetching": True}, False, "auto", True),
        ({"waits": False, "is_fetching": True}, True, 60.0, True),
        ({"waits": False, "moves": True}, False, "auto", True),  # it was stopped in the middle of that
        ({"waits": False, "moves": True}, True, 60.0, True),  # the user has said so
        ({"waits": False, "is_at_prompt": True}, True, 60.0, False),
    ],
)
def test_who_is_given_more_time(monkeypatch, peer, is_awake, hang_timeout_s, is_alarmed):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watchdog = Watchdog(Cluster(world_size=2), torch.device("cpu"), hang_timeout_s=hang_timeout_s)
    watchdog._num_done["step"] = 21
    told = _Peer(_status(1, "a.py:1 (f)", **peer), is_awake)
    monkeypatch.setattr(watchdog, "_store", told)
    for waited_s in range(62, 90, 2):
        watchdog._waited_s = now[0] = float(waited_s)
        watchdog._alarm()
    assert bool(told.alarm) == is_alarmed
    watchdog._waited_s = 1900.0
    watchdog._alarm()
    assert bool(told.alarm) or peer.get("is_at_prompt")


@pytest.mark.parametrize("hangs", [False, True])
def test_what_was_begun_is_finished_before_the_end(monkeypatch, tmp_path, hangs):
    done, never = [], threading.Event()
    monkeypatch.setattr(hang, "RESCUE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(os, "_exit", lambda code: done.append(code))

    class Told(trainkit.Tracker):
        def finish(self, status):
            done.append(status)
            never.wait(timeout=20 if hangs else 0)

    runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path, tracker=Told(), log_every=1)
    runtime.log(1, loss=1.0)
    began = time.monotonic()
    runtime._watchdog._end_job("no progress")
    assert done == ["failed", EXIT_CODE] and time.monotonic() - began < 10
    never.set()
    runtime.close()


def test_nothing_is_watched_between_loops_and_after_the_end():
    first, second = _watchdog(0.3), _watchdog(0.3)  # either would end this process
    for watchdog in (first, second):
        for _ in watchdog.watched(iter(range(3)), 0):
            pass
        time.sleep(1)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("trainkit-watchdog") == 1, "a process has one, whatever it makes"
    next(second.watched(iter(range(3))))  # given up at once
    time.sleep(1)
    second.end()
    assert "trainkit-watchdog" not in [thread.name for thread in threading.enumerate()]


def test_a_failure_of_its_own_is_said_once(monkeypatch):
    told: list[str] = []
    watchdog = Watchdog(Cluster(), torch.device("cpu"), hang_timeout_s=1.0, report=told.append)
    monkeypatch.setattr(watchdog, "_sample", lambda: 1 / 0)
    for _ in watchdog.watched(iter(range(40)), 0):
        time.sleep(0.02)
    watchdog.end()
    assert told == ["the hang watchdog failed and has stopped: ZeroDivisionError: division by zero"]


@pytest.mark.parametrize("hang_timeout_s", ["soon", 0, -1.0, float("nan")])
def test_what_is_no_limit_is_refused(hang_timeout_s):
    with pytest.raises(ConfigError, match=r"hang_timeout_s=.*: must be auto, a number of seconds above 0, or null"):
        trainkit.Runtime(device="cpu", hang_timeout_s=hang_timeout_s)


# -- what it costs -----------------------------------------------------------------------------------------------------


def _collectives(hang_timeout_s) -> dict[str, float]:
    earlier = threading.enumerate()  # the process may have run other tests
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), hang_timeout_s=hang_timeout_s)
    network = torch.nn.Linear(4, 1)
    engine = runtime.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    batches = runtime.batches(torch.ones(64, 4), batch_size=4, num_steps=30)
    with Collectives() as collectives:
        for batch in batches:
            engine.backward(engine(batch.data).mean())
            engine.step()
            time.sleep(0.05)  # several periods of the thread's in all
    has_thread = any(thread.name == "trainkit-watchdog" for thread in threading.enumerate() if thread not in earlier)
    runtime.close()
    return {**collectives.a_step(30), "has_thread": has_thread}


def test_no_collective_is_added():
    for off, on in zip(run_ranks(_collectives, 2, None), run_ranks(_collectives, 2, 2.0), strict=True):
        assert (off.pop("has_thread"), on.pop("has_thread")) == (False, True)
        assert off == on and off


OPEN_AT_EXIT = """
import gc, torch
from trainkit.distributed.cluster import Cluster
from trainkit.health.hang import Watchdog
batches = Watchdog(Cluster.from_environment(), torch.device("cpu")).watched([1, 2, 3], step={step})
next(batches)
gc.freeze()  # as the commands do
"""


@pytest.mark.parametrize("step", [0, None])
def test_an_iterator_that_is_open_at_exit_ends_silently(step):
    command = [sys.executable, "-c", OPEN_AT_EXIT.format(step=step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
