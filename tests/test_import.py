"""`import trainkit` and every --help import nothing slow; what only some runs need is imported by its first use."""

import ast
import importlib
import subprocess
import sys

import pytest

from tests.jobs import ROOT, environment

SLOW = ("torch", "hydra", "omegaconf", "numpy", "pydantic", "deepspeed", "PIL", "sympy")
NOT_FOR_A_RUNTIME = (
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "sympy", "hydra", "omegaconf"),
    *("pydantic", "wandb", "tensorboard", "deepspeed", "matplotlib", "pyarrow", "tokenizers", "PIL"),
)
NOT_FOR_A_RECIPE = (
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "sympy", "sklearn", "peft"),
    *("onnx", "onnxruntime", "transformers", "wandb", "matplotlib", "tokenizers", "pandas"),
)
RECIPES = ("bert.pretrain", "bert.finetuning.recipe", "progressive_gan.train")
NOT_FOR_A_STEP = ("pandas", *(name for name in NOT_FOR_A_RUNTIME if name not in ("hydra", "omegaconf", "pydantic")))
HELP = """\
import contextlib, importlib, io, runpy, sys
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
from tests.user.toy import Toy
step, found = Toy.train_step, []

def train_step(self, batch):
    metrics = step(self, batch)
    found.extend(imported({not_for_a_step}))
    return metrics

Toy.train_step = train_step
options = ["experiment=toy_short", "tracking=none", "tracking.jsonl=false", "device=cpu", "run_dir=null"]
with contextlib.redirect_stdout(sys.stderr):
    assert main(["train", "--config-dir", {user!r}, *options]) == 0
print("a step of a run", found + imported(["torch._dynamo"]))
for module in {recipes}:
    importlib.import_module(module)
print("recipes", imported({not_for_a_recipe}))
"""


def test_what_is_imported_by_then():
    scripts = [
        str(ROOT / "launch" / "train.py"),
        "trainkit_recipes.bert.fill",
        "trainkit_recipes.progressive_gan.sample",
        "trainkit_recipes.progressive_gan.measure",
    ]
    code = HELP.format(
        slow=SLOW,
        scripts=scripts,
        not_for_a_runtime=NOT_FOR_A_RUNTIME,
        recipes=[f"trainkit_recipes.{name}" for name in RECIPES],
        not_for_a_recipe=NOT_FOR_A_RECIPE,
        not_for_a_step=NOT_FOR_A_STEP,
        user=str(ROOT / "tests" / "user" / "conf"),
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.endswith("[]")] == []
    assert len(lines) > 15 and [line.rpartition(" ")[0] for line in lines[-2:]] == ["a step of a run", "recipes"]


@pytest.mark.parametrize("name", ["data", "ops", "optim", "prune", "strategy", "tracking"])
def test_dir_of_a_package_is_what_it_exports(name):
    package = importlib.import_module(f"trainkit.{name}")
    assert [found for found in dir(package) if not found.startswith("__")] == sorted(package.__all__)


def test_public_names_are_there():
    import trainkit

    assert [name for name in dir(trainkit) if not name.startswith("__")] == sorted(trainkit.__all__)
    for name in trainkit.__all__:
        assert getattr(trainkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Runtim'"):
        trainkit.Runtim  # type: ignore[attr-defined]  # noqa: B018


def test_help_has_a_line_for_every_public_name():
    import trainkit

    described = [
        name for line in trainkit.__doc__.splitlines()[2:] for name in line.partition("  ")[0].split(", ") if name
    ]
    assert sorted(described) == sorted(trainkit.__all__)


@pytest.mark.parametrize("package", ["trainkit", "trainkit.data", "trainkit.strategy", "trainkit.checkpoint"])
def test_type_checkers_see_what_is_found_by_its_first_use(package):
    tree = ast.parse(ROOT.joinpath(*package.split("."), "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name for node in imports for alias in node.names}
    rest = [node for node in tree.body if node not in blocks]
    defined = {alias.name for node in rest if isinstance(node, ast.ImportFrom) for alias in node.names}
    for node in rest:
        defined |= {node.name} if isinstance(node, ast.FunctionDef) else set()
        defined |= {ast.unparse(target) for target in node.targets} if isinstance(node, ast.Assign) else set()
    module = importlib.import_module(package)
    assert seen <= set(module.__all__) <= seen | defined
    for name in module.__all__:
        assert getattr(module, name) is not None
