"""Checkpoint directories: written whole or not at all, read with every byte accounted for, never run as code."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from trainkit.errors import CheckpointError

FORMAT = 3
MANIFEST = "manifest.json"
_OWN_SUM = "sha256"
_READ_BYTES = 1 << 20
_ADVICE = "resume from another checkpoint beside it"


def temporary(directory: Path) -> Path:
    """Where a checkpoint is written until it is whole; the same for all ranks."""
    return directory.with_name(f".{directory.name}.tmp")


def complete(written: Path, directory: Path, manifest: Mapping[str, Any]) -> None:
    """Adds the manifest to what was `written`, flushes it to disk, and gives it its name.

    A directory of that name is kept as `<name>.previous` until the new one is in place.
    """
    # Through JSON first: it is what will be read back, and its keys are text and sort as text.
    whole = json.loads(json.dumps({"format": FORMAT, **manifest}))
    (written / MANIFEST).write_text(json.dumps({**whole, _OWN_SUM: _sum_of(whole)}))
    _flush(written / MANIFEST)
    _flush(written)
    _take_name(written, directory)


def write_text(path: Path, text: str) -> None:
    """Writes a file of text, whole or not at all: without room, what was there before stays. Raises OSError."""
    half = path.with_name(f".{path.name}.tmp")
    try:
        half.write_text(text)
        half.replace(path)
    except OSError:
        half.unlink(missing_ok=True)
        raise


def tidy(checkpoints: Path) -> None:
    """Deletes what saves that were killed have left in a run's `checkpoints` directory."""
    for path in checkpoints.glob(".*.tmp"):
        shutil.rmtree(path)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at `directory`; CheckpointError when it is none of ours."""
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{directory} is not a trainkit checkpoint: it has no {MANIFEST}; "
            f"give a run directory or one of its checkpoints/step_* directories"
        )
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; {_ADVICE}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not of checkpoint format {FORMAT}: it was written by another version or program"
        )
    if manifest.pop(_OWN_SUM, None) not in (_sum_of(manifest), _sum_of(_with_integer_keys(manifest))):
        raise CheckpointError(f"{path} is damaged: its contents do not add up to its {_OWN_SUM}; {_ADVICE}")
    return manifest


def _sum_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _with_integer_keys(tree: Any) -> Any:
    """The tree as it was before JSON made text of its integer keys: early checkpoints of format 3 hold its sum."""
    if isinstance(tree, list):
        return [_with_integer_keys(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    are_integers = all(re.fullmatch(r"0|-?[1-9]\d*", key) for key in tree)
    return {int(key) if are_integers else key: _with_integer_keys(value) for key, value in tree.items()}


def verify(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises CheckpointError naming the first of `files` that is missing, cut short or changed."""
    _verify_sizes(directory, files)
    for name, expected in files.items():
        path = directory / name
        try:
            found = _sum_of_file(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; {_ADVICE}") from error
        if found != expected["xxh3_128"]:
            raise CheckpointError(f"{path} is damaged: its sum (XXH3) is not the one in {MANIFEST}; {_ADVICE}")


def _sum_of_file(path: Path) -> str:
    total, buffer = xxhash.xxh3_128(), memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(buffer):
            total.update(buffer[:num_bytes])
    return total.hexdigest()


def _verify_sizes(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the checkpoint is not whole; {_ADVICE}")
        num_bytes = path.stat().st_size
        if num_bytes != expected["num_bytes"]:
            raise CheckpointError(f"{path} has {num_bytes} bytes instead of {expected['num_bytes']}; {_ADVICE}")


def step_directories(checkpoints: Path) -> list[Path]:
    """The checkpoints in a run's `checkpoints` directory, oldest first; unfinished ones have another name."""
    return sorted(path for path in checkpoints.glob("step_*") if path.name[5:].isdigit())


def set_aside(checkpoints: Path, after: int) -> list[Path]:
    """Renames the checkpoints of steps `after` the one that a run goes on from to `step_*.left`; their new names.

    They are damaged, or of a course that the run does not take: they must not count as its newest.
    """
    moved = []
    for path in step_directories(checkpoints):
        if int(path.name[5:]) > after:
            target = path.with_name(f"{path.name}.left")
            if target.exists():
                _delete(target)
            moved.append(path.rename(target))
    return moved


def candidates(path: Path, report: Callable[[str], None] = lambda text: None) -> list[Path]:
    """What `path` may mean: the checkpoint that it is, or those of a run directory, newest first.

    Raises CheckpointError when there is none.
    """
    if not path.exists() and (previous := path.with_name(path.name + ".previous")).is_dir():
        report(f"{path} was being replaced when its run ended: taking {previous}")
        path = previous
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: there is no such directory; give a run directory or one of its checkpoints/step_*"
        )
    if (path / MANIFEST).is_file() or any(path.glob("rank_*.safetensors")):
        return [path]
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    return step_directories(checkpoints)[::-1]


def find(path: Path, report: Callable[[str], None] = lambda text: None) -> Path:
    """The newest of the `candidates` that has all its bytes, whatever they are: `verify` sums them up.

    Those passed over are told to `report`. Raises CheckpointError when there is none.
    """
    for directory in candidates(path, report):
        try:
            _verify_sizes(directory, read_manifest(directory)["files"])
        except CheckpointError as error:
            if directory == path:
                raise
            report(f"passed over: {error}")
            continue
        return directory
    raise none_is_whole(path)


def none_is_whole(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} holds no whole trainkit checkpoint; give a run directory or a checkpoints/step_* in one"
    )


def prune(checkpoints: Path, *, keep_last: int, keep_every: int | None = None, best: Path | None = None) -> None:
    """Deletes all but the newest `keep_last` checkpoints, those of every `keep_every` steps, and `best`."""
    for path in step_directories(checkpoints)[:-keep_last]:
        if path != best and not (keep_every and int(path.name[5:]) % keep_every == 0):
            _delete(path)


def _take_name(temporary: Path, directory: Path) -> None:
    previous = directory.with_name(directory.name + ".previous")
    if directory.exists():
        if previous.exists():
            _delete(previous)
        directory.rename(previous)
    temporary.rename(directory)
    _flush(directory.parent)
    if previous.exists():
        _delete(previous)


def _delete(path: Path) -> None:
    """Deletes a checkpoint; of one that is a link to elsewhere, the link alone."""
    if path.is_symlink():
        path.unlink()
        return
    # The manifest goes first, so that what is left of an interrupted deletion is not taken for a checkpoint.
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
