"""Imports point down only: a module may import modules of lower layers, and its own package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down; modules on one line are independent of one another unless they are of one package.
LAYERS = (
    ("cli",),
    ("job", "testing"),
    ("trainer",),
    ("training",),
    ("runtime",),
    ("strategy", "checkpoint", "health"),
    ("recipe", "prune"),
    ("engine",),
    ("data", "precision"),
    ("modules",),
    ("reduction", "optim", "tracking"),
    ("planning",),
    ("topology", "memory"),
    ("distributed", "ops"),
    ("random", "config", "cache"),
    ("errors", "lazy"),
)
LEVEL = {name: len(LAYERS) - i for i, names in enumerate(LAYERS) for name in names}
KNOWS_HYDRA = {"config"}


def _modules() -> list[Path]:
    return sorted(p for p in (ROOT / "trainkit").rglob("*.py") if p != ROOT / "trainkit" / "__init__.py")


def _imports(path: Path) -> list[str]:
    """Full names of what a file imports, except where only a type checker looks."""
    tree = ast.parse(path.read_text())
    unseen = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_module_has_a_layer():
    assert {path.relative_to(ROOT / "trainkit").parts[0].removesuffix(".py") for path in _modules()} <= LEVEL.keys()


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    mine = path.relative_to(ROOT / "trainkit").parts[0].removesuffix(".py")
    for name in _imports(path):
        if not name.startswith("trainkit."):
            assert name.split(".")[0] not in ("recipes", "trainkit_recipes", "tests", "benchmarks", "launch"), (
                f"{path} imports {name}"
            )
            continue
        theirs = name.split(".")[1]
        if theirs in LEVEL and theirs != mine:
            assert LEVEL[theirs] < LEVEL[mine], f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_configuration_knows_hydra(path):
    mine = path.relative_to(ROOT / "trainkit").parts[0].removesuffix(".py")
    if mine not in KNOWS_HYDRA:
        assert not [name for name in _imports(path) if name.split(".")[0] in ("hydra", "omegaconf")]


@pytest.mark.parametrize("folder", ["recipes", "launch", "benchmarks"])
def test_users_use_public_names_only(folder):
    import trainkit

    public = {f"trainkit.{name}" for name in trainkit.__all__} | {"trainkit"}
    packages = (
        "trainkit.topology.",
        "trainkit.planning.",
        "trainkit.reduction.",
        "trainkit.distributed.",
        "trainkit.data.",
        "trainkit.ops.",
        "trainkit.precision.",
        "trainkit.errors.",
        "trainkit.tracking.",
        "trainkit.cli.",
        "trainkit.testing.",
    )
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name in _imports(path):
            if name.split(".")[0] == "trainkit":
                assert name in public or name.startswith(packages), f"{path} imports {name}, which is not public"


def test_names_of_tests_are_under_60_letters():
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert names and [name for name in names if len(name) >= 60] == []
