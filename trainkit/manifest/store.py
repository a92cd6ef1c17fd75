"""The file of a manifest: read as what anybody may have written, and written whole or not at all."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from trainkit.errors import DataError
from trainkit.json_text import read_json
from trainkit.whole_file import write_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FILE_NAME = "manifest.json"
FORMAT = 1
MAX_BYTES = 64 << 20
Facts = dict[str, Any]


class _Code(TypedDict, total=False):
    trainkit: Facts
    repositories: dict[str, Facts]
    modules: dict[str, str]


class _Environment(TypedDict, total=False):
    python: str
    packages: dict[str, Facts]
    imported: list[str]
    needed: list[str]
    cuda: Facts
    variables: dict[str, str]


class _Hardware(TypedDict, total=False):
    cpu: Facts
    gpus: list[Facts]


class _Data(TypedDict, total=False):
    counts: Facts
    fingerprints: dict[str, str]
    files: Facts
    audit: Facts | None


class _Read(TypedDict):
    """What is read of a manifest, and of which kind it must be; there may be more."""

    run: Facts
    configuration: Facts
    code: _Code
    environment: _Environment
    hardware: _Hardware
    data: _Data
    training: Facts
    composed: NotRequired[Facts]
    history: NotRequired[list[Facts]]


def write(run_dir: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a run.

    Args:
        run_dir: the run directory.
        manifest: JSON-able.

    Raises:
        OSError: where it cannot be written; one that exists stays.
    """
    write_text(run_dir / FILE_NAME, json.dumps(manifest, indent=1) + "\n")


def read(run_dir: Path) -> dict[str, Any]:
    """Reads the manifest of a run.

    Args:
        run_dir: the run directory, or the file itself.

    Returns:
        Its parts, each a dict: `run`, `configuration`, `code`, `environment`, `hardware`, `data` and `training`.

    Raises:
        DataError: there is none, or it is none.
    """
    path = run_dir if run_dir.is_file() else run_dir / FILE_NAME
    if not run_dir.exists():
        raise DataError(f"{run_dir}: there is no such directory; give that of a run, run_dir of its configuration")
    if not path.is_file():
        raise DataError(
            f"{run_dir} has no {FILE_NAME}: give the directory of a run; one of an older trainkit has none, and "
            f"gets one when it is resumed"
        )
    try:
        found = read_json(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a manifest: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        known = found.get("format") if isinstance(found, dict) else None
        raise DataError(f"{path} is no manifest of format {FORMAT}, but {known!r}: read it with a newer trainkit")
    from pydantic import ValidationError  # takes a while to import, and few processes read a manifest

    try:
        _schema().validate_python(found, strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise DataError(f"{path} is no manifest: {where}: {wrong['msg']}") from error
    return found


@cache
def _schema() -> "TypeAdapter[_Read]":
    from pydantic import TypeAdapter

    return TypeAdapter(_Read)
