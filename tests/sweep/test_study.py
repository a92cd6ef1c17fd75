"""The study of a sweep: who has which trial, through drivers that are killed at any moment."""

import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import pytest

from tests.jobs import environment
from trainkit.errors import ConfigError
from trainkit.sweep import front
from trainkit.sweep.driver import evaluations, present
from trainkit.sweep.settings import Settings
from trainkit.sweep.storage import JOURNAL
from trainkit.sweep.study import SETTINGS_FILE, Study, begin, read, require_free
from trainkit.sweep.trial import Trial

SPACE = {"optimizer.lr": "log(1e-4,1e-1)", "recipe.batch_size": "4,8"}


def _take(study: Study) -> Trial:
    trial = study.take()
    assert trial is not None
    return trial


@contextmanager
def _opened(directory, driver="one", **options):
    settings = Settings(**{"space": SPACE, "trials": 9, **options})
    require_free(directory, settings)
    with present(directory, driver):
        study = begin(directory, settings, metrics=["loss"], storage=None, driver=driver)
        try:
            yield study
        finally:
            study.close()


def test_a_trial_has_one_state_after_another(tmp_path):
    with _opened(tmp_path) as study:
        taken = [study.take() for _ in range(4)]
        assert [trial.number for trial in taken] == [0, 1, 2, 3]
        assert {trial.record.driver for trial in taken} == {"one"}
        study.finish(taken[0], [0.5], seconds=2.0)
        study.prune(taken[1], seconds=1.0)
        study.fail(taken[2], "it broke", seconds=1.0)
        study.leave(taken[3], "waiting", seconds=1.5)
        assert [trial.state for trial in study.trials()] == ["finished", "pruned", "failed", "waiting"]
        again = study.take()
        assert (again.number, again.record.num_starts, again.record.seconds) == (3, 2, 1.5)
        assert front(study.trials(), study.signs)[0].number == 0 and study.trials()[2].record.error == "it broke"


def test_what_needs_too_much_memory_counts_as_the_worst(tmp_path):
    """Optuna's samplers ignore a failed trial, and know one as the worst that was pruned without a value."""
    with _opened(tmp_path) as study:
        study.fail(_take(study), "out of memory", seconds=1.0, by_its_values=True)
        study.fail(_take(study), "a fault of the code", seconds=1.0)
        first, second = study.trials()
        assert first.state == second.state == "failed"
        states = [found.state.name for found in study._study.get_trials()]
        assert states == ["PRUNED", "FAIL"]


def test_trials_of_a_driver_that_is_gone_are_taken_over(tmp_path):
    with _opened(tmp_path, "one") as study:
        lost = study.take()
        kept = study.take()
        study.finish(kept, [1.0], seconds=1.0)
        with _opened(tmp_path, "two") as other:
            assert other.take().number == 2, "one is alive, and has trial 0"
    with _opened(tmp_path, "three") as study:
        assert study.take().number == lost.number
        assert study.take().number == 2
        assert study.take().number == 3


def test_a_driver_killed_while_it_asks_loses_nothing(tmp_path):
    with _opened(tmp_path) as study:
        study._study.ask(study._distributions)  # and then it is killed
        assert study.trials()[0].state == "waiting"
        found = study.take()
        assert found.number == 0 and found.params == study.trials()[0].params


def test_a_torn_line_of_the_journal_is_left_out(tmp_path):
    with _opened(tmp_path) as study:
        study.finish(_take(study), [1.0], seconds=1.0)
        whole = (tmp_path / JOURNAL).read_bytes()
        with (tmp_path / JOURNAL).open("ab") as file:
            file.write(b'{"op_code": 6, "worker_id": "x", "tri')
        (tmp_path / f"{JOURNAL}.lock").touch()  # its writer was killed, and held the lock
        study.finish(_take(study), [2.0], seconds=1.0)
        assert (tmp_path / JOURNAL).read_bytes().startswith(whole)
    for line in (tmp_path / JOURNAL).read_text().splitlines():
        json.loads(line)
    assert [trial.values for trial in read(tmp_path).trials()] == [[1.0], [2.0]]


TAKING = """\
import sys
from pathlib import Path
from trainkit.sweep import front
from trainkit.sweep.driver import present
from trainkit.sweep.settings import Settings
from trainkit.sweep.study import begin

directory, name, storage = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
settings = Settings(space={"optimizer.lr": "log(1e-4,1e-1)"}, trials=40, sampler="random")
with present(directory, name):
    study = begin(directory, settings, metrics=["loss"], storage=storage, driver=name)
    while (trial := study.take()) is not None:
        study.report(trial.number, 1, trial.params["optimizer.lr"], of=1)
        study.finish(trial, [trial.params["optimizer.lr"]], seconds=0.0)
        print(trial.number)
"""


@pytest.mark.parametrize("storage", ["journal", "postgresql"])
def test_four_drivers_take_each_trial_once(tmp_path, storage, request):
    url = request.getfixturevalue("postgres") if storage == "postgresql" else ""
    require_free(tmp_path, Settings(space={"optimizer.lr": "log(1e-4,1e-1)"}, trials=40, sampler="random"))
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKING, str(tmp_path), f"driver{i}", url],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(4)
    ]  # fmt: skip
    said = [driver.communicate(timeout=240) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0] * 4, [words for _, words in said]
    taken = [int(line) for words, _ in said for line in words.split()]
    assert sorted(taken) == list(range(40)), "each number once, none missing"
    found = read(tmp_path)
    assert Counter(trial.state for trial in found.trials()) == {"finished": 40}
    assert len({trial.params["optimizer.lr"] for trial in found.trials()}) == 40, "no two drivers draw alike"
    found.close()


