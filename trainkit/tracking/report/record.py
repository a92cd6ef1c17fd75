"""Record: what the trackers of a run have left in its directory."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainkit.tracking import jsonl
from trainkit.tracking.run_log import SUMMARY_FILE
from trainkit.tracking.series import Measured, read_series

CONFIG_FILE = "config.yaml"
MAX_PICTURES = 32  # of one name; a page with all of them would be too large to open
NEXT = "next: "


@dataclass(frozen=True)
class Record:
    """A run as its directory shows it.

    Args:
        name: of the run.
        measured: its numbers.
        pictures: by name, the files in the order of their steps.
        texts: by name, likewise.
        tables: by name, the newest: its step and rows, the first of which is the header.
        config: the text of config.yaml.
        summary: lines on engines, data and the machine.
        commands: what to type next.
    """

    name: str
    measured: Measured
    pictures: dict[str, list[tuple[int, Path]]]
    texts: dict[str, list[tuple[int, Path]]]
    tables: dict[str, tuple[int, list[list[str]]]]
    config: str
    summary: list[str]
    commands: list[str]


def read_record(run_dir: Path) -> Record | None:
    """Reads a run directory.

    Args:
        run_dir: the directory.

    Returns:
        What is there; None without a metrics.jsonl.
    """
    metrics = run_dir / jsonl.FILE_NAME
    if not metrics.is_file():
        return None
    summary = _text_of(run_dir / SUMMARY_FILE).splitlines()
    return Record(
        name=run_dir.resolve().name,
        measured=read_series(metrics),
        pictures={name: _some(files) for name, files in _media(run_dir, "png")},
        texts=dict(_media(run_dir, "txt")),
        tables={name: _table(files[-1]) for name, files in _media(run_dir, "csv")},
        config=_text_of(run_dir / CONFIG_FILE),
        summary=[line for line in summary if not line.startswith(NEXT)],
        commands=[line.removeprefix(NEXT) for line in summary if line.startswith(NEXT)],
    )


def _media(run_dir: Path, suffix: str) -> Iterator[tuple[str, list[tuple[int, Path]]]]:
    for directory in sorted((run_dir / "media").glob("*")):
        files = sorted(path for path in directory.glob(f"*.{suffix}") if path.stem.isdecimal())
        if files:
            yield directory.name, [(int(path.stem), path) for path in files]


def _some(files: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most MAX_PICTURES, evenly spread, with the first and the last."""
    if len(files) <= MAX_PICTURES:
        return list(files)
    return [files[round(i * (len(files) - 1) / (MAX_PICTURES - 1))] for i in range(MAX_PICTURES)]


def _table(file: tuple[int, Path]) -> tuple[int, list[list[str]]]:
    step, path = file
    with path.open(encoding="utf-8", errors="replace", newline="") as opened:
        return step, list(csv.reader(opened))


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
