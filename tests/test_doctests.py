"""The examples in docstrings give what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("trainkit", "trainkit_recipes")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text()
)


def test_examples_are_found():
    assert {"trainkit.errors", "trainkit.prune.magnitude"} <= {*MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = import_module(name.removesuffix(".__init__"))
    failed, num_examples = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert num_examples and not failed
