import os
import sys

import pytest

from trainkit.tracking.command import as_typed


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An environment in `.venv` of the current directory, with a `trainkit` in it, that is not on the PATH."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python3.11", "python", "trainkit"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python3.11"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return programs


def test_what_is_not_on_the_path_is_named_from_here(installed, monkeypatch):
    assert as_typed(["trainkit", "evaluate", "runs/a b"]) == ".venv/bin/trainkit evaluate 'runs/a b'"
    assert as_typed(["python", "-m", "x"]) == ".venv/bin/python3.11 -m x"
    (installed / "elsewhere").mkdir()
    monkeypatch.chdir(installed / "elsewhere")
    assert as_typed(["trainkit", "x"]) == f"{installed}/trainkit x"


def test_only_a_command_of_this_environment_goes_by_its_name(installed, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{installed}{os.pathsep}/usr/bin")
    assert as_typed(["trainkit", "x"]) == "trainkit x"
    assert as_typed(["python", "-m", "x"]) == "python -m x"
    other = tmp_path / "other"
    other.mkdir()
    (other / "trainkit").write_text("#!/bin/sh\n")
    (other / "trainkit").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}{os.pathsep}{installed}")
    assert as_typed(["trainkit", "x"]) == ".venv/bin/trainkit x"


def test_a_checkout_that_is_not_installed_has_a_module_instead(installed):
    (installed / "trainkit").unlink()
    assert as_typed(["trainkit", "evaluate", "r"]) == ".venv/bin/python3.11 -m trainkit.cli evaluate r"
    assert as_typed(["make", "train"]) == "make train"
