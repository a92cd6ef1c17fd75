"""Readers: documents from files, one format per function; every file is streamed, so its size does not matter.

A document is the unit of the held-out split and of the removal of duplicates: a paragraph of a .txt, .md or .html file,
a row of a .jsonl, .csv, .tsv, .parquet or .arrow file, a paragraph of a string in a .py file.
"""

import ast
import codecs
import csv
import gzip
import re
import shlex
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainkit.data.files import suffix_of
from trainkit.data.formats.opening import is_shard
from trainkit.data.formats.texts import read_shard
from trainkit.data.html_page import HtmlPage
from trainkit.data.record_batches import RecordBatches
from trainkit.errors import DataError, nearest
from trainkit.json_text import parse_json

Reader = Callable[[Path, str], Iterator[str]]
Skip = Callable[[DataError], object]
"""Called with the error of a row, or of the rest of a file, that is left out."""


class RowError(DataError):
    """A row of a file that cannot be read, where others may be."""


_BLOCK_BYTES = 1 << 20
_PARAGRAPH_CHARS = 4096  # a text without blank lines is divided, at a line or a space, into documents of this size
_START_BYTES = 4096  # of a file without a suffix, which show whether it is text
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read_text(path: Path, field: str) -> Iterator[str]:
    """Yields paragraphs: lines between blank ones."""
    return _paragraphs(_lines(path))


def read_json_lines(path: Path, field: str, skip: Skip | None = None) -> Iterator[str]:
    """Yields the value of `field` in the object on each line.

    Args:
        path: the file.
        field: of the object.
        skip: called for a line that has no text in `field`, which is left out; None: it is an error.

    Raises:
        DataError: naming the file and the line that has no text in `field`.
    """
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        try:
            text = _text_in(_parsed(path, number, line), f"{path}, line {number}", field)
        except DataError as error:
            if skip is None:
                raise
            skip(error)
            continue
        if text is not None:  # like an empty cell of a table: no document
            yield text


def _text_in(row: Any, where: str, field: str) -> str | None:
    if not isinstance(row, dict) or field not in row:
        raise _no_field(where, field, list(row) if isinstance(row, dict) else [])
    text = row[field]
    if text is None:
        return None
    if not isinstance(text, str):
        raise RowError(
            f"{where}: field {field!r} holds {type(text).__name__}, not text; set data.field=NAME to one that does"
        )
    if lone := _LONE_SURROGATE.search(text):
        raise RowError(
            f"{where}: {lone[0]!r} is half of a character (a lone surrogate) and no text; correct or remove that line"
        )
    return text


def json_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the number, from 1, and the value of each line that is not blank.

    Raises:
        DataError: naming the line that is not JSON.
    """
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            yield number, _parsed(path, number, line)


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        reason = getattr(error, "msg", error)
        raise RowError(f"{path}, line {number}: not a JSON object ({reason}); correct or remove it") from None


def read_table(path: Path, field: str) -> Iterator[str]:
    """Yields the column `field` of a .csv or .tsv file with a header, without empty cells.

    Raises:
        DataError: where the column does not exist, or the file is no table.
    """
    for number, row in table_rows(path):
        if number == 0:
            if field not in row:
                raise _no_field(str(path), field, list(row))
        elif row[field]:
            yield row[field]


def table_rows(path: Path, *, quotes: bool = True, strict: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the header of a .csv or .tsv file, as row 0 with the names as values, and the rows.

    Args:
        path: the file.
        quotes: whether a cell may be in double quotes.
        strict: whether misplaced quotes are an error.

    Yields:
        (number of the line on which the row ends, cells by column).

    Raises:
        DataError: naming the line that is no row of a table.
    """
    csv.field_size_limit(1 << 30)
    # Line ends inside quotes are part of the text.
    lines = (f"{line}\n" for line in lines_of(path))
    rows = csv.DictReader(
        lines,
        delimiter="\t" if suffix_of(path).startswith(".tsv") else ",",
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=strict,
    )
    try:
        names = list(rows.fieldnames or [])
        yield 0, dict(zip(names, names, strict=True))
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise RowError(f"{path}, line {rows.line_num}: not a table ({error}); correct or remove it") from None


def read_html(path: Path, field: str) -> Iterator[str]:
    """Yields paragraphs of the text that a browser would show, without scripts and styles."""
    page = HtmlPage()
    for block in _blocks(path):
        page.feed(block)
        yield from page.take_paragraphs()
    page.close()
    page.end_paragraph()
    yield from page.take_paragraphs()


def read_record_batches(path: Path, field: str) -> Iterator[str]:
    """Yields the column `field` of a parquet file or an Arrow stream, batch by batch.

    Raises:
        DataError: where the column does not exist or holds no text, or the file is not of its format.
    """
    file = RecordBatches.open(path)
    _check_column(path, field, file.schema)
    for batch in file.batches([field]):
        yield from _strings(path, batch.column(field))


