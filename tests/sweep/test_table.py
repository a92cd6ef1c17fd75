"""The trials of a sweep in their order, as rows, and in files for other programs."""

import csv
import json
from typing import Any

import pytest

from tests.sweep.studies import drawn, opened, trial, value
from trainkit.cli.main import main
from trainkit.errors import ConfigError
from trainkit.sweep import table
from trainkit.sweep.study import read

LOWER, HIGHER = [1.0], [-1.0]


def _numbers(trials):
    return [one.number for one in trials]


@pytest.fixture
def study(tmp_path):
    made = opened(tmp_path / "sweep")
    yield made
    made.close()


def test_the_best_trial_comes_first_and_failures_last():
    trials = [
        trial(0, error="out of memory", state="failed"),
        trial(1, [0.5], reported={1: 0.9, 2: 0.5}),
        trial(2, [0.3], reported={1: 0.8, 2: 0.3}),
        trial(3, [0.7], state="pruned", reported={1: 0.7}),  # Optuna gives it its last value
        trial(4, state="paused", reported={1: 0.6}),
        trial(5, state="running"),
        trial(6, [float("inf")]),
        trial(7, state="pruned", reported={1: float("nan")}),
    ]
    assert _numbers(table.ordered(trials, LOWER)) == [2, 1, 4, 3, 7, 5, 6, 0]
    assert _numbers(table.ordered(trials, HIGHER))[:4] == [1, 2, 3, 4]
    assert _numbers(table.front(trials, LOWER)) == [2] and _numbers(table.front(trials, HIGHER)) == [1]
    assert table.counts(trials) == "3 finished, 1 running, 1 paused, 2 pruned, 1 failed"
    assert table.front(trials[3:6], LOWER) == []


def test_a_front_is_what_no_other_trial_beats():
    trials = drawn(300, num_metrics=3, states=False)
    signs = [1.0, -1.0, 1.0]

    def beats(a, b):
        costs = [[s * v for s, v in zip(signs, one.values, strict=True)] for one in (a, b)]
        return costs[0] != costs[1] and all(x <= y for x, y in zip(*costs, strict=True))

    wanted = {one.number for one in trials if not any(beats(other, one) for other in trials)}
    found = table.front(trials, signs)
    assert 1 < len(wanted) < 300 and set(_numbers(found)) == wanted
    assert [*map(value, found)] == sorted(map(value, found))
    assert _numbers(table.ordered(trials, signs))[: len(wanted)] == _numbers(found)


def test_trials_of_the_same_values_are_both_on_the_front():
    same = [trial(0, [1.0, 2.0]), trial(1, [1.0, 2.0]), trial(2, [1.0, 1.0])]
    assert _numbers(table.front(same, [1.0, -1.0])) == [0, 1]


def test_a_row_has_the_values_keys_and_cost_of_a_trial():
    trials = [
        trial(4, [0.123456789], reported={3: 0.2, 6: 0.123456789}, seconds=75),
        trial(5, state="waiting", starts=0),
    ]
    keys = ["optimizer.lr", "recipe.batch_size"]
    names = ["trial", "state", "loss", "evaluations", *keys, "time", "starts"]
    assert table.headings(["loss"], keys) == names
    assert table.rows(trials, ["loss"], keys) == [
        ["4", "finished", "0.123457", "6", "0.01", "4", "1:15", "1"],
        ["5", "waiting", "", "", "0.01", "4", "0:02", "0"],
    ]
    two = table.rows([trial(1, [0.5, 0.25]), trial(2, state="running")], ["a", "b"], [])
    assert [row[2:4] for row in two] == [["0.5", "0.25"], ["", ""]]


def test_steps_are_those_of_the_last_whole_line(tmp_path):
    assert table.steps(tmp_path) is None
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "text": "{"x" * 9000}"}}\n' for step in range(1, 13)))
    assert table.steps(tmp_path) == 12
    path.write_text('{"step": 3')
    assert table.steps(tmp_path) is None


def test_times_are_of_the_processes_and_of_the_clock():
    trials = [trial(0, [1.0], seconds=90), trial(9, [1.0], seconds=40)]
    assert table.times(trials) == "2:10 of trials in 1:30"  # until the first one, which ended last
    assert table.times([trial(0, state="running", seconds=0)]) == "0:00 of trials"


