"""Code: the version control state and the modules of the process that trains."""

import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from trainkit.version import __version__

DIFF = "code.diff"
MAX_DIFF_BYTES = 1 << 20
_OWN = Path(__file__).resolve().parents[2]
_PATIENCE_S = 20.0


def describe() -> dict[str, Any]:
    """Returns the code of this process, as a manifest holds it.

    Returns:
        `trainkit` (version, how it was installed, hash of what its installer wrote), `repositories` (of trainkit's
        checkout and of the current directory, by path: commit, and the hash of the difference to it), and `modules`:
        the sha256 of the file of each imported module that neither Python nor another package brought.
    """
    return {"trainkit": _trainkit(), "repositories": repositories(), "modules": modules()}


def modules() -> dict[str, str]:
    """Returns the sha256 of the files of imported modules of trainkit, its recipes, and the user's own."""
    return {name: _sha256(path, path.stat().st_mtime_ns) for name, path in sorted(_files_of_modules())}


def modules_by_name(names: Iterable[str]) -> dict[str, str]:
    """Returns the sha256 of the files that modules have here, without importing them; of those that are found.

    Args:
        names: of modules of trainkit, its recipes or the user's own.
    """
    found = {}
    for name in names:
        path = _path_of(name)
        if path is not None and path.is_file():
            found[name] = _sha256(path, path.stat().st_mtime_ns)
    return found


def _path_of(name: str) -> Path | None:
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # ValueError: __main__ has none
        return None
    if spec is None or not rest:
        return Path(spec.origin) if spec is not None and spec.origin else None
    for root in spec.submodule_search_locations or ():
        path = Path(root, *rest)
        if path.is_dir():
            return path / "__init__.py"
        for candidate in (path.with_suffix(".py"), *path.parent.glob(f"{path.name}.*.so")):
            if candidate.is_file():
                return candidate
    return None


def repositories() -> dict[str, dict[str, Any]]:
    """Returns the state of the git repositories of trainkit and of the current directory, by their paths."""
    roots = dict.fromkeys(_root(path) for path in (_OWN, Path.cwd()))
    return {str(root): _state(root) for root in roots if root is not None}


def difference_of(root: Path) -> bytes:
    """Returns the difference of the tracked files of a repository to its commit, as `git apply` takes it.

    Args:
        root: of the repository.
    """
    return _git(root, "diff", "--no-ext-diff", "--no-color", "--binary", "HEAD") or b""


def has_commit(root: Path, commit: str) -> bool:
    """Returns whether a repository holds a commit.

    Args:
        root: of the repository.
        commit: its hash.
    """
    return _git(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def _trainkit() -> dict[str, Any]:
    try:
        found = importlib.metadata.distribution("trainkit")
    except importlib.metadata.PackageNotFoundError:  # a bare checkout
        return {"version": __version__, "installed": "not installed: imported from a directory"}
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    is_editable = origin.get("dir_info", {}).get("editable", False)
    record = found.read_text("RECORD")
    return {
        "version": __version__,
        "installed": "editable" if is_editable else "wheel",
        "archive_hashes": origin.get("archive_info", {}).get("hashes", {}),
        "record_sha256": None if record is None else hashlib.sha256(record.encode()).hexdigest(),
    }


def _state(root: Path) -> dict[str, Any]:
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None}
    difference = difference_of(root)
    unknown = (_git(root, "ls-files", "--others", "--exclude-standard", "-z") or b"").split(b"\0")
    return {
        "commit": commit.decode().strip(),
        "is_clean": not difference,
        "diff_sha256": hashlib.sha256(difference).hexdigest() if difference else None,
        "num_untracked": len([name for name in unknown if name]),
    }


@cache
def _root(path: Path) -> Path | None:
    found = _git(path, "rev-parse", "--show-toplevel")
    return None if found is None else Path(found.decode().rstrip("\n"))


def _git(directory: Path, *arguments: str) -> bytes | None:
    """What git prints; None where there is no git, no repository, or it does not answer."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _files_of_modules() -> Iterator[tuple[str, Path]]:
    """Those of trainkit, its recipes and the user, by the names of the modules."""
    for name, module in sys.modules.copy().items():  # another thread may import
        file = getattr(module, "__file__", None)
        if name == "__mp_main__" or not isinstance(file, str):  # __main__ again
            continue
        top = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
        if _is_described(file, top if isinstance(top, str) else None) and (path := Path(file)).is_file():
            yield (f"__main__ ({path.name})" if name == "__main__" else name), path


@cache  # of the thousands of modules of a process with torch it would take a tenth of a second each time
def _is_described(file: str, top: str | None) -> bool:
    """Whether a module's file, and that of its package, are not of Python or another package."""
    path = Path(file)
    if path.suffix not in (".py", ".so"):
        return False
    if _is_ours(path):
        return True
    # What an installed package wrote in a folder of its own, as torch.compile does with each kernel, is its own too.
    return not _is_installed(path) and (top is None or not _is_installed(Path(top)))


def _is_ours(path: Path) -> bool:
    """Whether it is of trainkit or its recipes, wherever these are installed."""
    return path.is_relative_to(_OWN) and path.relative_to(_OWN).parts[0] in ("trainkit", "trainkit_recipes", "recipes")


@cache
def _installed() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(path) for kind in kinds if (path := sysconfig.get_path(kind)))


def _is_installed(path: Path) -> bool:
    """Whether Python or an installed package brought it."""
    is_packaged = "site-packages" in path.parts or "dist-packages" in path.parts
    return is_packaged or any(path.is_relative_to(root) for root in _installed())


@cache
def _sha256(path: Path, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
