"""A grid that goes on, a cell that fails, and files of results: the measurements themselves are planted."""

import re
import sys

import pytest

from tests.jobs import ROOT
from trainkit.benchmark import machine
from trainkit.benchmark.grid import Cell, Length, Model
from trainkit.benchmark.measurement import Measurement, Settings, check
from trainkit.benchmark.results import Results
from trainkit.benchmark.runner import FailedError, Runner
from trainkit.benchmark.task import reason_of
from trainkit.errors import ConfigError, DataError
from trainkit.json_text import read_json, write_json

USER = ROOT / "tests" / "user" / "conf"


class Planted(Runner):
    """Answers without measuring, and notes what it was asked."""

    def __init__(self, fails_on=()):
        self.asked, self._fails_on = [], fails_on

    def run(self, task, processes=1):
        self.asked.append((task["kind"], processes))
        if (task["kind"], processes) in self._fails_on:
            raise FailedError("out of memory: planted")
        if task["kind"] == "batch":
            return {"batch_size": 48}
        if task["kind"] != "steps":
            return {"peak": {"flops_per_s": 1e12}, "flops": {"flops_per_sample": 1e9}}[task["kind"]]
        size = task["config"]["recipe"]["batch_size"]
        repeats = [{"seconds": 1.0, "samples": 2.0 * size}] * task["length"]["repeats"]
        return {"repeats": repeats, "batch_size": size, "peak_memory_bytes": 10}


def _cells(processes=(1, 2), overrides=("recipe=toy",)):
    model = Model(name="toy", overrides=overrides)
    return [Cell(model=model, precision="fp32", strategy="ddp", processes=num) for num in processes]


def _settings(**given):
    usual = {"length": Length(repeats=2), "batch_size": None, "threads": 1, "device": "cpu", "versions": {"torch": "1"}}
    return Settings(**usual | given, config_dir=USER)


def _measured(path, cells, runner, settings=None, **given):
    measurement = Measurement(Results.open(path), runner, settings or _settings(), **given)
    return [None if measurement.is_known(cell) else measurement.measure(cell) for cell in cells]


def test_each_cell_is_measured_once_and_the_rest_goes_on(tmp_path):
    path, first = tmp_path / "a.json", Planted()
    (one,) = _measured(path, _cells((1,)), first)
    assert first.asked == [("peak", 1), ("flops", 1), ("steps", 1)]
    assert one["figures"]["samples"]["median"] == 16 and one["figures"]["mfu"] == pytest.approx(16 * 1e9 / 1e12)
    second = Planted()
    again = _measured(path, _cells((1, 2)), second)
    assert again[0] is None and second.asked == [("steps", 2)]
    assert again[1]["figures"]["efficiency"] == 1.0 and again[1]["batch_size"] == 16, "each process takes the batch"
    third = Planted()
    assert _measured(path, _cells((1, 2)), third) == [None, None] and third.asked == []
    everything = Planted()
    _measured(path, _cells((1, 2)), everything, again=True)
    assert everything.asked == [("peak", 1), ("flops", 1), ("steps", 1), ("steps", 2)]


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({"length": Length(repeats=3)}, ("recipe=toy",)),
        ({"batch_size": 4}, ("recipe=toy",)),
        ({"versions": {"torch": "2"}}, ("recipe=toy",)),
        ({}, ("recipe=toy", "seed=1")),
    ],
)
def test_other_settings_are_measured_anew(tmp_path, settings, overrides):
    path, runner = tmp_path / "a.json", Planted()
    _measured(path, _cells((1,)), Planted())
    assert _measured(path, _cells((1,), overrides), runner, _settings(**settings)) != [None]
    assert ("steps", 1) in runner.asked
    assert len(Results.read(path).cells) == 1, "the earlier one is replaced"


def test_a_cell_that_fails_is_a_line_and_is_tried_again(tmp_path):
    path = tmp_path / "a.json"
    runner = Planted(fails_on={("steps", 1), ("flops", 1)})
    failed, fine = _measured(path, _cells((1, 2)), runner)
    assert failed["reason"] == "out of memory: planted" and "figures" not in failed
    assert fine["figures"]["mfu"] is None and fine["figures"]["efficiency"] is None
    stored = Results.read(path)
    assert [len(stored.cells), len(stored.measured)] == [2, 1]
    assert stored.value["flops"]["toy"]["reason"] == "out of memory: planted"
    later = Planted()
    assert _measured(path, _cells((1, 2)), later)[1] is None
    assert later.asked == [("flops", 1), ("steps", 1)]


def test_a_gpu_searches_for_its_batch(tmp_path):
    runner = Planted()
    cell, _ = _measured(tmp_path / "a.json", _cells((1, 2)), runner, _settings(device="cuda", threads=None))
    assert ("batch", 1) in runner.asked and ("batch", 2) in runner.asked
    assert cell["batch_size_per_process"] == 48 and cell["batch_is"] == "the largest that was found to fit"
    given = Planted()
    _measured(tmp_path / "b.json", _cells((1,)), given, _settings(device="cuda", threads=None, batch_size=4))
    assert [kind for kind, _ in given.asked] == ["peak", "flops", "steps"]