def test_a_study_is_shown_as_its_driver_has_left_it(study, capsys):
    for final in (0.4, 0.2, None, float("nan")):
        taken = study.take()
        if final is None:
            study.fail(taken, "a line\nand another", seconds=1.5)
        elif final != final:
            study.report(taken.number, 1, 0.3, of=4)
            study.prune(taken, seconds=0.5)
        else:
            study.report(taken.number, 1, 2 * final, of=4)
            study.finish(taken, [final], seconds=2.0)
    study.take()
    directory = str(study.directory)
    assert main(["sweep", "show", directory]) == 0
    shown = capsys.readouterr().out
    assert "2 finished, 1 running, 1 pruned, 1 failed of 40; 0:06 of trials" in shown
    assert "best: trial 1: held_out_loss 0.2; optimizer.lr=" in shown
    assert "trial 2 failed: a line and another" in shown and "more" not in shown
    rows = [line.split()[:3] for line in shown.splitlines() if line[:1].isdigit()]
    assert [row[:2] for row in rows] == [["1", "finished"], ["0", "finished"], ["3", "pruned"], ["4", "running"]]
    assert rows[2][2] == "0.3"


def test_twenty_trials_are_shown_and_all_on_request(study, capsys):
    for number in range(22):
        study.finish(study.take(), [float(number)], seconds=0.0)
    for extra, lines in ([], 20), (["--all"], 22):
        assert main(["sweep", "show", str(study.directory), *extra]) == 0
        shown = capsys.readouterr().out
        assert sum(line[:1].isdigit() and "finished  " in line for line in shown.splitlines()) == lines
        assert ("... and 2 more: --all shows them" in shown) == (lines == 20)


def test_two_metrics_are_shown_with_their_front(tmp_path, capsys):
    study = opened(tmp_path / "two", ["loss", "-accuracy"], sampler="nsga2")
    for values in ([1.0, 0.5], [2.0, 0.9], [3.0, 0.4]):
        study.finish(study.take(), values, seconds=0.0)
    study.close()
    assert main(["sweep", "show", str(tmp_path / "two")]) == 0
    shown = capsys.readouterr().out
    assert "the Pareto front of loss, accuracy has 2 of the trials, marked *" in shown
    firsts = [line.split()[0] for line in shown.splitlines() if "finished " in line and line[0].isdigit()]
    assert firsts == ["0*", "1*", "2"]


@pytest.mark.parametrize("suffix", table.SUFFIXES)
def test_all_trials_are_exported(study, tmp_path, suffix):
    first, second = study.take(), study.take()
    study.report(first.number, 3, 0.25, of=4)
    study.finish(first, [0.1 + 0.2], seconds=1.5)
    study.fail(second, 'of memory, "all"', seconds=0.5)
    path = tmp_path / f"trials{suffix}"
    assert main(["sweep", "export", str(study.directory), str(path)]) == 0
    text = path.read_text()
    lr, batch_size = first.params["optimizer.lr"], first.params["recipe.batch_size"]
    if suffix == ".csv":
        rows: list[dict[str, Any]] = [*csv.DictReader(text.splitlines())]
        assert float(rows[0]["held_out_loss"]) == 0.1 + 0.2 and float(rows[0]["optimizer.lr"]) == lr
        assert rows[0]["recipe.batch_size"] == batch_size and rows[0]["evaluations"] == "3"
    else:
        rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        assert rows[0]["values"] == {"held_out_loss": 0.1 + 0.2} and rows[0]["reported"] == {"3": 0.25}
        assert rows[0]["params"]["optimizer.lr"] == lr and rows[0]["params"]["recipe.batch_size"] == int(batch_size)
    assert [str(row["number"]) for row in rows] == ["0", "1"] and rows[1]["error"] == 'of memory, "all"'
    assert rows[0]["run_dir"] == str(study.run_dir(0)) and float(rows[0]["seconds"]) == 1.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trials.xlsx", r"must end in \.csv, \.json, \.jsonl, such as .*trials\.csv"),
        ("old.csv", "there is such a file"),
    ],
)
def test_what_cannot_be_exported_is_an_error(study, tmp_path, name, message):
    (tmp_path / "old.csv").write_text("kept")
    with pytest.raises(ConfigError, match=message):
        table.export(study, tmp_path / name)
    assert (tmp_path / "old.csv").read_text() == "kept" and not (tmp_path / "trials.xlsx").exists()
    with pytest.raises(ConfigError, match="cannot be written"):
        table.export(study, tmp_path / "nowhere" / "trials.csv")


@pytest.mark.parametrize("words", [["show"], ["export", "a"], ["best", "a", "b"], ["show", "nowhere"]])
def test_a_missing_directory_or_file_is_one_line(words, capsys):
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("needs DIR" in error or "is no sweep" in error)


def test_a_reader_sees_when_a_trial_ended(study):
    taken = study.take()
    assert read(study.directory).trials()[0].ended is None
    study.finish(taken, [1.0], seconds=1.0)
    found = read(study.directory).trials()[0]
    assert found.ended is not None and found.ended >= found.started
