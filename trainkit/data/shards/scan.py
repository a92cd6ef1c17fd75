"""Scan: the documents of a group of files, read once, and kept in chunks of about as much text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.readers import Skip, documents_of
from trainkit.data.shards.work import Work
from trainkit.data.split import content_key
from trainkit.errors import DataError

_TEXTS = "texts"
_MOST_CHUNKS = 1 << 24  # of a group
NUM_NAMED = 100
"""Rows left out that are named."""


@dataclass(frozen=True)
class Scan:
    """What is known of a group.

    Args:
        chunks: by their numbers, in order.
        counts: documents in each.
        num_chars: of all documents.
        num_left_out: rows that could not be read.
        left_out: why the first of them could not.
    """

    chunks: list[int]
    counts: list[int]
    num_chars: int
    num_left_out: int
    left_out: list[str]

    @classmethod
    def read(cls, path: Path) -> "Scan":
        """Reads what `scan` wrote."""
        return cls(**json.loads(path.read_text()))


def scan(work: Work, group: int, files: Sequence[Path], field: str, skip: bool, chunk_chars: int, path: Path) -> None:
    """Reads the documents of a group of files, each as one of a chunk that is written as soon as it is full.

    Args:
        work: of the build, which the chunks are results of.
        group: its number.
        files: of the group.
        field: the key or column that contains the text.
        skip: whether rows that cannot be read are left out.
        chunk_chars: characters in a chunk, about.
        path: of the file to write, of a `Scan`.

    Raises:
        DataError: naming the file and the place that cannot be read.
    """
    left_out = _LeftOut()
    counts, num_chars = list[int](), 0
    for texts in _chunks(files, field, left_out if skip else None, chunk_chars):
        work.make(_TEXTS, group * _MOST_CHUNKS + len(counts), partial(_write, texts), force=True)
        counts.append(len(texts))
        num_chars += sum(map(len, texts))
    chunks = [group * _MOST_CHUNKS + number for number in range(len(counts))]
    path.write_text(json.dumps(asdict(Scan(chunks, counts, num_chars, left_out.num, left_out.first))))


def keys_of(work: Work, chunk: int) -> NDArray[np.uint64]:
    """Returns the hashes of the documents of a chunk."""
    with np.load(work.result(_TEXTS, chunk), allow_pickle=False) as arrays:
        keys: NDArray[np.uint64] = arrays["keys"]
    return keys


def texts_of(work: Work, chunk: int) -> Iterator[str]:
    """Yields the documents of a chunk."""
    import pyarrow

    found = load_arrays(work.result(_TEXTS, chunk))
    content = pyarrow.decompress(found["text"].tobytes(), int(found["ends"][-1]), "zstd", asbytes=True)
    start = 0
    for stop in found["ends"].tolist():
        yield content[start:stop].decode(errors="surrogatepass")
        start = stop


class _LeftOut:
    """Counts what is left out."""

    def __init__(self) -> None:
        self.num, self.first = 0, list[str]()

    def __call__(self, error: DataError) -> None:
        self.num += 1
        if self.num <= NUM_NAMED:
            self.first.append(str(error))


def _chunks(files: Sequence[Path], field: str, skip: Skip | None, chunk_chars: int) -> Iterator[list[str]]:
    texts, num_chars = list[str](), 0
    for file in files:
        for text in documents_of(file, field, skip):
            texts.append(text)
            num_chars += len(text)
            if num_chars >= chunk_chars:
                yield texts
                texts, num_chars = [], 0
    if texts:
        yield texts


def _write(texts: Sequence[str], path: Path) -> None:
    import pyarrow

    encoded = [text.encode(errors="surrogatepass") for text in texts]
    packed = pyarrow.compress(b"".join(encoded), "zstd", asbytes=True)
    save_arrays(
        path,
        {
            "keys": np.array([content_key(text) for text in texts], np.uint64),
            "ends": np.cumsum([len(one) for one in encoded], dtype=np.int64),
            "text": np.frombuffer(packed, np.uint8),
        },
    )


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays by name to one file."""
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    """Reads what `save_arrays` wrote; the last few files are remembered."""
    return _load(path, path.stat().st_mtime_ns)  # another build in this process may have a file there


@lru_cache(maxsize=4)
def _load(path: Path, stamp: int) -> Mapping[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
