"""Readers: every kind of file that text comes in, and what a folder may hold."""

import csv
import gzip
import io
import json
import shutil
import subprocess
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from trainkit.data.corpus import find_corpus
from trainkit.data.readers import read_record_batches
from trainkit.data.rows import read_rows
from trainkit.errors import DataError

DOCUMENTS = ["The first, with a comma.", 'The second "quoted" one, é.', "The third\tone."]


def texts(path: Path, field: str = "text") -> list[str]:
    return [text for _, text in find_corpus(path, field).documents()]


def as_table(delimiter: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([["n", "text"], *enumerate(DOCUMENTS), [3, ""]])
    return file.getvalue()


PAGE = """<html><head><title></title><style>p {color: red}</style><script>if (a < b) {}</script></head>
<body><p>The <b>first</b>, with
a comma.<div>The second &quot;quoted&quot; one, &eacute;.</div><ul><li>The third&#9;one.</ul>
<!-- no --></body></html>"""


def content(name: str) -> str:
    if ".html" in name:
        return PAGE
    if ".jsonl" in name.lower():
        rows = [{"text": text} for text in DOCUMENTS]
        return "\n".join(map(json.dumps, [*rows, {"text": None}]))
    if ".csv" in name or ".tsv" in name:
        return as_table("\t" if ".tsv" in name else ",")
    return "\n\n".join(DOCUMENTS)


NAMES = ["a.TXT", "a.md", "a.html", "a.csv", "a.tsv", "a.jsonl", "nameless", "a.txt.gz", "a.csv.zst", "A.JSONL.GZ"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_documents(tmp_path, name):
    path, data = tmp_path / name, content(name).encode()
    if name.lower().endswith(".gz"):
        data = gzip.compress(data)
    elif name.endswith(".zst"):
        data = pyarrow.compress(data, "zstd", asbytes=True)
    path.write_bytes(data)
    squeezed = [" ".join(text.split()) for text in texts(path)]
    assert squeezed == [" ".join(text.split()) for text in DOCUMENTS]
    assert texts(tmp_path) == texts(path)


def test_a_cell_may_hold_lines(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"one\n\ntwo"\n')
    assert texts(tmp_path) == ["one\n\ntwo"]


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_every_column_of_text_is_read_and_nulls_are_left_out(tmp_path, kind):
    rows = ["é", None, "b", "é"]
    table = pyarrow.table({"text": pyarrow.array(rows).cast(kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["é", "b", "é"]


def test_what_is_no_text_names_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: field 'text' holds int, not text"):
        texts(path)
    path.write_text('{"text": "a"}\n\n{"text": "b \\ud800 c"}')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: .*\\ud800' is half of a character"):
        texts(path)


def test_bytes_that_are_no_utf8_in_a_table_are_one_line(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [b"caf\xe9"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: a text is not UTF-8"):
        texts(tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("num_bytes", [0, 40, 900])
def test_a_part_of_a_file_of_record_batches_is_refused(tmp_path, suffix, num_bytes):
    """By the readers of texts and of examples alike."""
    table, path = pyarrow.table({"text": [f"text {number}" for number in range(100)]}), tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    path.write_bytes(path.read_bytes()[:num_bytes])
    for read in (lambda path: [*read_record_batches(path, "text")], lambda path: [*read_rows(path)]):
        with pytest.raises(
            DataError, match=rf"a\{suffix} is not an? \w+ \w+, or not a complete one .*; write it again"
        ):
            read(path)


def test_another_encoding_is_guessed_and_the_file_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"only a guess.*iconv -f WINDOWS-1252 -t UTF-8 \S*a\.txt > \S*a\.utf8\.txt$"):
        texts(tmp_path)


@pytest.mark.skipif(not (shutil.which("gzip") and shutil.which("iconv")), reason="gzip and iconv are not installed")
def test_the_command_for_a_compressed_file_decompresses_it(tmp_path):
    folder = tmp_path / "it's"
    folder.mkdir()
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"caf\xe9"))
    with pytest.raises(DataError) as raised:
        texts(folder)
    subprocess.run(str(raised.value).rpartition("): ")[2], shell=True, check=True)
    assert texts(folder / "a.utf8.txt") == ["café"]
    assert gzip.decompress((folder / "a.txt.gz").read_bytes()) == b"caf\xe9"


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_file_that_is_not_compressed_as_it_says_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"plain text")
    with pytest.raises(DataError, match=rf"{name} cannot be decompressed"):
        texts(tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(b"text " * 9999)[:40])
    with pytest.raises(DataError, match=rf"{name} cannot be decompressed"):
        texts(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "a.txt").write_text("one")
    (elsewhere / "b.txt").write_text("two")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "twice").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "c.txt").symlink_to(tmp_path / "nothing.txt")
    corpus = find_corpus(folder)
    assert [text for _, text in corpus.documents()] == ["one", "two"]
    assert [path.name for path in corpus.unread] == ["c.txt"]


def test_a_binary_file_without_a_suffix_is_not_read(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "program").write_bytes(b"\x7fELF\0\0")
    assert texts(tmp_path) == ["one"]
    assert [path.name for path in find_corpus(tmp_path).unread] == ["program"]


def test_a_folder_may_hold_saved_sets_and_files(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the datasets library writes what is read")
    folder = tmp_path / "in"
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(folder / "one")
    second = datasets.Dataset.from_dict({"text": ["c"]})
    empty = datasets.Dataset.from_dict({"text": ["x"]}).filter(lambda row: False)
    datasets.DatasetDict(train=second, validation=empty).save_to_disk(folder / "two")
    (folder / "notes.txt").write_text("d")
    assert sorted(texts(folder)) == ["a", "b", "c", "d"]
    held_out = [is_held_out for is_held_out, _ in find_corpus(folder / "two").documents()]
    assert held_out == [False]
