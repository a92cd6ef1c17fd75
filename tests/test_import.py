"""`import trainkit` and every --help import nothing slow; what only some runs need is imported by its first use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import ROOT, environment

SLOW = ("torch", "hydra", "omegaconf", "numpy", "pydantic", "deepspeed", "PIL", "sympy")
NOT_FOR_A_RUNTIME = (
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "sympy", "hydra", "omegaconf"),
    *("pydantic", "wandb", "tensorboard", "deepspeed", "matplotlib", "pyarrow", "tokenizers", "PIL"),
)
HELP = """\
import contextlib, io, runpy, sys
import trainkit

def imported(names):
    return [name for name in names if name in sys.modules]

print("import trainkit", imported({slow}))
from tests.commands import every
from trainkit.cli.main import main
for command in [["--version"], *([*words.split(), "--help"] for words in every())]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(command)
    print(*command, imported({slow}))
for script in {scripts}:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        (runpy.run_path if script.endswith(".py") else runpy.run_module)(script, run_name="__main__")
    print(script, imported({slow}))
trainkit.Runtime
print("trainkit.Runtime", imported({not_for_a_runtime}))
"""


def test_what_is_imported_by_then():
    scripts = [str(ROOT / "launch" / "train.py"), "recipes.bert.fill", "recipes.progressive_gan.sample"]
    code = HELP.format(slow=SLOW, scripts=scripts, not_for_a_runtime=NOT_FOR_A_RUNTIME)
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.endswith("[]")] == []
    assert len(lines) > 15 and lines[-1].startswith("trainkit.Runtime")


def test_public_names_are_there():
    import trainkit

    assert [name for name in dir(trainkit) if not name.startswith("__")] == sorted(trainkit.__all__)
    for name in trainkit.__all__:
        assert getattr(trainkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Runtim'"):
        trainkit.Runtim  # noqa: B018


def test_help_has_a_line_for_every_public_name():
    import trainkit

    described = [
        name for line in trainkit.__doc__.splitlines()[2:] for name in line.partition("  ")[0].split(", ") if name
    ]
    assert sorted(described) == sorted(trainkit.__all__)


@pytest.mark.parametrize("package", ["trainkit", "trainkit.data", "trainkit.strategy", "trainkit.checkpoint"])
def test_type_checkers_see_what_is_there(package):
    path = ROOT.joinpath(*package.split("."), "__init__.py")
    tree = ast.parse(Path(path).read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "typing" and "lazy" not in str(node.module)
        for alias in node.names
    }
    module = __import__(package, fromlist=["*"])
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {name for name in imported | defined if name[0] != "_" and name not in ("ConfigError", "nearest")} == set(
        module.__all__
    )
    for name in module.__all__:
        assert getattr(module, name) is not None
