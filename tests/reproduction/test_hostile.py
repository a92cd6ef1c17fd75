"""Run directories of anybody: whatever is in a manifest or a trace, commands end with one clear error, or none."""

import json
from typing import Any

import pytest

from trainkit.cli.main import main

WHOLE = {
    "format": 1,
    "run": {"name": "<b>"},
    "configuration": {"seed": 0, "data": {"path": "x"}},
    "composed": {"recipe": {"_target_": "os.system"}},
    "code": {"trainkit": {"installed": "editable"}, "repositories": {"/": {"commit": "--output=x", "diff": "../x"}}},
    "environment": {"python": "3.11.7", "packages": {"a; rm": {"version": "1"}}, "imported": ["a"], "cuda": {}},
    "hardware": {"cpu": {}, "gpus": []},
    "data": {"counts": {}, "fingerprints": {}},
    "training": {"num_ranks": 1},
    "history": [{}],
}
LINE = {
    "step": 1,
    "position": 8,
    "samples": "1",
    "batch": "1",
    "metrics": {"loss": 1.0},
    "weights": {"m": {"w": ["1", 1.0]}},
}
JUNK: tuple[Any, ...] = (None, 3, "x", [], [3], {"x": 3}, {"x": [None]}, float("inf"))


def _run(path, found, line):
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps(found))
    (path / "trace.jsonl").write_text(json.dumps(line) + "\n")
    return str(path)


def _commands(run, other, folder):
    yield ["manifest", "show", run]
    yield ["manifest", "container", run, str(folder)]
    yield ["diff", run, other]
    yield ["reproduce", run, "--compare-only"]


def _changes(tree):
    """The tree with each of its values in turn replaced by each kind of junk."""
    for key, value in tree.items():
        for junk in JUNK:
            yield {**tree, key: junk}
        if isinstance(value, dict):
            yield from ({**tree, key: inner} for inner in _changes(value))


@pytest.mark.parametrize("part", [part for part in WHOLE if part != "format"])
def test_no_manifest_crashes_a_command(tmp_path, capsys, part):
    other = _run(tmp_path / "other", WHOLE, LINE)
    for number, changed in enumerate(_changes({part: WHOLE[part]})):
        run = _run(tmp_path / f"{number}", {**WHOLE, **changed}, LINE)
        for command in _commands(run, other, tmp_path / f"to{number}"):
            assert main(command) in (0, 1, 2), command
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_a_manifest_names_is_not_run(tmp_path, capsys):
    run = _run(tmp_path / "run", WHOLE, LINE)
    assert main(["reproduce", run, "--steps", "1"]) == 2
    assert "os.system" in capsys.readouterr().err and not (tmp_path / "run_again").exists()
    assert main(["reproduce", run, "--environment", str(tmp_path / "env")]) == 2
    assert not (tmp_path / "env").exists()


def test_no_trace_crashes_a_comparison(tmp_path):
    other = _run(tmp_path / "other", WHOLE, LINE)
    for number, changed in enumerate(_changes(LINE)):
        assert main(["diff", _run(tmp_path / f"{number}", WHOLE, changed), other]) in (0, 1, 2)