@pytest.fixture
def postgres():
    from tests.sweep.postgres import binaries, server

    if binaries() is None:
        pytest.skip("PostgreSQL's server is not installed: apt-get install postgresql")
    with server() as url:
        yield url


def test_successive_halving_pauses_and_promotes(tmp_path):
    with _opened(tmp_path, pruner="halving", trials=9, sampler="random") as study:
        order = []
        while (trial := study.take()) is not None:
            at = max(trial.reported, default=0) + 1
            loss = float(trial.number % 9)  # trial 0 is the best one
            decision = "go on"
            while at <= 9 and decision == "go on":
                decision = study.report(trial.number, at, loss, of=9)
                at += 1
            order.append((trial.number, at - 1))
            if decision == "pause":
                study.leave(trial, "paused", seconds=1.0)
            else:
                study.finish(trial, [loss], seconds=1.0)
        assert study.end_paused() == 8
        assert order[:3] == [(0, 1), (1, 1), (2, 1)] and order[3] == (0, 3), "promoted as soon as three have come"
        assert [trial.state for trial in study.trials()] == ["finished", *["pruned"] * 8]
        assert sum(max(trial.reported) for trial in study.trials()) < 9 * 9 / 3


def test_a_sweep_too_small_for_its_rungs_ends_with_a_model(tmp_path):
    with _opened(tmp_path, pruner="halving", trials=2, sampler="random") as study:
        for loss in (2.0, 1.0):
            trial = study.take()
            assert study.report(trial.number, 1, loss, of=9) == "pause"
            study.leave(trial, "paused", seconds=1.0)
        assert study.take().number == 1, "the better one goes on"
        assert study.take() is None


def test_median_pruner_ends_what_is_worse(tmp_path):
    with _opened(tmp_path, pruner="median", trials=9, sampler="random") as study:
        for loss in range(5):
            trial = study.take()
            assert study.report(trial.number, 1, float(loss), of=3) == "go on"
            study.finish(trial, [float(loss)], seconds=1.0)
        assert study.report(_take(study).number, 1, 9.0, of=3) == "prune"
        assert study.report(_take(study).number, 1, 0.5, of=3) == "go on"


def test_higher_is_better_after_a_minus(tmp_path):
    settings = Settings(space=SPACE, trials=4)
    require_free(tmp_path, settings)
    study = begin(tmp_path, settings, metrics=["-accuracy"], storage=None, driver="one")
    for value in (0.5, 0.9, 0.7):
        study.finish(_take(study), [value], seconds=1.0)
    assert front(study.trials(), study.signs)[0].values == [0.9]
    study.close()


def test_the_front_of_two_metrics(tmp_path):
    settings = Settings(space=SPACE, trials=5, sampler="nsga2")
    require_free(tmp_path, settings)
    study = begin(tmp_path, settings, metrics=["loss", "-speed"], storage=None, driver="one")
    for values in ([1.0, 5.0], [2.0, 9.0], [2.0, 4.0], [0.5, 1.0], [1.0, 5.0]):
        study.finish(_take(study), values, seconds=1.0)
    assert [trial.number for trial in front(study.trials(), study.signs)] == [3, 0, 4, 1]
    study.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"space": {**SPACE, "optimizer.lr": "log(1e-5,1e-1)"}}, "optimizer.lr was log(1e-4,1e-1), and is log(1e-5"),
        ({"space": {"recipe.batch_size": "4,8"}}, "optimizer.lr was log(1e-4,1e-1), and is not varied"),
        ({"overrides": ("recipe=bert",)}, "overrides was"),
        ({"pruner": "median"}, "pruner was none, and is median"),
    ],
)
def test_a_sweep_of_another_space_is_refused(tmp_path, options, reason):
    with _opened(tmp_path):
        pass
    before = (tmp_path / SETTINGS_FILE).read_text()
    with pytest.raises(ConfigError, match="give another --to") as caught, _opened(tmp_path, **options):
        pass
    assert reason in str(caught.value) and (tmp_path / SETTINGS_FILE).read_text() == before
    with _opened(tmp_path, trials=30) as study:  # more of the same is none
        assert study.num_trials == 30


def test_errors_of_storage_and_directory(tmp_path):
    with pytest.raises(ConfigError, match=r"is no sweep: it has no sweep\.json"):
        read(tmp_path)
    require_free(tmp_path, Settings(space=SPACE))
    with pytest.raises(
        ConfigError, match=r"--storage postgresql\+psycopg://me@127.0.0.1:1/x: cannot be opened"
    ) as caught:
        begin(
            tmp_path, Settings(space=SPACE), metrics=["loss"], driver="one",
            storage="postgresql+psycopg://me:secret@127.0.0.1:1/x",
        )  # fmt: skip
    assert "secret" not in str(caught.value)
    (tmp_path / SETTINGS_FILE).write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        read(tmp_path)


def test_evaluations_are_counted_by_steps():
    assert evaluations(8, 8 / 24, 8) == (1, 3)
    assert evaluations(24, 1.0, 8) == (3, 3)
    assert evaluations(20, 1.0, 8) == (3, 3), "the last one, after a part of its steps"
    assert evaluations(8, None, 8) == (1, None)
    assert evaluations(100, 1.0, None) == (1, 1)


def test_a_reader_leaves_no_driver(tmp_path):
    with _opened(tmp_path) as study:
        study.take()
        reader = read(tmp_path)
        assert reader.trials()[0].state == "running" and reader.is_alive("one")
        reader.close()
        assert study._study.user_attrs["trainkit drivers"] == 1
    assert isinstance(reader, Study)
