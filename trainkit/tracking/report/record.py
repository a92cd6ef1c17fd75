"""Record: what the trackers of a run have left in its directory, which may be anybody's."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainkit.errors import DataError
from trainkit.json_text import read_json
from trainkit.tracking import jsonl
from trainkit.tracking.metrics_file import MetricsFile
from trainkit.tracking.run_log import SUMMARY_FILE
from trainkit.tracking.series import Measured, measured

CONFIG_FILE = "config.yaml"
JSON_FILES = ("result", "manifest", "audit", "links")  # .json, which the run writes; each may be missing
MAX_PICTURES = 32  # of one name; a page with all of them would be too large to open
MAX_NAMES = 200  # of pictures, texts and tables
MAX_BYTES = 1 << 22  # of a file that is shown as text
NEXT = "next: "


@dataclass(frozen=True)
class Record:
    """A run as its directory shows it.

    Args:
        name: of the run.
        directory: of the run.
        file: its metrics.jsonl, as far as it was read.
        measured: its numbers.
        pictures: by name, the files in the order of their steps.
        texts: by name, likewise.
        tables: by name, the newest: its step and rows, the first of which is the header.
        config: the text of config.yaml.
        summary: lines on engines, data and the machine.
        commands: what to type next.
        json: the content of result.json, manifest.json, audit.json and links.json, by the name without `.json`.
        checkpoints: steps of those that are in the directory.
        problems: lines about files that could not be read.
        status: such as `finished`; None: not known.
        num_samples: the position at which the run ends; None: not known.
    """

    name: str
    directory: Path
    file: MetricsFile
    measured: Measured
    pictures: dict[str, list[tuple[int, Path]]]
    texts: dict[str, list[tuple[int, Path]]]
    tables: dict[str, tuple[int, list[list[str]]]]
    config: str
    summary: list[str]
    commands: list[str]
    json: dict[str, Any] = field(default_factory=dict)
    checkpoints: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    status: str | None = None
    num_samples: int | None = None


def read_record(
    run_dir: Path,
    *,
    status: str | None = None,
    num_samples: int | None = None,
    file: MetricsFile | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Record | None:
    """Reads a run directory. Links that lead out of it are not followed.

    Args:
        run_dir: the directory.
        status: as in Record.
        num_samples: as in Record.
        file: its metrics.jsonl where it was read before, which is read on.
        progress: as for `MetricsFile.read`.

    Returns:
        What is there; None without a metrics.jsonl.

    Raises:
        DataError: metrics.jsonl is no record of a run.
    """
    metrics = run_dir / jsonl.FILE_NAME
    if not is_inside(run_dir, metrics):
        return None
    file = file or MetricsFile(metrics)
    file.read(progress)
    summary = _text_of(run_dir, run_dir / SUMMARY_FILE).splitlines()
    problems: list[str] = []
    return Record(
        name=run_dir.resolve().name,
        directory=run_dir,
        file=file,
        measured=measured(file),
        pictures={name: _some(files) for name, files in _media(run_dir, "png")},
        texts=dict(_media(run_dir, "txt")),
        tables={name: _table(run_dir, files[-1]) for name, files in _media(run_dir, "csv")},
        config=_text_of(run_dir, run_dir / CONFIG_FILE),
        summary=[line for line in summary if not line.startswith(NEXT)],
        commands=[line.removeprefix(NEXT) for line in summary if line.startswith(NEXT)],
        json=dict(_json_files(run_dir, problems)),
        checkpoints=tuple(_checkpoints(run_dir)),
        problems=tuple(problems),
        status=status,
        num_samples=num_samples,
    )


def is_inside(run_dir: Path, path: Path) -> bool:
    """Whether `path` is a file, and lies in the directory also where it is a link."""
    return path.is_file() and path.resolve().is_relative_to(run_dir.resolve())


def _media(run_dir: Path, suffix: str) -> Iterator[tuple[str, list[tuple[int, Path]]]]:
    for directory in sorted((run_dir / "media").glob("*"))[:MAX_NAMES]:
        files = sorted(path for path in directory.glob(f"*.{suffix}") if _is_step(path) and is_inside(run_dir, path))
        if files:
            yield directory.name, [(int(path.stem), path) for path in files]


def _is_step(path: Path) -> bool:
    return path.stem.isascii() and path.stem.isdecimal() and len(path.stem) < 16


def _some(files: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most MAX_PICTURES, evenly spread, with the first and the last."""
    if len(files) <= MAX_PICTURES:
        return list(files)
    return [files[round(i * (len(files) - 1) / (MAX_PICTURES - 1))] for i in range(MAX_PICTURES)]


def _table(run_dir: Path, file: tuple[int, Path]) -> tuple[int, list[list[str]]]:
    step, path = file
    try:
        return step, list(csv.reader(io.StringIO(_text_of(run_dir, path), newline="")))
    except csv.Error as error:
        return step, [[f"{path.name} cannot be read as a table: {error}"]]


def _json_files(run_dir: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    for name in JSON_FILES:
        path = run_dir / f"{name}.json"
        if is_inside(run_dir, path):
            try:
                yield name, read_json(path, MAX_BYTES)
            except (OSError, ValueError, DataError) as error:
                problems.append(f"{path.name} cannot be read: {error}")


def _checkpoints(run_dir: Path) -> Iterator[int]:
    for path in sorted((run_dir / "checkpoints").glob("step_*")):
        number = path.name.removeprefix("step_")
        if number.isascii() and number.isdecimal():
            yield int(number)


def _text_of(run_dir: Path, path: Path) -> str:
    if not is_inside(run_dir, path):
        return ""
    with path.open("rb") as file:
        return file.read(MAX_BYTES).decode("utf-8", errors="replace")
