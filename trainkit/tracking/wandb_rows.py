"""Rows of a Weights & Biases history: those that its file contains, and those to be stored in a checkpoint."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HEADER_BYTES, BLOCK_BYTES = 7, 32768  # of the file and its records: LevelDB's log format
FULL, LAST = 1, 4  # kinds of records that end an entry


@dataclass(frozen=True)
class Text:
    """A text in a row.

    Args:
        text: one or more lines.
    """

    text: str


@dataclass(frozen=True)
class Table:
    """A table in a row.

    Args:
        columns: names of the columns.
        rows: numbers and strings, one per column.
    """

    columns: list[str]
    rows: list[list[Any]]


Value = float | np.ndarray | Text | Table
Row = dict[str, Value]


class HistoryFile:
    """The `run-ID.wandb` that W&B's service writes: a row is safe once it is in there.

    Args:
        path: the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read_to = path, HEADER_BYTES
        self._last_step = -1

    def last_step(self) -> int:
        """Reads what was appended since the last call.

        Returns:
            The largest step of the rows in the file, which are in the order of their steps; -1: it has none.
        """
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

        for entry in self._entries():
            record = Record()
            record.ParseFromString(entry)
            if record.WhichOneof("record_type") == "history":
                keys = ((item.key or ".".join(item.nested_key), item.value_json) for item in record.history.item)
                self._last_step = max(self._last_step, *(int(value) for key, value in keys if key == "_step"))
        return self._last_step

    def _entries(self) -> Iterator[bytes]:
        """Yields the complete entries since the last call. One that is incomplete is read again by the next call."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            parts: list[bytes] = []
            while True:
                left = BLOCK_BYTES - file.tell() % BLOCK_BYTES
                if left < HEADER_BYTES:
                    file.seek(left, 1)
                header = file.read(HEADER_BYTES)
                if len(header) < HEADER_BYTES:
                    return
                checksum, num_bytes, kind = struct.unpack("<IHB", header)
                part = file.read(num_bytes)
                if len(part) < num_bytes or not kind or zlib.crc32(bytes([kind]) + part) != checksum:
                    return
                parts.append(part)
                if kind in (FULL, LAST):
                    self._read_to = file.tell()
                    yield b"".join(parts)
                    parts = []


def as_json(step: int, row: Mapping[str, Value], pictures: Path) -> dict[str, Any]:
    """Converts a row for a checkpoint; pictures are saved as files.

    Args:
        step: the step of the row.
        row: the values by name.
        pictures: the folder for the pictures.

    Returns:
        JSON-serializable values, for `from_json`.
    """
    values: dict[str, Any] = {}
    for number, (name, value) in enumerate(row.items()):
        if isinstance(value, Text):
            values[name] = {"text": value.text}
        elif isinstance(value, Table):
            values[name] = {"columns": value.columns, "rows": value.rows}
        elif isinstance(value, np.ndarray):
            pictures.mkdir(exist_ok=True)
            path = pictures / f"{step:08}_{number}.npy"
            np.save(path, value)
            values[name] = {"picture": path.name}
        else:
            values[name] = {"number": repr(float(value))}  # JSON has no NaN
    return {"step": step, "values": values}


def from_json(saved: Mapping[str, Any], pictures: Path) -> tuple[int, Row]:
    """Restores a row; pictures whose files no longer exist are left out.

    Args:
        saved: what `as_json` returned.
        pictures: the folder with the pictures.

    Returns:
        The step and the values by name.
    """
    row: Row = {}
    for name, value in saved["values"].items():
        if "text" in value:
            row[name] = Text(value["text"])
        elif "columns" in value:
            row[name] = Table(value["columns"], value["rows"])
        elif "number" in value:
            row[name] = float(value["number"])
        elif (path := pictures / value["picture"]).is_file():
            row[name] = np.load(path, allow_pickle=False)
    return saved["step"], row
