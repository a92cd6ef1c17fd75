import json

import numpy as np
import pytest

from trainkit.errors import DataError
from trainkit.tracking import Jsonl, Run
from trainkit.tracking.metrics_file import MetricsFile


def _line(step, kind="training", **values):
    return json.dumps({"step": step, "time": 100.0 + step, "kind": kind, **values}) + "\n"


def _numbers(file, kind="training"):
    return {name: [column.tolist() for column in curve.points()] for name, curve in file.curves[kind].items()}


def test_a_growing_file_is_read_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(_line(1, loss=3.0) + _line(2, loss=2.0)[:20])
    file = MetricsFile(path)
    assert file.read() and _numbers(file) == {"loss": [[1], [3]]}
    assert not file.read(), "an incomplete line is left"
    with path.open("a") as opened:
        opened.write(_line(2, loss=2.0)[20:] + _line(2, "evaluation", held_out_loss=5.0))
    assert file.read() and _numbers(file) == {"loss": [[1, 2], [3, 2]]}
    assert _numbers(file, "evaluation") == {"held_out_loss": [[2], [5]]}


def test_a_file_that_a_resume_has_cut_is_read_again(tmp_path):
    tracker = Jsonl()
    tracker.start(Run(directory=tmp_path, name="run"))
    for step in (1, 2, 3, 4):
        tracker.log(step, {"loss": step})
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.read()
    assert file.last_step == 4
    tracker.finish("interrupted")
    tracker = Jsonl()
    tracker.start(Run(directory=tmp_path, name="run", resumed_step=2))
    for step in (3, 4, 5, 6):
        tracker.log(step, {"loss": 10 * step})
    tracker.finish("finished")
    file.read()
    assert _numbers(file) == {"loss": [[1, 2, 3, 4, 5, 6], [1, 2, 30, 40, 50, 60]]}


def test_kinds_of_other_versions_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    interval = _line(1, "interval", swd=[1.0, 2.0], odd="text")
    path.write_text(_line(1, "evaluation", swd=1.5) + interval + _line(2, "of_the_future", swd={"a": []}))
    file = MetricsFile(path)
    file.read()
    assert _numbers(file, "interval low") == {"swd": [[1], [1]]}
    assert _numbers(file, "interval high") == {"swd": [[1], [2]]}
    assert file.last_step == 2


def test_columns_that_change_and_odd_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [_line(1, loss=1, lr=0.5, position=8), _line(2, lr=0.25, loss=2, position=16), _line(3, loss=None)]
    lines += [_line(4, loss="text"), _line(5, loss=10**400), _line(6, loss=[1]), _line(7, loss=1.5, position=56)]
    path.write_text("".join(lines))
    file = MetricsFile(path)
    file.read()
    assert _numbers(file) == {"loss": [[1, 2, 7], [1, 2, 1.5]], "lr": [[1, 2], [0.5, 0.25]]}
    assert file.num_nonfinite["loss"] == 4 and file.position == 56 and file.seconds == 6


@pytest.mark.parametrize(
    "line",
    ["[1]", '{"step": "1", "time": 1, "kind": "training"}', '{"step": -1, "time": 1, "kind": "training"}', "[" * 99999,
     '{"step": 1e999, "time": 1, "kind": "training"}', '{"step": 1, "time": 1, "kind": "milestones", "milestones": 3}',
     '{"step": 1, "time": 1, "kind": "milestones"}', '{"step": 1, "time": "now", "kind": "message"}'],
)  # fmt: skip
def test_what_is_no_line_of_a_run_is_one_error(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl is no record of a run"):
        MetricsFile(path).read()


def test_a_long_file_keeps_its_spike_in_bounded_memory(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 20_001):
            file.write(_line(step, loss=1e6 if step == 12_345 else np.sin(step)))
    file = MetricsFile(path)
    said = []
    file.read(lambda done, total: said.append((done, total)))
    steps, values = file.curves["training"]["loss"].points()
    assert len(steps) <= 4001 and steps[values.argmax()] == 12_345 and values.max() == 1e6
    assert said[-1] == (path.stat().st_size,) * 2
