"""A checkout whose copy has lost the link trainkit_recipes says what to type, and that works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import ROOT, environment

BERT = ["experiment=bert_quickstart", "--print-config"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout in a folder with a blank in its name, without the link."""
    root = tmp_path / "my copy"
    root.mkdir()
    shutil.copy2(ROOT / "setup.py", root)
    for name in ("trainkit", "recipes", "conf", "launch"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "csrc"))
    return root


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env={**environment(), "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("lost", ["is missing", "is a file"])
@pytest.mark.parametrize("remedy", [r"type: (ln .*?) \(", r"without links: (.*)\)$"])
def test_a_lost_link_is_one_line_with_its_remedy(copy: Path, lost: str, remedy: str) -> None:
    link = copy / "trainkit_recipes"
    if lost == "is a file":
        link.write_text("recipes")  # as git does with core.symlinks=false
    failed = _run(copy, "launch/train.py", *BERT)
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 2 and f"trainkit: error: {link} {lost}, and must be a link" in line
    found = re.search(remedy, line)
    assert found is not None
    subprocess.run(found[1], shell=True, check=True, cwd=copy.parent)
    done = _run(copy, "launch/train.py", *BERT)
    assert done.returncode == 0, done.stderr
    assert "trainkit_recipes.bert" in done.stdout
    assert _run(copy, "setup.py", "--name").returncode == 0


def test_setup_without_the_link(copy: Path) -> None:
    failed = _run(copy, "setup.py", "--name")
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 1 and "trainkit_recipes must be a link to recipes/" in line
    subprocess.run(line.partition("type: ")[2], shell=True, check=True, cwd=copy.parent)
    assert _run(copy, "setup.py", "--name").returncode == 0


def test_a_trained_run_without_the_link(copy: Path) -> None:
    """As `trainkit evaluate` and the scripts of recipes read its configuration: no claim about another's package."""
    code = (
        "from trainkit.config import compose; from trainkit.training.trust import require_ours; require_ours(compose())"
    )
    line = _run(copy, "-c", code).stderr.splitlines()[-1]
    assert "ConfigError" in line and f"{copy / 'trainkit_recipes'} is missing, and must be a link to recipes/" in line
