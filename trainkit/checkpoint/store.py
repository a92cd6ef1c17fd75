"""Checkpoint directories: written whole or not at all, read with every byte accounted for, never run as code."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainkit.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"


def write(directory: Path, tensors: Mapping[str, Mapping[str, Tensor]], manifest: Mapping[str, Any]) -> None:
    """Writes `<name>.safetensors` for each of `tensors`, and `manifest` with every file's size and SHA-256.

    All goes into a temporary directory beside `directory`, is flushed to disk, and then takes its name. A directory of
    that name is kept as `<name>.previous` until the new one is in place. Raises CheckpointError and leaves nothing.
    """
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        files = {}
        for name, group in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: tensor.detach().contiguous().cpu() for key, tensor in group.items()}, path)
            files[path.name] = {"num_bytes": path.stat().st_size, "sha256": _sha256(path)}
        whole = {"format": FORMAT, **manifest, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(whole, indent=1))
        for name in files:
            # safetensors writes for the owner alone; the rest of the team may read what its umask allows.
            (temporary / name).chmod((temporary / MANIFEST).stat().st_mode)
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        _take_name(temporary, directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"could not write the checkpoint {directory}: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
        raise CheckpointError(f"{path} is damaged: {error}; resume from another checkpoint beside it") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not of checkpoint format {FORMAT}: it was written by another version or program"
        )
    return manifest


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """The tensors written as `name`; `verify` comes first."""
    return load_file(directory / f"{name}.safetensors")


def verify(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises CheckpointError naming the first of `files` that is missing, cut short or changed."""
    for name, expected in files.items():
        path = directory / name
        advice = "resume from another checkpoint beside it"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the checkpoint is not whole; {advice}")
        num_bytes = path.stat().st_size
        if num_bytes != expected["num_bytes"]:
            raise CheckpointError(f"{path} has {num_bytes} bytes instead of {expected['num_bytes']}; {advice}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}; {advice}")


def step_directories(checkpoints: Path) -> list[Path]:
    """The checkpoints in a run's `checkpoints` directory, oldest first; unfinished ones have another name."""
    return sorted(path for path in checkpoints.glob("step_*") if path.name[5:].isdigit())


def find(path: Path, report: Callable[[str], None] = lambda text: None) -> Path:
    """The checkpoint meant by `path`: itself, or the newest whole one of a run directory.

    Damaged ones on the way are passed to `report`. Raises CheckpointError when there is none.
    """
    if not path.exists() and (previous := path.with_name(path.name + ".previous")).is_dir():
        report(f"{path} was being replaced when its run ended: taking {previous}")
        path = previous
    if not path.is_dir():
        raise CheckpointError(f"resume={path}: there is no such directory")
    if (path / MANIFEST).is_file():
        return path
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for candidate in reversed(step_directories(checkpoints)):
        try:
            verify(candidate, read_manifest(candidate)["files"])
        except CheckpointError as error:
            report(f"passed over: {error}")
            continue
        return candidate
    raise CheckpointError(
        f"{path} holds no whole trainkit checkpoint; give a run directory or a checkpoints/step_* in one"
    )


def prune(checkpoints: Path, *, keep_last: int, best: Path | None) -> None:
    """Deletes all but the newest `keep_last` checkpoints and `best`."""
    for path in step_directories(checkpoints)[:-keep_last]:
        if path != best:
            # The manifest goes first, so that what is left of an interrupted deletion is not taken for a checkpoint.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)


def _take_name(temporary: Path, directory: Path) -> None:
    previous = directory.with_name(directory.name + ".previous")
    if directory.exists():
        if previous.exists():
            shutil.rmtree(previous)
        directory.rename(previous)
    temporary.rename(directory)
    _flush(directory.parent)
    if previous.exists():
        shutil.rmtree(previous)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
