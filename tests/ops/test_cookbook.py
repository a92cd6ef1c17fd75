"""The code of docs/add/op.md, as it is written there, in a directory and a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trainkit
from trainkit.ops import build

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "add" / "op.md"
LAYER = ("scale/scale.h", "scale/scale.cu", "scale/scale.cpp", "layer.py", "train.py")
MOST_LINES = 100


def _files():
    """name -> content of the page's blocks of code, which begin with a comment that is a file's name."""
    blocks = re.findall(r"^```(?:cpp|python)\n(?://|#) (\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(blocks)


@pytest.fixture
def run(tmp_path):
    for name, content in _files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)

    def run(name, archs="none"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRAINKIT_CUDA_ARCHS": archs}
        command = [sys.executable, name]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_block_is_a_file():
    assert len(_files()) == len(re.findall(r"^```\w", PAGE.read_text(), re.MULTILINE))
    assert set(LAYER) <= _files().keys()


def test_the_layer_is_short():
    lines = [line for name in LAYER for line in _files()[name].splitlines() if line.strip()]
    assert len(lines) < MOST_LINES


def test_the_layer(run):
    archs = "9.0" if build.find_nvcc() else "none"
    run("layer.py", archs)
    loss = float(run("train.py", archs).split("loss ")[-1])
    assert -0.5 < loss < 0.1


@pytest.mark.parametrize("name", ["activation.py", "prune.py"])
def test_what_a_block_asserts_holds(run, name):
    assert "\nassert " in _files()[name]
    assert run(name) == ""  # nor does it fail, see `run`


def test_the_page_lists_every_function():
    (listed,) = re.findall(r"^`(abs [^`]*)`$", PAGE.read_text(), re.MULTILINE)
    assert listed.split() == sorted(set(trainkit.ops.expression.ARITY) - {"where"})
