"""Documents out of files, one format a function; every file is streamed, so its size does not matter.

A document is what the held-out split and the removal of duplicates treat as one: a paragraph of a .txt file, a row of
a .jsonl, .parquet or .arrow file, a paragraph of the documentation in a .py file.
"""

import ast
import codecs
import json
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainkit.errors import DataError, nearest

_BLOCK_BYTES = 1 << 20
_PARAGRAPH_CHARS = 4096  # a text without blank lines is cut, at a line or a space, into documents of this size
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read_text(path: Path, field: str) -> Iterator[str]:
    """Paragraphs: lines between blank ones."""
    return _paragraphs(_lines(path))


def read_json_lines(path: Path, field: str) -> Iterator[str]:
    """The value of `field` in the object on each line."""
    for number, line in enumerate(_lines(path, longest=None), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not a JSON object ({error.msg}); mend or remove it") from None
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            names = list(row) if isinstance(row, dict) else []
            raise _no_field(f"{path}, line {number}", field, names)
        yield row[field]


def read_parquet(path: Path, field: str) -> Iterator[str]:
    """The column `field`, row group by row group."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file ({error}); remove it or set data.path to another") from None
    _check_column(path, field, file.schema_arrow)
    for batch in file.iter_batches(batch_size=1024, columns=[field]):
        yield from _strings(batch.column(0))


def read_arrow(path: Path, field: str) -> Iterator[str]:
    """The column `field` of a file in Arrow's streaming format, which Hugging Face datasets writes."""
    import pyarrow

    try:
        reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not an Arrow stream ({error}); save the data set again") from None
    _check_column(path, field, reader.schema)
    for batch in reader:
        yield from _strings(batch.column(field))


def read_documentation(path: Path, field: str) -> Iterator[str]:
    """Paragraphs of prose in the string literals of Python source, which is parsed and never run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for paragraph in re.split(r"\n\s*\n", node.value):
                text = " ".join(paragraph.split())
                if _is_prose(text):
                    yield text


READERS = {
    ".txt": read_text,
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".py": read_documentation,
}


def _blocks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = file.tell() - len(block) - pending + error.start
                raise _not_utf8(path, offset) from None
            yield text
            if not block:
                return


def _not_utf8(path: Path, offset: int) -> DataError:
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(offset)
        byte = file.read(1)[0]
    encoding, name = _BYTE_ORDER_MARKS.get(start, "WINDOWS-1252"), shlex.quote(str(path))
    return DataError(
        f"{path} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}; data.path takes UTF-8 only, so convert it: "
        f"iconv -f {encoding} -t UTF-8 {name} > utf8 && mv utf8 {name}"
    )


def _lines(path: Path, longest: int | None = _PARAGRAPH_CHARS) -> Iterator[str]:
    rest = ""
    for block in _blocks(path):
        *lines, rest = (rest + block).split("\n")
        yield from (line.removeprefix("\ufeff") for line in lines)
        while longest is not None and len(rest) > longest:
            cut = rest.rfind(" ", 1, longest) if " " in rest[1:longest] else longest
            yield rest[:cut]
            rest = rest[cut:]
    yield rest.removeprefix("\ufeff")


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    paragraph: list[str] = []
    num_chars = 0
    for line in lines:
        line = line.strip()
        if line:
            paragraph.append(line)
            num_chars += len(line)
        if paragraph and (not line or num_chars >= _PARAGRAPH_CHARS):
            yield " ".join(paragraph)
            paragraph, num_chars = [], 0
    if paragraph:
        yield " ".join(paragraph)


def _is_prose(text: str) -> bool:
    """Sentences rather than code, tables or formulas."""
    if len(text) < 60 or ">>>" in text or text.count(" ") < 8:
        return False
    return sum(char.isalpha() or char == " " for char in text) > 0.85 * len(text)


def _strings(column: Any) -> Iterator[str]:
    return (text for text in column.to_pylist() if text is not None)


def _check_column(path: Path, field: str, schema: Any) -> None:
    import pyarrow

    if field not in schema.names:
        raise _no_field(str(path), field, schema.names)
    kind = schema.field(field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise DataError(f"{path}: column {field!r} holds {kind}, not text; set data.field=COLUMN to one that does")


def _no_field(where: str, field: str, names: list[str]) -> DataError:
    found = ", ".join(map(repr, names)) or "nothing"
    return DataError(f"{where}: no text in field {field!r}, found {found}; set data.field=NAME.{nearest(field, names)}")
