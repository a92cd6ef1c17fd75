"""What DeepSpeed compiles: in a directory of our own, where a killed build keeps nobody waiting."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs import ROOT, environment

BUILD = """
from trainkit.strategy.deepspeed import use_own_build_directory
use_own_build_directory()
import os
print(os.environ["TORCH_EXTENSIONS_DIR"], flush=True)
from torch.utils.cpp_extension import load
module = load(name="slow", sources=[SOURCE], verbose=False)
print("built", module.answer(), flush=True)
"""
# Headers that take g++ a second or two: a build to be killed in, and a twentieth of the time of torch/extension.h.
SOURCE = """
#include <Python.h>
#include <functional>
#include <iostream>
#include <regex>
static PyObject* answer(PyObject*, PyObject*) {
    return PyLong_FromLong(std::regex_match("built", std::regex("b.*t")) ? 42 : 0);
}
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "slow", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_slow() { return PyModule_Create(&module); }
"""


def _start(tmp_path: Path) -> subprocess.Popen[str]:
    source = tmp_path / "slow.cpp"
    source.write_text(SOURCE)
    given = {key: value for key, value in environment().items() if key != "TORCH_EXTENSIONS_DIR"}
    return subprocess.Popen(
        [sys.executable, "-c", BUILD.replace("SOURCE", repr(str(source)))],
        env={**given, "TRAINKIT_CACHE": str(tmp_path / "cache")},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _marks(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("slow/lock"))


@pytest.mark.slow
def test_a_build_that_was_killed_keeps_nobody_waiting(tmp_path):
    first = _start(tmp_path)
    deadline = time.monotonic() + 120
    while not _marks(tmp_path):
        assert first.poll() is None and time.monotonic() < deadline, "the build never began"
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert len(_marks(tmp_path)) == 1, "the build was over before it was killed"
    second = _start(tmp_path)
    out, err = second.communicate(timeout=200)
    assert second.returncode == 0, err
    directory, built = out.splitlines()
    assert built == "built 42"
    assert Path(directory).is_relative_to(tmp_path / "cache")
    assert _marks(tmp_path) == []


HOLD = """
from trainkit.strategy.deepspeed import use_own_build_directory
use_own_build_directory()
import os, sys
print(os.environ["TORCH_EXTENSIONS_DIR"], flush=True)
sys.stdin.readline()
"""


def _holder(tmp_path: Path) -> subprocess.Popen[str]:
    given = {key: value for key, value in environment().items() if key != "TORCH_EXTENSIONS_DIR"}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={**given, "TRAINKIT_CACHE": str(tmp_path)},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_share_a_directory_unless_one_builds_there(tmp_path):
    processes, directories = [], []
    try:
        for number in range(3):
            process = _holder(tmp_path)
            processes.append(process)
            assert process.stdout is not None
            directories.append(Path(process.stdout.readline().strip()))
            if number == 1:  # a build that goes on, or was killed while others lived: nobody can tell
                (directories[0] / "some_op").mkdir()
                (directories[0] / "some_op" / "lock").touch()
    finally:
        for process in processes:
            process.communicate("\n", timeout=60)
    assert directories[0] == directories[1] != directories[2]
    last = _holder(tmp_path)
    assert last.stdout is not None
    assert Path(last.stdout.readline().strip()) == directories[0], "nobody is left there, and the mark is nobody's"
    last.communicate("\n", timeout=60)
    assert not (directories[0] / "some_op" / "lock").exists()
