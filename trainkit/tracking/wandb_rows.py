"""Rows of a Weights & Biases history: which ones its file holds, and what is in those that it does not hold yet."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HEADER_BYTES, BLOCK_BYTES = 7, 32768  # of the file, and of a record in it: LevelDB's log format
FULL, LAST = 1, 4  # kinds of records that end an entry


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[list[Any]]


Value = float | np.ndarray | Text | Table
Row = dict[str, Value]


class HistoryFile:
    """The `run-ID.wandb` that W&B's service writes, read beside it: a row is safe once it is in there."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_to = path, HEADER_BYTES
        self._last_step = -1

    def last_step(self) -> int:
        """Of the rows that the file holds now; -1 for none. Rows are in the order of their steps."""
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

        for entry in self._entries():
            record = Record()
            record.ParseFromString(entry)
            if record.WhichOneof("record_type") == "history":
                keys = ((item.key or ".".join(item.nested_key), item.value_json) for item in record.history.item)
                self._last_step = max(self._last_step, *(int(value) for key, value in keys if key == "_step"))
        return self._last_step

    def _entries(self) -> Iterator[bytes]:
        """Whole ones since the last call. What is torn, or not written yet, is looked at again."""
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
    """`row` for a checkpoint; pictures become files in `pictures`."""
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
    """The inverse of `as_json`; pictures whose files are gone are left out."""
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
