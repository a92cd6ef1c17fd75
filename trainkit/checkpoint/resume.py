"""Resume: the one decision which checkpoint a run resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainkit.checkpoint.copies import Copies
from trainkit.checkpoint.fetching import fetch_newest, found_at, read_copied
from trainkit.checkpoint.of_a_run import find, step_directories
from trainkit.checkpoint.store import read_manifest
from trainkit.distributed.agent import is_restart
from trainkit.errors import CheckpointError, ConfigError
from trainkit.public_url import is_url
from trainkit.storage import Location, locate


def to_resume(
    resume: str,
    run_dir: Path | None,
    copies: Copies | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Path | None:
    """Decides which run or checkpoint a run resumes, as this process sees the directory.

    Args:
        resume: `auto`, `never`, or the path of a run or a checkpoint.
        run_dir: of the run; None: it has none.
        copies: of its checkpoints in a store; with `auto`, and after a restart, one that is newer than those here is
            fetched.
        report: called with lines about that.

    Returns:
        A directory of checkpoints, or `resume` as a path; None: the run starts from scratch.

    Raises:
        ConfigError: for `never` in a run directory that has checkpoints, or with copies of some.
        StorageError: where the store does not answer.
    """
    own = run_dir / "checkpoints" if run_dir is not None else None
    has_own = own is not None and bool(step_directories(own))
    # A restarted job resumes its own checkpoints, not those that it started from.
    if resume == "auto" or is_restart():
        if copies is not None and own is not None:
            has_own = _fetch_newer(copies, own, has_own, report)
        if has_own or resume == "auto":
            return own if has_own else None
    if resume != "never":
        return Path(resume).expanduser()
    if has_own:
        raise _refused(own, "run_dir")
    if copies is not None and copies.steps():
        raise _refused(copies.folder.shown, "copy_to")
    return None


def manifest_to_resume(resume: str, run_dir: Path | None, copy_to: str | Path | None) -> dict[str, Any] | None:
    """Reads the manifest of the checkpoint that a run resumes; of one in a store nothing else is fetched.

    Args:
        resume: `auto`, `never`, or the path or URL of a run or a checkpoint.
        run_dir: of the run; None: it has none.
        copy_to: the folder of its copies; None: there are none.

    Returns:
        The manifest; None: the run starts from scratch.

    Raises:
        CheckpointError: where it cannot be read.
        ConfigError: as by `to_resume`.
        StorageError: where the store does not answer.
    """
    own = to_resume("auto", run_dir) if resume == "auto" or is_restart() else None
    if copy_to is not None and (resume == "auto" or is_restart()):
        later = _later(Copies(locate(copy_to)), own)
        if later:
            return read_copied(later[0], read_manifest)
    if is_url(resume) and own is None:
        return read_copied(found_at(resume)[0], read_manifest)
    path = own if own is not None else to_resume(resume, run_dir)
    return read_manifest(find(path)) if path is not None else None


def _refused(where: Path | str | None, key: str) -> ConfigError:
    return ConfigError(f"resume=never, and {where} holds checkpoints: give another {key}, or resume=auto to resume")


def _later(copies: Copies, own: Path | None) -> list[Location]:
    """The copies that are newer than the whole checkpoints here, newest first."""
    try:
        newest = int(find(own).name[5:]) if own is not None else -1
    except CheckpointError:  # there is none here
        newest = -1
    return [copies.at(name) for name in reversed(copies.steps()) if int(name[5:]) > newest]


def _fetch_newer(copies: Copies, own: Path, has_own: bool, report: Callable[[str], None]) -> bool:
    """Fetches the newest copy, where no whole checkpoint here is as new; returns whether there is one here then."""
    later = _later(copies, own if has_own else None)
    try:
        return bool(later and fetch_newest(later, own, report)) or has_own
    except CheckpointError:  # each was reported; what is here is resumed
        if not has_own:
            raise
        return True
