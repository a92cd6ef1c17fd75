"""Directories that are built once and then found: keyed by content, and there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from trainkit.errors import DataError

ENVIRONMENT_VARIABLE = "TRAINKIT_CACHE"


def cache_root(cache_dir: Path | None = None) -> Path:
    """`cache_dir`, else $TRAINKIT_CACHE, else ~/.cache/trainkit."""
    return Path(cache_dir or os.environ.get(ENVIRONMENT_VARIABLE) or Path.home() / ".cache" / "trainkit").expanduser()


def cached(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The directory `root/name`; when it is not there, `build(directory)` fills one aside, which is then renamed.

    Processes may race: each builds its own, one is kept, and all return the same path. `name` must hold everything
    that the content depends on (a hash of the inputs, the settings and the version of the format).
    Raises DataError when the directory cannot be written.
    """
    target = root / name
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    except OSError as error:
        raise DataError(
            f"the cache directory {root} cannot be written ({error.strerror}); "
            f"set data.cache_dir=DIRECTORY or {ENVIRONMENT_VARIABLE}=DIRECTORY to one that can"
        ) from error
    try:
        build(aside)
        aside.chmod(0o755)  # mkdtemp's 0700 would shut out the other users of a shared cache
        _move(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _move(aside: Path, target: Path) -> None:
    try:
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first: its content is the same
            raise