def read_documentation(path: Path, field: str) -> Iterator[str]:
    """Yields paragraphs of prose in the string literals of Python source, which is parsed and not run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for paragraph in re.split(r"\n\s*\n", node.value):
                text = " ".join(paragraph.split())
                if _is_prose(text):
                    yield text


_STREAMED: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".markdown": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".jsonl": read_json_lines,
    ".csv": read_table,
    ".tsv": read_table,
}
_COMPRESSED = (".gz", ".zst")
READERS: dict[str, Reader] = {
    **_STREAMED,
    **{suffix + compressed: read for suffix, read in _STREAMED.items() for compressed in _COMPRESSED},
    ".parquet": read_record_batches,
    ".arrow": read_record_batches,
    ".py": read_documentation,
}


def reader_of(path: Path) -> Reader | None:
    """Chooses the reader of a file by its suffix; a file without one is text if it begins as text.

    Args:
        path: the file.

    Returns:
        The reader; None: the file cannot be read.
    """
    suffix = suffix_of(path)
    if suffix in READERS:
        return READERS[suffix]
    if is_shard(path.name):
        return read_shard
    return read_text if not suffix and _begins_as_text(path) else None


def documents_of(path: Path, field: str, skip: Skip | None = None) -> Iterator[str]:
    """Reads the documents of a file that are not blank.

    Args:
        path: of a file that `reader_of` has a reader for.
        field: the key or column that contains the text, in formats with several.
        skip: called for a line of a .jsonl file, or the rest of another file, that cannot be read and is left out;
            None: it is an error.

    Yields:
        The texts.

    Raises:
        DataError: naming the file and the place that cannot be read.
    """
    return (text for text in texts_of(path, field, skip) if text and not text.isspace())


def texts_of(path: Path, field: str, skip: Skip | None = None) -> Iterator[str]:
    """Reads the documents of a file as `documents_of` does, and blank ones, too."""
    read = reader_of(path)
    assert read is not None, f"{path} was found to be readable"
    try:
        yield from read_json_lines(path, field, skip) if read is read_json_lines else read(path, field)
    except DataError as error:
        if skip is None:
            raise
        skip(error)


def with_hint(error: DataError) -> DataError:
    """Returns the error of a row with the setting that leaves it out, and any other as it is."""
    if not isinstance(error, RowError):
        return error
    return RowError(f"{error} (or set data.on_unreadable=skip, which leaves it out and counts it)")


def _begins_as_text(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be incomplete
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a file for reading, decompressed. Raises DataError where the content does not match the suffix."""
    compression = path.suffix.lower()
    try:
        if compression == ".gz":
            with gzip.open(path) as file:
                yield file
        elif compression == ".zst":
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as file:
                yield file
        else:
            with path.open("rb") as file:
                yield file
    except (EOFError, zlib.error, OSError) as error:
        if compression not in _COMPRESSED:
            raise
        raise DataError(f"{path} cannot be decompressed ({error}); compress it again or remove it") from None


def _blocks(path: Path) -> Iterator[str]:
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with _opened(path) as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - pending + error.start) from None
            offset += len(block)
            yield text
            if not block:
                return


def _not_utf8(path: Path, offset: int) -> DataError:
    with _opened(path) as file:
        start = file.read(2)
        for _ in range((offset - len(start)) // _BLOCK_BYTES):
            file.read(_BLOCK_BYTES)
        rest = (offset - len(start)) % _BLOCK_BYTES
        byte = (file.read(rest + 1) if offset >= len(start) else start[offset:])[-1 if offset >= len(start) else 0]
    encoding = _BYTE_ORDER_MARKS.get(start)
    known = f"its first bytes are those of {encoding}" if encoding else "WINDOWS-1252 is only a guess: check the result"
    return DataError(
        f"{path} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}; data.path takes UTF-8 only. Make a copy, and "
        f"replace the file by it if it is correct ({known}): "
        f"{_conversion(path, encoding or 'WINDOWS-1252')}"
    )


def _conversion(path: Path, encoding: str) -> str:
    """Returns a shell command that writes the content of `path` to another file, as UTF-8."""
    convert, compression = f"iconv -f {encoding} -t UTF-8", path.suffix.lower()
    if compression not in _COMPRESSED:
        command, plain = f"{convert} {shlex.quote(str(path))}", path
    else:
        program = {".gz": "gzip", ".zst": "zstd"}[compression]
        command, plain = f"{program} -dc {shlex.quote(str(path))} | {convert}", path.with_suffix("")
    return f"{command} > {shlex.quote(str(plain.with_name(f'{plain.stem}.utf8{plain.suffix}')))}"


def lines_of(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, decompressed, without their ends; an empty one after the last end."""
    return _lines(path, longest=None)


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


def _strings(path: Path, column: Any) -> Iterator[str]:
    import pyarrow

    try:
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        texts = [text.decode() if isinstance(text, bytes) else text for text in column.to_pylist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a text is not UTF-8 ({error}); write the column again as UTF-8") from None
    return (text for text in texts if text is not None)


def _check_column(path: Path, field: str, schema: Any) -> None:
    from pyarrow import types

    if field not in schema.names:
        raise _no_field(str(path), field, schema.names)
    kind = schema.field(field).type
    values = kind.value_type if types.is_dictionary(kind) else kind
    of_text = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_null)
    if not any(is_kind(values) for is_kind in of_text) and str(values) not in ("string_view", "binary_view"):
        raise DataError(f"{path}: column {field!r} holds {kind}, not text; set data.field=COLUMN to one that does")


def _no_field(where: str, field: str, names: list[str]) -> DataError:
    found = ", ".join(map(repr, names)) or "nothing"
    return DataError(f"{where}: no text in field {field!r}, found {found}; set data.field=NAME.{nearest(field, names)}")
