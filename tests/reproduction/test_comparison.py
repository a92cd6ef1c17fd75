"""Where two runs parted, by what they recorded."""

import copy
import json

import pytest

from trainkit.errors import DataError
from trainkit.reproduction import compare

PARTS: dict[str, dict[str, str]] = {name: {} for name in ("configuration", "code", "environment", "hardware", "data")}


def _line(step, **changes):
    line = {
        "step": step,
        "position": 8 * step,
        "samples": f"{step}",
        "batch": f"{step}",
        "metrics": {"loss": 1 / step, "lr": 0.1},
        "weights": {"model": {"first": [f"a{step}", 1.0], "second": [f"b{step}", 2.0]}},
    }
    return {**line, **changes}


def _run(path, lines, *, ranks=1, precision="fp32", evaluated=()):
    path.mkdir()
    training = {"num_ranks": ranks, "precision": precision}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "run": {}, **PARTS, "training": training}))
    (path / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"step": s, "time": 0.0, "kind": "evaluation", "held_out_loss": value} for s, value in evaluated]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


STEPS = (1, 2, 4, 8)


def _compared(tmp_path, change=lambda lines: None, *, first=None, **settings):
    lines = [_line(step) for step in STEPS]
    other = copy.deepcopy(lines)
    change(other)
    return compare(_run(tmp_path / "a", first or lines), _run(tmp_path / "b", other, **settings))


def test_the_same_bits(tmp_path):
    found = _compared(tmp_path)
    assert found.result == "same bits" and (found.num_steps, found.last_step) == (4, 8)
    assert found.text == "the same bits: 4 recorded steps up to step 8, of samples, batches, metrics and 2 tensors"
    assert found.first_bits is found.largest is found.parted_at is None


def test_only_common_steps_count(tmp_path):
    found = _compared(tmp_path, lambda lines: lines.__delitem__(slice(2, None)))
    assert (found.result, found.num_steps, found.last_step) == ("same bits", 2, 2)
    assert _compared_nothing(tmp_path).result == "nothing in common"


def _compared_nothing(tmp_path):
    return compare(_run(tmp_path / "c", [_line(1)]), _run(tmp_path / "d", [_line(2)]))


def test_within_rounding(tmp_path):
    def change(lines):
        lines[2]["weights"]["model"]["second"][0] = "x"
        lines[3]["metrics"]["loss"] *= 1 + 1e-6

    found = _compared(tmp_path, change)
    assert found.result == "within rounding" and found.first_bits == (4, "second of model")
    assert found.largest[0] == pytest.approx(1e-6, rel=1e-3) and found.largest[1:] == ("loss", 8)
    assert "metrics differ by at most 1.0e-06 of their value (loss, step 8)" in found.text
    assert found.text.endswith("the first other bits: second of model, step 4")


@pytest.mark.parametrize(("precision", "result"), [("fp32", "parted"), ("bf16", "within rounding"), ("fp64", "parted")])
def test_what_rounding_is_depends_on_the_precision(tmp_path, precision, result):
    def change(lines):
        lines[3]["metrics"]["loss"] *= 1.01

    assert _compared(tmp_path, change, precision=precision).result == result


def test_parted_in_a_metric_after_other_bits_in_a_tensor(tmp_path):
    def change(lines):
        lines[1]["weights"]["model"]["first"][0] = "x"
        lines[2]["metrics"]["loss"] *= 2

    found = _compared(tmp_path, change)
    assert (found.result, found.parted_at, found.first_bits) == ("parted", 4, (2, "first of model"))
    assert found.text == "parted at step 4: loss 0.25 -> 0.5; the first other bits: first of model, step 2"


@pytest.mark.parametrize(("key", "text"), [("samples", "other samples were drawn"), ("batch", "the batch has other")])
def test_parted_in_the_data(tmp_path, key, text):
    def change(lines):
        for line in lines[1:]:
            line[key] = "x"
            line["metrics"]["loss"] *= 3

    found = _compared(tmp_path, change)
    assert (found.result, found.parted_at) == ("parted", 2) and found.text.startswith(f"parted at step 2: {text}")


def test_batches_of_other_ranks_may_be_padded_otherwise(tmp_path):
    def change(lines):
        lines[0]["batch"] = "x"

    assert _compared(tmp_path, change, ranks=2).result == "same bits"


def test_one_that_is_not_finite_parts(tmp_path):
    def change(lines):
        lines[2]["metrics"]["loss"] = None

    assert _compared(tmp_path, change).parted_at == 4


def test_evaluations_are_set_beside_each_other(tmp_path):
    first = _run(tmp_path / "a", [_line(1)], evaluated=[(4, 0.5), (8, 0.25)])
    second = _run(tmp_path / "b", [_line(1)], evaluated=[(4, 0.5)])
    assert compare(first, second).measured == {"held_out_loss": (0.5, 0.5)}


@pytest.mark.parametrize("text", ["{\n", "[]\n", '{"step": 1}\n{"no": 1}\n', "[" * 100_000 + "\n"])
def test_what_is_no_trace(tmp_path, text):
    first, second = _run(tmp_path / "a", [_line(1)]), _run(tmp_path / "b", [_line(1)])
    (second / "trace.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"trace\.jsonl is no trace of a run"):
        compare(first, second)
    (second / "trace.jsonl").unlink()
    with pytest.raises(DataError, match="there is nothing to compare"):
        compare(first, second)


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    first, second = _run(tmp_path / "a", [_line(1)]), _run(tmp_path / "b", [_line(1)])
    with (second / "trace.jsonl").open("a") as file:
        file.write('{"step": 2, "weig')
    assert compare(first, second).result == "same bits"
