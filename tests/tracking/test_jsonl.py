import json
import os
import signal
import subprocess
import sys

import pytest

from trainkit.tracking import Jsonl, Run
from trainkit.tracking.jsonl import read


def told(path):
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["step"], line["kind"]) for line in lines if line["kind"] != "message"]


def write(directory, steps, resumed_step=None):
    tracker = Jsonl()
    tracker.start(Run(directory=directory, name="run", resumed_step=resumed_step))
    for step in steps:
        tracker.log(step, {"loss": 1.0 / step})
        if step % 5 == 0:
            tracker.evaluation(step, {"held_out_loss": 2.0 / step})
    tracker.finish("finished")
    return directory / "metrics.jsonl"


def test_a_resume_logs_no_step_twice(tmp_path):
    whole = write(tmp_path, range(1, 13))
    expected = told(whole)
    assert (10, "training") in expected
    assert (10, "evaluation") in expected

    write(tmp_path, range(6, 13), resumed_step=5)
    assert told(whole) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_fresh_run_in_a_used_directory_starts_anew(tmp_path):
    write(tmp_path, range(1, 4))
    assert told(write(tmp_path, range(1, 3))) == [(1, "training"), (2, "training")]


@pytest.mark.parametrize("torn", ['{"step": 4, "ti', '{"step": 4, "name": "\udcc3', "{"])
def test_a_torn_last_line_is_repaired(torn, tmp_path):
    path = write(tmp_path, range(1, 4))
    with path.open("ab") as file:
        file.write(torn.encode("utf-8", errors="surrogateescape"))
    assert [line["step"] for line in read(path)] == [1, 2, 3]
    write(tmp_path, range(4, 6), resumed_step=3)
    assert [step for step, _ in told(path)] == [1, 2, 3, 4, 5, 5]  # and every line parses


def test_messages_are_kept_at_the_step_of_the_line_before(tmp_path):
    tracker = Jsonl()
    tracker.message("before the start")
    tracker.start(Run(directory=tmp_path, name="run", resumed_step=2))
    tracker.log(3, {"loss": 1.0})
    tracker.message("after three")
    tracker.log(5, {"loss": 1.0})
    tracker.message("after five")
    tracker.finish("finished")
    path = tmp_path / "metrics.jsonl"
    said = [(line["step"], line["text"]) for line in read(path) if line["kind"] == "message"]
    assert said[1:] == [(2, "before the start"), (3, "after three"), (5, "after five")]
    assert said[0] == (2, "the run continues after step 2")
    tracker = Jsonl()
    tracker.start(Run(directory=tmp_path, name="run", resumed_step=4))
    tracker.finish("finished")
    said = [(line["step"], line["text"]) for line in read(path) if line["kind"] == "message"]
    assert [step for step, _ in said] == [2, 2, 3, 4] and said[-1][1] == "the run continues after step 4"


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = write(tmp_path, range(1, 4))
    path.write_text(path.read_text().replace('"step": 2', '"step" 2'))
    with pytest.raises(json.JSONDecodeError):
        list(read(path))


def test_what_is_not_finite_is_null_and_named(tmp_path):
    tracker = Jsonl()
    tracker.start(Run(directory=tmp_path, name="run"))
    tracker.log(1, {"loss": float("nan"), "grad_norm": float("-inf"), "lr": 0.5})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["grad_norm"], line["lr"]) == (None, None, 0.5)
    assert line["nonfinite"] == {"loss": "nan", "grad_norm": "-inf"}


def test_every_line_survives_a_kill(tmp_path):
    script = (
        "import os, pathlib, signal, sys\n"
        "from trainkit.tracking import Jsonl, Run\n"
        "tracker = Jsonl()\n"
        "tracker.start(Run(directory=pathlib.Path(sys.argv[1]), name='run'))\n"
        "for step in range(100):\n"
        "    tracker.log(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=os.environ, check=False)
    assert process.returncode == -signal.SIGKILL
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == list(range(100))
