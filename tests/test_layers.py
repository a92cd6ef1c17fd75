"""Imports point down only: a module may import modules of lower layers, and its own package."""

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import trainkit

ROOT = Path(__file__).parent.parent
# From the top down; modules on one line are independent of one another unless they are of one package.
LAYERS = (
    ("cli",),
    ("sweep", "launcher", "forecast"),
    ("reproduction", "benchmark"),
    ("job", "testing"),
    ("trainer",),
    ("dashboard",),
    ("training", "enlarge"),
    ("recipe",),
    ("runtime",),
    ("strategy", "checkpoint", "health", "export", "audit", "manifest"),
    ("prune",),
    ("engine",),
    ("data", "precision", "evaluation"),
    ("modules",),
    ("reduction", "optim", "tracking"),
    ("planning",),
    ("topology", "memory"),
    ("distributed", "ops"),
    ("storage",),
    ("random", "config", "cache", "encryption"),
    ("errors", "json_text", "lazy", "logger", "public_url", "version"),
    ("whole_file",),
)
LEVEL = {name: len(LAYERS) - i for i, names in enumerate(LAYERS) for name in names}
KNOWS_HYDRA = {"config"}


USERS = ("recipes", "launch", "benchmarks", "examples")


def _modules() -> list[Path]:
    return sorted(p for p in (ROOT / "trainkit").rglob("*.py") if p != ROOT / "trainkit" / "__init__.py")


def _imports(path: Path) -> list[str]:
    """Full names of what a file imports, for type checkers only included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _cycle(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules that import one another in a circle, the first one again at the end; none where there is no circle."""
    sorter = TopologicalSorter(imports)
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _module_imports(root: Path, folders: Iterable[str]) -> dict[str, set[str]]:
    """Module -> modules of `folders` that it imports."""
    paths = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in folders
        for path in (root / folder).rglob("*.py")
    }
    graph = {}
    for module, path in paths.items():
        names = {name if name in paths else name.rpartition(".")[0] for name in _imports(path)}
        graph[module] = {name for name in names if name in paths and name != module}
    return graph


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


def test_no_module_imports_itself_through_others():
    assert _cycle(_module_imports(ROOT, ("trainkit", *USERS))) == []


def test_a_cycle_for_type_checkers_is_found(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "high.py").write_text("from package.low import Low")
    (package / "low.py").write_text("if TYPE_CHECKING:\n    from package.high import High")
    assert set(_cycle(_module_imports(tmp_path, ("package",)))) == {"package.high", "package.low"}


def _is_public(name: str) -> bool:
    """Whether `__all__` of trainkit, or of a package or a module in it, lists a name; or it is one of these itself."""
    parts = name.split(".")
    if parts in (["trainkit"], ["trainkit", "__version__"]):
        return True
    if len(parts) == 2:
        return parts[1] in trainkit.__all__
    listed = getattr(import_module(".".join(parts[:2])), "__all__", ())
    return len(parts) == 3 and parts[2] in listed


@pytest.mark.parametrize("folder", USERS)
def test_users_use_public_names_only(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name in _imports(path):
            if name.split(".")[0] == "trainkit":
                assert _is_public(name), f"{path} imports {name}, which is in no __all__"


@pytest.mark.parametrize("name", ["trainkit.lazy", "trainkit.data.order.Order", "trainkit.errors.nowhere"])
def test_other_names_are_private(name):
    assert not _is_public(name)


def test_names_of_tests_are_under_60_letters():
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert names and [name for name in names if len(name) >= 60] == []
