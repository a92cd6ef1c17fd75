"""The checkpoints of a run: which there are, which one is meant, and which are deleted."""

import re
import shutil
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

from trainkit.checkpoint.soundness import MAX_MANIFEST_BYTES
from trainkit.checkpoint.store import ADVICE, MANIFEST, delete, read_outside, verify_sizes
from trainkit.errors import CheckpointError
from trainkit.json_text import read_json

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")  # as a Path has it, with one slash


def tidy(checkpoints: Path) -> None:
    """Deletes the incomplete checkpoints of saves that were killed.

    Args:
        checkpoints: a run's `checkpoints` directory.
    """
    for path in checkpoints.glob(".*.tmp"):
        shutil.rmtree(path)


def step_directories(checkpoints: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; incomplete ones have another name.

    Args:
        checkpoints: a run's `checkpoints` directory.
    """
    return sorted(path for path in checkpoints.glob("step_*") if path.name[5:].isdigit())


def set_aside(checkpoints: Path, after: int) -> list[Path]:
    """Renames the checkpoints after a step to `step_*.left`, so that none of them counts as the newest.

    They are damaged, or belong to a branch of the run that was abandoned.

    Args:
        checkpoints: a run's `checkpoints` directory.
        after: the step of the checkpoint from which the run resumes.

    Returns:
        Their new paths.
    """
    moved = []
    for path in step_directories(checkpoints):
        if int(path.name[5:]) > after:
            target = path.with_name(f"{path.name}.left")
            if target.exists():
                delete(target)
            moved.append(path.rename(target))
    return moved


def candidates(path: Path, report: Callable[[str], None] = lambda text: None) -> list[Path]:
    """The checkpoints that a path may refer to.

    Args:
        path: a checkpoint, or a run directory.
        report: called with a message where the checkpoint was being replaced.

    Returns:
        The checkpoint itself, or all checkpoints of the run, newest first.

    Raises:
        CheckpointError: where there is no such directory.
    """
    if not path.exists() and (previous := path.with_name(path.name + ".previous")).is_dir():
        report(f"{path} was being replaced when its run ended: using {previous}")
        path = previous
    if not path.is_dir():
        if url := _URL.match(str(path)):
            there = f"{url[1]}://{url[2]}"
            raise CheckpointError(
                f"{there} is in a store; type: trainkit checkpoint fetch {there} --to DIRECTORY, and give DIRECTORY"
            )
        raise CheckpointError(f"{path}: no such directory; give a run directory or one of its checkpoints/step_*")
    if any(path.glob("rank_*.safetensors*")) or ((path / MANIFEST).is_file() and not _is_of_a_run(path / MANIFEST)):
        return [path]
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    return step_directories(checkpoints)[::-1]


def _is_of_a_run(path: Path) -> bool:
    """Whether a manifest says what a run was made of, and not what a checkpoint holds."""
    try:
        found = read_json(path, MAX_MANIFEST_BYTES)
    except (OSError, ValueError):  # a damaged one is reported as that of a checkpoint
        return False
    return isinstance(found, dict) and "run" in found and "files" not in found


def find(path: Path, report: Callable[[str], None] = lambda text: None) -> Path:
    """The newest of the `candidates` whose files have the right sizes; `verify` compares checksums.

    Args:
        path: a checkpoint, or a run directory.
        report: called with a message about each checkpoint that is passed over.

    Returns:
        Its directory.

    Raises:
        CheckpointError: where there is none.
    """
    passed_over: list[CheckpointError] = []
    for directory in candidates(path, report):
        try:
            verify_sizes(directory, read_outside(directory)["files"])
        except CheckpointError as error:
            if directory == path:
                raise
            passed_over.append(error)
            continue
        for what in passed_over:
            report(f"passed over: {what}")
        return directory
    raise no_complete_checkpoint(path, passed_over)


def no_complete_checkpoint(path: Path, passed_over: Sequence[CheckpointError] = ()) -> CheckpointError:
    """The error for a run directory without a complete checkpoint.

    Args:
        path: of the run.
        passed_over: what is wrong with its checkpoints, newest first.
    """
    if passed_over:
        newest = str(passed_over[0]).removesuffix(f"; {ADVICE}")
        return CheckpointError(f"{path} holds no complete trainkit checkpoint; of the newest, {newest}")
    return CheckpointError(
        f"{path} holds no complete trainkit checkpoint; give a run directory or a checkpoints/step_* in one"
    )


def superseded(
    steps: Sequence[str], *, keep_last: int, keep_every: int | None = None, kept: Container[str | None] = ()
) -> list[str]:
    """The checkpoints of a run that are not to be kept.

    Args:
        steps: their names, `step_*`, oldest first.
        keep_last: number of the newest ones that are kept.
        keep_every: checkpoints of steps that are a multiple of it are kept too; None: of no such step.
        kept: names of more that are kept.
    """
    return [
        name for name in steps[:-keep_last] if name not in kept and not (keep_every and int(name[5:]) % keep_every == 0)
    ]


def prune(checkpoints: Path, names: Iterable[str]) -> None:
    """Deletes checkpoints of a run.

    Args:
        checkpoints: a run's `checkpoints` directory.
        names: of those that are deleted.
    """
    for name in names:
        delete(checkpoints / name)
