"""Rows: records of named columns from files of examples, each with its place for messages."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.data.files import suffix_of
from trainkit.data.readers import json_objects, lines_of, table_rows
from trainkit.data.record_batches import RecordBatches
from trainkit.data.text_files import arrow_files, splits_of
from trainkit.errors import DataError
from trainkit.json_text import parse_json, read_json

CONLL, SQUAD = "conll", "squad"
_FORMATS = {
    ".csv": "table",
    ".tsv": "table",
    ".jsonl": "json lines",
    ".parquet": "record batches",
    ".arrow": "record batches",
    ".conll": CONLL,
    ".iob": CONLL,
    ".iob2": CONLL,
    ".bio": CONLL,
    ".json": SQUAD,
}
SUPPORTED = (
    ".csv, .tsv, .jsonl (also .gz and .zst of them), .parquet, .conll, the .json of SQuAD, a folder with files "
    "train.* and validation.*, and a directory that Hugging Face datasets saved"
)
_MAX_SQUAD_BYTES = 1 << 30
HELD_OUT_NAMES = ("validation", "valid", "val", "dev", "test", "held_out")


@dataclass(frozen=True, slots=True)
class Row:
    """A record of a file.

    Args:
        values: by column.
        path: of the file.
        place: `line 7` or `row 7`, from 1.
    """

    values: dict[str, Any]
    path: Path
    place: str

    @property
    def where(self) -> str:
        """The file and the place in it."""
        return f"{self.path}, {self.place}"


def format_of(path: Path) -> str:
    """Returns the format of a file of examples by its suffix.

    Raises:
        DataError: for another file.
    """
    suffix = suffix_of(path)
    base = suffix.removesuffix(".gz").removesuffix(".zst")
    if base not in _FORMATS or (base != suffix and base in (".parquet", ".arrow", ".json")):
        raise DataError(f"data.path={path} is a {suffix or 'nameless'} file; it takes {SUPPORTED}")
    return _FORMATS[base]


def read_rows(path: Path, *, quotes: bool = True) -> Iterator[Row]:
    """Reads the records of one file.

    A .conll file has a word with its columns on each line and a blank line after each sentence: a record has the
    `words` and, from the last column, the `tags`. A record of a SQuAD file has `question`, `context`, `answers` and
    `id`.

    Args:
        path: of a format in `SUPPORTED`.
        quotes: whether a cell of a .csv or .tsv file may be in double quotes.

    Yields:
        The records, in their order.

    Raises:
        DataError: naming the file and the place that cannot be read.
    """
    if format_of(path) == "table":
        yield from _table(path, quotes)
        return
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        "json lines": _json_lines,
        "record batches": _record_batches,
        CONLL: _conll,
        SQUAD: _squad,
    }
    yield from readers[format_of(path)](path)


def find_splits(path: Path) -> dict[str, tuple[Path, ...]]:
    """Finds the files of the training and the held-out split at a path.

    Args:
        path: a file, a folder with train.* and validation.* (or dev.*, test.*), or a directory that Hugging Face
            datasets saved.

    Returns:
        Files by `train` and, where the source has such a split, `held_out`.

    Raises:
        DataError: where nothing can be read.
    """
    if not path.exists():
        raise DataError(f"data.path={path} does not exist; set data.path to {SUPPORTED}")
    if path.is_file():
        format_of(path)
        return {"train": (path,)}
    if (path / "dataset_dict.json").is_file():
        names = splits_of(path)
        found = {name: arrow_files(path / name) for name in ("train", *HELD_OUT_NAMES) if name in names}
    elif (path / "state.json").is_file():
        found = {"train": arrow_files(path)}
    else:
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        found = {}
        for name in ("train", *HELD_OUT_NAMES):
            named = [file for file in files if file.name.partition(".")[0] == name]
            if len(named) > 1:
                raise DataError(
                    f"data.path={path} has {len(named)} files named {name}, {named[0].name} and {named[1].name}: set "
                    f"data.path and data.held_out_path to files"
                )
            if named:
                found[name] = (named[0],)
    if "train" not in found:
        raise DataError(f"data.path={path} has no train split; set data.path to {SUPPORTED}")
    held_out = next((found[name] for name in HELD_OUT_NAMES if name in found), None)
    return {"train": found["train"], **({"held_out": held_out} if held_out else {})}


def _table(path: Path, quotes: bool) -> Iterator[Row]:
    try:
        for number, row in table_rows(path, quotes=quotes, strict=True):
            if number == 0:
                width = len(row)
                continue
            cells = {name: cell for name, cell in row.items() if name is not None and cell is not None}
            if len(cells) != width or None in row:
                given = len(cells) + len(row.get(None, ()))  # type: ignore[call-overload]
                raise DataError(
                    f"{path}, line {number}: {given} cells under a header of {width}; correct the row, or set "
                    f"data.quotes=false where quotes in it are part of the text"
                )
            yield Row(cells, path, f"line {number}")
    except DataError as error:
        if "not a table" in str(error) and quotes:
            raise DataError(f"{error}, or set data.quotes=false where quotes are part of the text") from None
        raise


def _json_lines(path: Path) -> Iterator[Row]:
    for number, row in json_objects(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a {type(row).__name__}, not an object; remove it")
        yield Row(row, path, f"line {number}")


def _record_batches(path: Path) -> Iterator[Row]:
    file, number = RecordBatches.open(path), 0
    names = _class_names(file.schema)
    for batch in file.batches():
        for row in batch.to_pylist():
            number += 1
            for column, classes in names.items():
                row[column] = _named(row[column], classes)
            yield Row(row, path, f"row {number}")


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The names of the classes that numbers in a column stand for, as Hugging Face datasets stores them."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = parse_json(stored).get("info", {}).get("features", {}) if stored else {}
    except (ValueError, AttributeError):
        return {}  # of another program
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":
            found[column] = inner["names"]
    return found


def _named(value: Any, classes: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, classes) for item in value]
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else value


def _conll(path: Path) -> Iterator[Row]:
    words: list[str] = []
    tags: list[str] = []
    start = 0
    for number, line in enumerate([*lines_of(path), ""], start=1):
        cells = line.split()
        if not cells:
            if words:
                yield Row({"words": words, "tags": tags}, path, f"line {start}")
            words, tags = [], []
        elif cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise DataError(f"{path}, line {number}: one column, {cells[0]!r}; it takes a word and its tag last")
            start = start if words else number
            words.append(cells[0])
            tags.append(cells[-1])


def _squad(path: Path) -> Iterator[Row]:
    try:
        articles = read_json(path, _MAX_SQUAD_BYTES)["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [] if asked.get("is_impossible") else asked.get("answers", [])
                    values = {
                        "question": asked["question"],
                        "context": paragraph["context"],
                        "answers": [(answer["text"], answer["answer_start"]) for answer in answers],
                        "id": str(asked["id"]),
                    }
                    yield Row(values, path, f"question {asked['id']}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a SQuAD file of version 1.1 or 2.0 ({error!r}); correct it") from None
