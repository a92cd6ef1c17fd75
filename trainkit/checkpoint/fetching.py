"""Fetching: checkpoints of a store, found by a URL, and copied to this machine with every byte checked."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainkit.checkpoint import store
from trainkit.checkpoint.soundness import MAX_MANIFEST_BYTES
from trainkit.errors import CheckpointError, StorageError
from trainkit.storage import Location, locate

FOLDER = "checkpoints"
"""Of a run."""


def found_at(url: str) -> list[Location]:
    """Returns the checkpoints that a URL means: itself, or all of a run, newest first.

    Raises:
        CheckpointError: where there is none.
        StorageError: where the store does not answer.
    """
    folder = locate(url)
    names = names_in(folder)
    for prefix in (f"{FOLDER}/", ""):
        if steps := steps_in(names, prefix):
            return [folder.child(name) for name in reversed(steps)]
    if store.MANIFEST in names:
        return [folder]
    raise CheckpointError(f"{folder.shown} holds no whole checkpoint; give the URL of a run or of a checkpoint in it")


def fetch(checkpoint: Location, into: Path, report: Callable[[str], None] = lambda text: None) -> Path:
    """Copies a checkpoint from a store and verifies every byte.

    Args:
        checkpoint: its folder.
        into: the directory in which it appears, whole or not at all, under the name that it has there.
        report: called with a line before it is copied.

    Returns:
        Its directory.

    Raises:
        CheckpointError: where it is damaged, or the disk has no room.
        StorageError: where it cannot be read.
    """
    directory = into / checkpoint.shown.rstrip("/").rpartition("/")[2]
    half = store.temporary(directory)
    try:
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        (half / store.MANIFEST).write_bytes(_manifest(checkpoint, store.MANIFEST))
        files = store.read_outside(half)["files"]
        num_bytes = sum(entry["num_bytes"] for entry in files.values())
        report(f"copying {checkpoint.shown}, {num_bytes / 1e6:,.1f} MB, to {directory}")
        if (free := shutil.disk_usage(half).free) < num_bytes:
            raise CheckpointError(f"{into} has room for {free / 1e9:.1f} GB, and {checkpoint.shown} needs more")
        for name in files:  # each by ranges at once
            checkpoint.child(name).download(half / name)
        store.verify(half, files)
        store.take_name(half, directory)
    except OSError as error:
        shutil.rmtree(half, ignore_errors=True)
        raise CheckpointError(f"{directory} cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    return directory


def fetch_newest(
    checkpoints: Sequence[Location], into: Path, report: Callable[[str], None] = lambda text: None
) -> Path:
    """Fetches the first of some checkpoints that is whole; what is wrong with those before it is reported.

    Args:
        checkpoints: the newest first.
        into: as for `fetch`.
        report: called with lines.

    Returns:
        Its directory.

    Raises:
        CheckpointError: where none is whole: what is wrong with the newest.
        StorageError: where the store does not answer.
    """
    errors: list[CheckpointError] = []
    for checkpoint in checkpoints:
        try:
            return fetch(checkpoint, into, report)
        except CheckpointError as error:
            report(f"passed over: {error}")
            errors.append(error)
    raise errors[0]


def read_copied(checkpoint: Location, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Reads the manifest of a copy as that of a directory is read.

    Args:
        checkpoint: its folder.
        read: of `trainkit.checkpoint.store`: `read_outside`, `read_manifest` or `read_allowed`.

    Raises:
        CheckpointError: as by `read`.
        StorageError: where it cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "copy"
        directory.mkdir()
        (directory / store.MANIFEST).write_bytes(_manifest(checkpoint, store.MANIFEST))
        try:
            if read is not store.read_outside and store.SECRET_MANIFEST in store.read_outside(directory)["files"]:
                (directory / store.SECRET_MANIFEST).write_bytes(_manifest(checkpoint, store.SECRET_MANIFEST))
            return read(directory)
        except CheckpointError as error:  # of the copy, and not of the directory that is gone by now
            raise type(error)(str(error).replace(str(directory), checkpoint.shown)) from None


def _manifest(checkpoint: Location, name: str) -> bytes:
    file = checkpoint.child(name)
    if file.size() > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{file.shown} is damaged: it is larger than {MAX_MANIFEST_BYTES >> 20} MiB")
    return file.read()


def names_in(folder: Location) -> list[str]:
    """Returns the files below a folder; none where nothing was written there yet.

    Raises:
        StorageError: where the store does not answer.
    """
    try:
        return folder.names()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise


def steps_in(names: Sequence[str], prefix: str) -> list[str]:
    """Returns the whole checkpoints among the names of files: those with a manifest, oldest first.

    Args:
        names: as `names_in` returns them.
        prefix: of the names of checkpoints, which they keep.
    """
    found = []
    for name in names:
        step, _, file = name.removeprefix(prefix).partition("/")
        is_step = name.startswith(prefix) and step.startswith("step_") and step[5:].isdigit()
        if is_step and file == store.MANIFEST:
            found.append(prefix + step)
    return sorted(found, key=lambda name: int(name.rpartition("_")[2]))
