"""Checkpoint directories: written completely or not at all, with checksums of all files, and no pickled code."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from trainkit.checkpoint.soundness import MAX_MANIFEST_BYTES, require_sound_files, require_sound_tensors
from trainkit.encryption import AgeReader, Recipient, identities_in_use
from trainkit.errors import CheckpointError, ConfigError
from trainkit.json_text import parse_json, read_json

FORMAT = 4
ENCRYPTED_FORMAT = 5
"""An encrypted checkpoint's, whose manifest.json holds only what needs no key: readers of format 4 must not take it."""
MANIFEST = "manifest.json"
SECRET_MANIFEST = "manifest.json.age"
_READABLE_VALUES = ("step", "metrics")
_OWN_SUM = "sha256"
_READ_BYTES = 1 << 20
ADVICE = "resume from another checkpoint beside it"


class MissingKeyError(CheckpointError):
    """A checkpoint that is encrypted for other keys than the one that is given, or none is."""


def temporary(directory: Path) -> Path:
    """The path at which a checkpoint is written until it is complete; the same for all ranks."""
    return directory.with_name(f".{directory.name}.tmp")


def complete(written: Path, directory: Path, manifest: Mapping[str, Any], recipients: Sequence[Recipient] = ()) -> None:
    """Adds the manifest to a checkpoint, flushes it to disk, and renames it.

    Args:
        written: the directory with all other files.
        directory: its new name. An existing directory is kept as `<name>.previous` until the new one is in place.
        manifest: JSON-able.
        recipients: who can read most of it; empty: everybody reads all.
    """
    if recipients:
        manifest = _encrypted(written, manifest, recipients)
    # Through JSON first, as it will be read: its keys are text and sort as text.
    whole = json.loads(json.dumps({"format": FORMAT, **manifest}))
    (written / MANIFEST).write_text(json.dumps({**whole, _OWN_SUM: _sum_of(whole)}))
    _flush(written / MANIFEST)
    _flush(written)
    take_name(written, directory)


def _encrypted(written: Path, manifest: Mapping[str, Any], recipients: Sequence[Recipient]) -> dict[str, Any]:
    """Writes the manifest for its recipients, and returns what stays readable."""
    from trainkit.checkpoint.encrypted import write_encrypted

    owners = [recipient.text for recipient in recipients]
    secret = {**{name: entry for name, entry in manifest.items() if name != "files"}, "encrypted_for": owners}
    facts = write_encrypted(written / SECRET_MANIFEST, [json.dumps(secret).encode()], recipients)
    return {
        "format": ENCRYPTED_FORMAT,
        "encrypted_for": owners,
        "position": manifest["position"],
        "values": {name: manifest["values"][name] for name in _READABLE_VALUES if name in manifest["values"]},
        "files": {SECRET_MANIFEST: facts, **manifest["files"]},
    }


def write_text(path: Path, text: str) -> None:
    """Writes a text file completely or not at all: on an error the existing file stays.

    Args:
        path: the file.
        text: all of it.

    Raises:
        OSError: where it cannot be written.
    """
    half = path.with_name(f".{path.name}.tmp")
    try:
        half.write_text(text)
        half.replace(path)
    except OSError:
        half.unlink(missing_ok=True)
        raise


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads and verifies the manifest of a checkpoint, with the identity in use where it is encrypted.

    Args:
        directory: of the checkpoint.

    Returns:
        `position`, `values`, `engines`, `tensors`, `files` and more; `encrypted_for` where it is encrypted.

    Raises:
        CheckpointError: where there is none, it is damaged or of another format, or a key is missing.
    """
    manifest = read_outside(directory)
    if "encrypted_for" in manifest:
        manifest = _decrypted(directory, manifest)
    try:
        require_sound_tensors(manifest)
    except ValueError as error:
        raise CheckpointError(f"{directory / MANIFEST} is damaged: {error}; {ADVICE}") from None
    return manifest


def read_outside(directory: Path) -> dict[str, Any]:
    """Reads and verifies what needs no key of a checkpoint's manifest; of one that is not encrypted, all.

    Args:
        directory: of the checkpoint.

    Returns:
        `position`, `files`, and of `values` at least `step` and `metrics`; `encrypted_for` where it is encrypted.

    Raises:
        CheckpointError: as for `read_manifest`, but for a missing key.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{directory} is not a trainkit checkpoint: it has no {MANIFEST}; "
            f"give a run directory or one of its checkpoints/step_* directories"
        )
    try:
        manifest = read_json(path, MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; {ADVICE}") from error
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, ENCRYPTED_FORMAT):
        raise CheckpointError(
            f"{path} is not of checkpoint format {FORMAT} or {ENCRYPTED_FORMAT}: it was written by another version or "
            f"program"
        )
    if manifest.pop(_OWN_SUM, None) != _sum_of(manifest):
        raise CheckpointError(f"{path} is damaged: its contents do not match its {_OWN_SUM}; {ADVICE}")
    try:
        require_sound_files(manifest)
        if (manifest["format"] == ENCRYPTED_FORMAT) != ("encrypted_for" in manifest):
            raise ValueError("it does not say whether it is encrypted")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; {ADVICE}") from None
    return manifest