def test_wrong_keys_are_found_before_any_work():
    with pytest.raises(ConfigError, match=r"recipe.batch_sice.*Did you mean"):
        check(_cells((1,), ("recipe=toy", "recipe.batch_sice=3")), _settings())
    with pytest.raises(ConfigError, match="recipe=toi: must be one of"):
        check(_cells((1,), ("recipe=toi",)), _settings())


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_of_another_machine_is_not_added_to(tmp_path):
    path = tmp_path / "a.json"
    _measured(path, _cells((1,)), Planted())
    value = read_json(path)
    value["machine"]["gpus"] = [{"name": "NVIDIA A100"}] * 2
    write_json(path, value)
    with pytest.raises(ConfigError, match="holds measurements of 2 x NVIDIA A100, and this machine is"):
        Results.open(path)
    assert machine.in_words(Results.read(path).value["machine"]) == "2 x NVIDIA A100"


def test_the_machine_is_described_without_its_name():
    found = machine.describe()
    assert "host" not in found and machine.is_same(found, machine.describe())
    assert not machine.is_same(found, {**found, "cpu": {**found["cpu"], "cores": 10_000}})


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("cells"),
        lambda value: value.update(format=99),
        lambda value: value["cells"].update(x={"settings": "s", "model": "m"}),
        lambda value: next(iter(value["cells"].values())).update(repeats=[{"seconds": 0, "samples": 1}]),
        lambda value: value["machine"].pop("gpus"),
    ],
)
def test_what_is_no_file_of_results(tmp_path, change):
    path = tmp_path / "a.json"
    _measured(path, _cells((1,)), Planted())
    value = read_json(path)
    change(value)
    write_json(path, value)
    with pytest.raises(DataError, match=r"a.json is no file of trainkit benchmark"):
        Results.read(path)
    path.write_text("[" * 10_000)
    with pytest.raises(DataError, match="nested too deeply"):
        Results.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        Results.read(tmp_path / "none.json")


# -- processes ---------------------------------------------------------------------------------------------------------


def _runner(code, timeout_s=60.0):
    return Runner([sys.executable, "-c", code], threads=3, timeout_s=timeout_s)


WRITES = "import os, sys, pathlib; pathlib.Path(sys.argv[1], {name!r}).write_text({text!r}); sys.exit({code})"


def test_the_answer_of_processes():
    code = (
        "import json, os, sys, pathlib; directory = pathlib.Path(sys.argv[1]);"
        "task = json.loads((directory / 'task.json').read_text());"
        "answer = {'task': task, 'num': sys.argv[2], 'threads': os.environ['OMP_NUM_THREADS']};"
        "(directory / 'answer.json').write_text(json.dumps(answer))"
    )
    assert _runner(code).run({"kind": "peak"}, 2) == {"task": {"kind": "peak"}, "num": "2", "threads": "3"}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            WRITES.format(name="failure_1.json", text='{"reason": "out of memory: 3 GB"}', code=1),
            "^out of memory: 3 GB$",
        ),
        ("print('a'); print('last line'); raise SystemExit(3)", "^ended with exit code 3: last line$"),
        ("import os; os.kill(os.getpid(), 9)", r"^was killed by SIGKILL \(Linux does that when memory runs out\)$"),
        ("raise SystemExit(0)", "^ended with exit code 0$"),
    ],
)
def test_why_processes_failed(code, says):
    with pytest.raises(FailedError, match=says):
        _runner(code).run({"kind": "steps"})


def test_the_rank_that_failed_itself_says_why():
    code = (
        "import pathlib, sys; directory = pathlib.Path(sys.argv[1]);"
        """(directory / "failure_0.json").write_text('{"reason": "RuntimeError: Connection closed by peer"}');"""
        """(directory / "failure_1.json").write_text('{"reason": "out of memory: planted"}'); sys.exit(1)"""
    )
    with pytest.raises(FailedError, match=r"^out of memory: planted$"):
        _runner(code).run({"kind": "steps"})


def test_processes_that_take_too_long_are_ended():
    with pytest.raises(FailedError, match=r"took longer than 0.0167 minutes \(--timeout\)"):
        _runner("import time; time.sleep(300)", timeout_s=1.0).run({"kind": "steps"})


def test_the_reason_of_an_error():
    assert reason_of(ConfigError("a\n  b")) == "a b"
    assert reason_of(RuntimeError("[enforce fail] can't allocate memory")).startswith("out of memory")
    assert reason_of(KeyError("x")) == "KeyError: 'x'"
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 / 0
    assert re.fullmatch(
        r"ZeroDivisionError: division by zero \(\S+test_measurement.py, line \d+\)", reason_of(raised.value)
    )
