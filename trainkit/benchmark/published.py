"""Published: grids of other people, each with its source, to be put beside one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.json_text import read_json

FILE = Path(__file__).parent / "published.json"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published figure.

    Args:
        machine: as its source calls it.
        num_gpus: that were used.
        model: `bert-base` or `bert-large`.
        precision: as its source calls it.
        sequence_length: in tokens.
        batch_size: of all GPUs together; None: not said.
        samples_per_s: of all GPUs together.
    """

    machine: str
    num_gpus: int
    model: str
    precision: str
    sequence_length: int
    batch_size: int | None
    samples_per_s: float


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where figures were published.

    Args:
        name: of the source.
        url: of the very version.
        date: of the figures.
        accessed: when they were copied.
        task: what was measured.
        note: what else one must know.
        rows: the figures.
    """

    name: str
    url: str
    date: str
    accessed: str
    task: str
    note: str
    rows: tuple[Row, ...]


def published() -> list[Source]:
    """The grids that come with the package. None of them is of trainkit, or was measured by us."""
    found = read_json(FILE)
    return [_source(given, found["accessed"]) for given in found["sources"]]


def _source(given: dict[str, Any], accessed: str) -> Source:
    rows = tuple(Row(**dict(zip(given["columns"], row, strict=True))) for row in given["rows"])
    rest = {key: given[key] for key in ("name", "url", "date", "task", "note")}
    return Source(**rest, accessed=accessed, rows=rows)
