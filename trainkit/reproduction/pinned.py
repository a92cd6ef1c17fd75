"""Pinned: a virtual environment with the packages and the code of a manifest."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainkit import manifest
from trainkit.errors import ConfigError, UntrustedError
from trainkit.manifest import code
from trainkit.reproduction.requirements import is_local, requirements

_SOURCE, _REQUIREMENTS = "source", "requirements.txt"


def build(run: Path, directory: Path, *, trust: bool, report: Callable[[str], None]) -> Path:
    """Makes a virtual environment.

    pip installs, since it knows the indexes that this machine is configured for; uv brings a Python that is not here.

    Args:
        run: the directory of a run.
        directory: of the environment; one that was made before is used as it is.
        trust: whether changes that were not committed, which the run directory holds, may be applied to the code.
        report: called with a line for each step.

    Returns:
        Its Python.

    Raises:
        ConfigError: it cannot be made: what failed, and what to do. UntrustedError where `trust` is needed.
        DataError: the run has no manifest, or it cannot be read.
    """
    found, python = manifest.read(run), directory / "bin" / "python"
    made = directory / "made"
    if made.is_file() and python.is_file():
        report(f"uses the environment in {directory}")
        return python
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"--environment={directory} is not empty: give another directory")
    source = _source(found, run, trust=trust)  # before anything is made
    version = str(found["environment"].get("python"))
    report(f"makes an environment with Python {version} in {directory}")
    _make(directory, version)
    lines = requirements(found["environment"])
    (directory / _REQUIREMENTS).write_text("\n".join(lines) + "\n")
    report(f"installs {len(lines)} packages of exact versions: some minutes")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    local = is_local(found["environment"])
    of_torch = (
        f"; builds of torch for {local} have an index of their own: set PIP_EXTRA_INDEX_URL to it" if local else ""
    )
    failure = f"the packages could not be installed{of_torch}"
    _run([*install, "-r", str(directory / _REQUIREMENTS)], failure)
    where = source(directory / _SOURCE)
    report(f"installs trainkit from {where}")
    _run([*install, "--no-build-isolation", where], "trainkit could not be installed")
    made.write_text("")
    return python


def _make(directory: Path, version: str) -> None:
    minor = ".".join(version.split(".")[:2])
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    program, uv = sys.executable if own == minor else shutil.which(f"python{minor}"), shutil.which("uv")
    if program is not None:
        _run([program, "-m", "venv", str(directory)], "the environment could not be made")
    elif uv is not None:
        _run([uv, "venv", "--seed", "--python", version, str(directory)], f"uv found no Python {version}")
    else:
        raise ConfigError(f"the run had Python {version}, and there is no python{minor} here: install it, or uv")


def _source(found: Mapping[str, Any], run: Path, *, trust: bool) -> Callable[[Path], str]:
    """Returns what puts the code of a manifest into a directory and names what is to be installed."""
    own = found["code"].get("trainkit")
    facts = own if isinstance(own, Mapping) else {}
    state = _state_of_trainkit(found)
    if facts.get("installed") == "wheel" or state is None:
        version = facts.get("version")
        return lambda directory: f"trainkit=={version}"
    commit, root = str(state.get("commit")), _repository(str(state.get("commit")))
    difference = state.get("diff")
    if difference is not None and not trust:
        raise UntrustedError(f"{run / str(difference)}, changes to the code that were not committed,")

    def extract(directory: Path) -> str:
        directory.mkdir()
        archive = directory.with_suffix(".tar").absolute()
        _run(["git", "-C", str(root), "archive", "-o", str(archive), commit], "git could not read the commit")
        shutil.unpack_archive(archive, directory, filter="data")
        archive.unlink()
        if difference is not None:
            patch = run.resolve() / Path(str(difference)).name
            _run(["git", "-C", str(directory), "apply", str(patch)], f"{patch} could not be applied")
        return str(directory)

    return extract


def _state_of_trainkit(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state of the repository that trainkit itself was in; None where it was in none."""
    states = found["code"].get("repositories")
    if not isinstance(states, Mapping) or not states:
        return None
    state = next(iter(states.values()))  # trainkit's own comes first
    return state if isinstance(state, Mapping) and state.get("commit") else None


def _repository(commit: str) -> Path:
    """The repository of trainkit that has the commit: that of this very trainkit, or the current directory's."""
    for root in map(Path, code.repositories()):
        if not commit.startswith("-") and code.has_commit(root, commit):
            return root
    raise ConfigError(
        f"the run's code is commit {commit[:12]} of trainkit, which no repository here has: go to a checkout of "
        f"trainkit, type git fetch, and try again"
    )


def _run(command: Sequence[str], failure: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}"
        raise ConfigError(f"{failure}: {last}")
