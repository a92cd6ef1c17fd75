"""A rank that is persistently slower than others is named once, with what it is slow in; an even run names nobody."""

import re

import pytest

from tests.jobs import ROOT, run
from trainkit.health import straggler
from trainkit.health.rank_status import RankStatus
from trainkit.health.straggler import Stragglers

OWN_LOOP = ROOT / "tests" / "faults" / "own_loop.py"


def _sentences(fault: str) -> list[tuple[str, str]]:
    job = run([fault], 4, script=OWN_LOOP)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("is done") == 4
    return sorted(re.findall(r"rank (\d) on \S+ is slow in (\w+) ", job.stdout))


def test_slow_ranks_are_named_once():
    assert _sentences("slow") == [("1", "data"), ("2", "compute")]


def test_an_even_run_names_nobody():
    assert _sentences("none") == []


# -- pure --------------------------------------------------------------------------------------------------------------


def _statuses(steps: int, data_ms: list[float], compute_ms: list[float]) -> dict[int, RankStatus]:
    return {
        rank: RankStatus(
            rank=rank,
            host="h",
            pid=1,
            time=0.0,
            steps=steps,
            num_computed=steps,
            data_s=steps * data / 1e3,
            compute_s=steps * compute / 1e3,
        )
        for rank, (data, compute) in enumerate(zip(data_ms, compute_ms, strict=True))
    }


def _told(data_ms: list[float], compute_ms: list[float], num_windows: int = 10) -> list[str]:
    search = Stragglers()
    search.window(_statuses(50, data_ms, compute_ms))
    return [text for i in range(num_windows) for text in search.window(_statuses(50 * (i + 2), data_ms, compute_ms))]


@pytest.mark.parametrize(
    ("data_ms", "compute_ms", "named"),
    [
        ([1, 1, 1, 1], [10, 10, 10, 10], []),
        ([1, 1, 1, 1], [10, 11.9, 10, 10], []),  # less than a fifth
        ([1, 1, 1, 1.9], [10, 10, 10, 10], []),  # less than a millisecond
        ([1, 1, 1, 1], [10, 10, 12.1, 10], ["rank 2 on h is slow in compute"]),
        ([1, 2.1, 1, 1], [10, 10, 10, 10], ["rank 1 on h is slow in data"]),
        ([30, 9], [1, 1], ["rank 0 on h is slow in data"]),
    ],
)
def test_who_is_slow(data_ms, compute_ms, named):
    told = _told(data_ms, compute_ms)
    assert [text.partition(" (")[0] for text in told] == named
    assert _told(data_ms, compute_ms, num_windows=straggler.NUM_WINDOWS - 1) == []


def test_slow_now_and_then_is_not_persistent():
    search, total, told = Stragglers(), 0.0, []
    for i in range(20):
        total += 50 * (30 if i % 3 else 10)
        signs = _statuses(50 * (i + 1), [1, 1, 1], [10, 10, total / (50 * (i + 1))])
        told += search.window(signs)
    assert told == []


def test_a_window_is_the_longer_of_steps_and_seconds():
    now = [0.0]
    search = Stragglers(clock=lambda: now[0])
    assert not search.is_due(1000)
    now[0] = straggler.WINDOW_S
    assert not search.is_due(straggler.WINDOW_STEPS - 1)
    assert search.is_due(straggler.WINDOW_STEPS)
    search.window(_statuses(straggler.WINDOW_STEPS, [1], [1]))
    now[0] += straggler.WINDOW_S
    assert not search.is_due(2 * straggler.WINDOW_STEPS - 1)
    assert search.is_due(2 * straggler.WINDOW_STEPS)