def read_allowed(directory: Path) -> dict[str, Any]:
    """`read_manifest` where the identity in use can read it, and otherwise `read_outside`.

    Args:
        directory: of the checkpoint.

    Raises:
        CheckpointError: as for `read_outside`.
    """
    manifest = read_outside(directory)
    if "encrypted_for" in manifest:
        try:
            return read_manifest(directory)
        except (CheckpointError, ConfigError):  # no key, another one, or its file is gone
            return manifest
    return read_manifest(directory)


def _decrypted(directory: Path, outside: Mapping[str, Any]) -> dict[str, Any]:
    """The whole manifest of an encrypted checkpoint."""
    identities, owners = identities_in_use(), outside["encrypted_for"]
    if not {identity.recipient.text for identity in identities} & {*owners}:
        given = ", ".join(identity.recipient.text for identity in identities)
        raise MissingKeyError(
            f"{directory} is encrypted for {', '.join(owners)}"
            f"{f', and the key that is given is that of {given}' if given else ''}: give the file of a secret key of "
            f"its recipients, checkpoint.identity=FILE (`trainkit checkpoint`: --identity FILE), or set the variable "
            f"TRAINKIT_IDENTITY=FILE"
        )
    path = directory / SECRET_MANIFEST
    with AgeReader(path, identities) as file:
        if file.num_bytes > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{path} is damaged: it is larger than {MAX_MANIFEST_BYTES >> 20} MiB; {ADVICE}")
        content = file.read(0, file.num_bytes)
    try:
        inside = parse_json(content)
        if not isinstance(inside, dict) or not isinstance(inside.get("seal"), str):
            raise ValueError("it is no manifest")
        if inside.get("encrypted_for") != owners:  # an export would be encrypted for them
            raise ValueError(f"it is for other recipients than {MANIFEST} says")
        whole = {**inside, "format": outside["format"], "files": outside["files"]}
        require_sound_files(whole)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; {ADVICE}") from None
    return whole


def _sum_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Verifies files of a checkpoint.

    Args:
        directory: of the checkpoint.
        files: entries of the manifest's `files` by name.

    Raises:
        CheckpointError: naming the first file that is missing, truncated or changed.
    """
    verify_sizes(directory, files)
    for name, expected in files.items():
        path = directory / name
        try:
            found = _sum_of_file(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; {ADVICE}") from error
        if found != expected["xxh3_128"]:
            raise CheckpointError(f"{path} is damaged: its checksum (XXH3) is not the one in {MANIFEST}; {ADVICE}")


def _sum_of_file(path: Path) -> str:
    total, buffer = xxhash.xxh3_128(), memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(buffer):
            total.update(buffer[:num_bytes])
    return total.hexdigest()


def verify_sizes(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Verifies that files of a checkpoint are there with all their bytes.

    Args:
        directory: of the checkpoint.
        files: entries of the manifest's `files` by name.

    Raises:
        CheckpointError: naming the first that is not.
    """
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the checkpoint is incomplete; {ADVICE}")
        num_bytes = path.stat().st_size
        if num_bytes != expected["num_bytes"]:
            raise CheckpointError(f"{path} has {num_bytes} bytes instead of {expected['num_bytes']}; {ADVICE}")


def take_name(temporary: Path, directory: Path) -> None:
    """Renames a checkpoint that is complete; one of that name is kept as `<name>.previous` until it is in place.

    Args:
        temporary: its directory.
        directory: its new name.

    Raises:
        OSError: where it cannot be renamed.
    """
    previous = directory.with_name(directory.name + ".previous")
    if directory.exists():
        if previous.exists():
            delete(previous)
        directory.rename(previous)
    temporary.rename(directory)
    _flush(directory.parent)
    if previous.exists():
        delete(previous)


def delete(path: Path) -> None:
    """Deletes a checkpoint; of a symbolic link, the link only.

    Args:
        path: its directory.

    Raises:
        OSError: where it cannot be deleted.
    """
    if path.is_symlink():
        path.unlink()
        return
    # The manifest first, so that an interrupted deletion leaves no directory that looks like a checkpoint.
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
