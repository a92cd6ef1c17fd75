"""What a type checker finds in a user's script, where trainkit is installed."""

import importlib.metadata
import subprocess
import sys
from typing import get_args

import pytest

from trainkit.strategy import STRATEGIES, StrategyName

SCRIPT = """\
import trainkit
from torch import Tensor, nn


def train(module: nn.Module, loss: Tensor) -> None:
    runtime = trainkit.Runtime(strategy="{strategy}", precision="{precision}")
    engine = runtime.setup(module, lambda groups: trainkit.optim.Lamb(groups, lr=0.1))
    engine.backward(loss, {weight}=3)
    lr: float = engine.step().lr
"""
RIGHT = {"strategy": "ddp", "precision": "bf16", "weight": "weight"}
WRONG = {  # name of the script -> what is wrong in it, and what is said of it
    "strategy": ({"strategy": "ddpp"}, "\"Literal['ddpp']\"; expected"),
    "precision": ({"precision": "bf17"}, "\"Literal['bf17']\"; expected"),
    "weight": ({"weight": "weigth"}, 'Unexpected keyword argument "weigth" for "backward" of "Engine"'),
}
# What torch has for types takes half a minute to read, and is not what is looked at.
SETTINGS = "[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n"


def test_a_type_checker_finds_a_wrong_name(tmp_path):
    try:
        importlib.metadata.distribution("trainkit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("trainkit is not installed here: pip install --no-build-isolation --editable .")
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    scripts = {"right": RIGHT, **{name: {**RIGHT, **wrong} for name, (wrong, _) in WRONG.items()}}
    for name, words in scripts.items():
        (tmp_path / f"{name}.py").write_text(SCRIPT.format(**words))
    command = [sys.executable, "-m", "mypy", "--strict", *(f"{name}.py" for name in scripts)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300).stdout
    errors = {line.partition(".py:")[0]: line for line in found.splitlines() if ": error:" in line}
    assert f"Found {len(WRONG)} errors in {len(WRONG)} files" in found, found
    assert all(said in errors[name] for name, (_, said) in WRONG.items()), found


def test_the_names_of_strategies_are_those_that_there_are():
    assert get_args(StrategyName) == tuple(STRATEGIES)
