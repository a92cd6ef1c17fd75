"""Lines of the library: on stderr without logging configuration; otherwise the application decides."""

import ast
import io
import logging
import logging.config
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainkit.logger import logger

PACKAGE = Path(__file__).parent.parent / "trainkit"
ROOT, DATA, TRACKING = logging.getLogger("trainkit"), "trainkit.data.of_this_test", "trainkit.tracking.of_this_test"


@contextmanager
def _unconfigured() -> Iterator[None]:
    """The state of a new process, put back afterwards. It is no fixture: pytest adds its handlers after those."""
    root, own = logging.root, ROOT
    before = [(at, at.handlers, at.level, at.propagate) for at in (root, own)]
    root.handlers, own.handlers, own.propagate = [], [], True
    root.setLevel(logging.WARNING)
    own.setLevel(logging.NOTSET)
    try:
        yield
    finally:
        for at, handlers, level, propagate in before:
            at.handlers, at.propagate = handlers, propagate
            at.setLevel(level)


def _say() -> None:
    logger(DATA).debug("a detail")
    logger(DATA).info("some information")
    logger(TRACKING).warning("a warning")
    logger(TRACKING).error("a failure")


@_unconfigured()
def test_without_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    _say()
    lines = "trainkit: some information\ntrainkit: a warning\ntrainkit: error: a failure\n"
    assert capsys.readouterr() == ("", lines)
    _say()
    assert capsys.readouterr().err == lines, "once again, and once"


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (None, ["WARNING: a warning", "ERROR: a failure"]),
        (logging.INFO, ["INFO: some information", "WARNING: a warning", "ERROR: a failure"]),
        (logging.ERROR, ["ERROR: a failure"]),
    ],
)
@_unconfigured()
def test_basic_config(capsys: pytest.CaptureFixture[str], level: int | None, shown: list[str]) -> None:
    _say()  # the application may configure logging after the first line
    capsys.readouterr()
    stream = io.StringIO()
    logging.basicConfig(stream=stream, format="%(levelname)s: %(message)s", level=level)
    _say()
    assert stream.getvalue().splitlines() == shown
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
@pytest.mark.parametrize("is_first", [True, False])
@_unconfigured()
def test_the_level_of_trainkit(capsys: pytest.CaptureFixture[str], level: int, is_first: bool) -> None:
    if not is_first:
        _say()
        capsys.readouterr()
    logging.getLogger("trainkit").setLevel(level)
    _say()
    expected = (level <= logging.INFO) + (level <= logging.WARNING) + 1
    assert len(capsys.readouterr().err.splitlines()) == expected
    stream = io.StringIO()
    logging.basicConfig(stream=stream)
    _say()
    assert len(stream.getvalue().splitlines()) == expected, "it holds with a handler, too"


@_unconfigured()
def test_a_handler_for_one_package(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _say()
    capsys.readouterr()
    handler = {"class": "logging.FileHandler", "filename": str(tmp_path / "data.log")}
    loggers = {"trainkit.data": {"handlers": ["file"], "level": "DEBUG", "propagate": False}}
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "handlers": {"file": handler}, "loggers": loggers}
    )
    try:
        _say()
    finally:
        logging.getLogger("trainkit.data").handlers[0].close()
        logging.getLogger("trainkit.data").handlers.clear()
        logging.getLogger("trainkit.data").propagate = True
        logging.getLogger("trainkit.data").setLevel(logging.NOTSET)
    assert (tmp_path / "data.log").read_text().splitlines() == ["a detail", "some information"]
    assert capsys.readouterr().err == "trainkit: a warning\ntrainkit: error: a failure\n"


@_unconfigured()
def test_a_null_handler_silences(capsys: pytest.CaptureFixture[str]) -> None:
    ROOT.addHandler(logging.NullHandler())
    ROOT.propagate = False
    _say()
    assert capsys.readouterr() == ("", "")


@_unconfigured()
def test_stderr_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines are lost, and neither an error nor a line about an error is in their place."""
    tried: list[str] = []

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError("File too large")

    monkeypatch.setattr(sys, "stderr", Full())
    _say()
    assert tried == ["trainkit: some information", "trainkit: a warning", "trainkit: error: a failure"]


@_unconfigured()
def test_caplog(caplog: pytest.LogCaptureFixture) -> None:
    logging.root.addHandler(caplog.handler)
    _say()
    assert [record.getMessage() for record in caplog.records] == ["a warning", "a failure"]


def _prints(path: Path) -> bool:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return any(isinstance(call, ast.Name) and call.id == "print" for call in calls)


def test_only_commands_print() -> None:
    printing = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if _prints(path)}
    # Programs of their own: copied into a bundle, and run on other hosts, whose answer is what they print.
    programs = {Path("export", "device", "run.py"), Path("launcher", "facts.py")}
    assert {path for path in printing if path.parts[0] != "cli"} == {Path("logger.py"), *programs}
