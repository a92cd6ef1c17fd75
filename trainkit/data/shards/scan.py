"""Scan: the documents of a group of files, read once, and kept in chunks of about as much text."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainkit.data.left_out_rows import LeftOutRows
from trainkit.data.parallel import in_order
from trainkit.data.readers import Skip, documents_of
from trainkit.data.shards.work import Work
from trainkit.data.split import content_key

_TEXTS, _KEYS, _SCANS = "texts", "keys", "scans"
_MOST_CHUNKS = 1 << 24  # of a group
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
    def all(cls, work: Work, num: int) -> "list[Scan]":
        """Reads what `scan` wrote of each of `num` groups."""
        return [cls(**json.loads(content)) for content in in_order(partial(work.read, _SCANS), range(num))]


def scan(
    work: Work, group: int, files: Sequence[Path], field: str, skip: bool, chunk_chars: int, *, force: bool = False
) -> bool:
    """Reads the documents of a group of files, each as one of a chunk that is written as soon as it is full.

    Args:
        work: of the build, which the chunks are results of, and what is known of the group.
        group: its number.
        files: of the group.
        field: the key or column that contains the text.
        skip: whether rows that cannot be read are left out.
        chunk_chars: characters in a chunk, about.
        force: as of `Work.make`.

    Returns:
        Whether it is there.

    Raises:
        DataError: naming the file and the place that cannot be read.
    """

    def write(file: BinaryIO) -> None:
        left_out = LeftOutRows()
        counts, num_chars = list[int](), 0
        for texts in _chunks(files, field, left_out if skip else None, chunk_chars):
            chunk = group * _MOST_CHUNKS + len(counts)
            work.make(_KEYS, chunk, partial(_write_keys, texts), force=True)
            work.make(_TEXTS, chunk, partial(_write_texts, texts), force=True)
            counts.append(len(texts))
            num_chars += sum(map(len, texts))
        chunks = [group * _MOST_CHUNKS + number for number in range(len(counts))]
        file.write(json.dumps(asdict(Scan(chunks, counts, num_chars, left_out.num, left_out.first))).encode())

    return work.make(_SCANS, group, write, force=force)


def keys_of(work: Work, chunk: int) -> NDArray[np.uint64]:
    """Returns the hashes of the documents of a chunk."""
    return np.frombuffer(work.read(_KEYS, chunk), np.uint64)


def texts_of(work: Work, chunk: int) -> Iterator[str]:
    """Yields the documents of a chunk."""
    import pyarrow

    found = load_arrays(work, _TEXTS, chunk)
    content = pyarrow.decompress(found["text"].tobytes(), int(found["ends"][-1]), "zstd", asbytes=True)
    start = 0
    for stop in found["ends"].tolist():
        yield content[start:stop].decode(errors="surrogatepass")
        start = stop


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


def _write_keys(texts: Sequence[str], file: BinaryIO) -> None:
    file.write(np.array([content_key(text) for text in texts], np.uint64).tobytes())


def _write_texts(texts: Sequence[str], file: BinaryIO) -> None:
    import pyarrow

    encoded = [text.encode(errors="surrogatepass") for text in texts]
    packed = pyarrow.compress(b"".join(encoded), "zstd", asbytes=True)
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    np.savez(file, ends=ends, text=np.frombuffer(packed, np.uint8))


@lru_cache(maxsize=4)
def load_arrays(work: Work, phase: str, number: int = 0) -> Mapping[str, NDArray[Any]]:
    """Reads a result that holds arrays by name; the last few are remembered."""
    with np.load(io.BytesIO(work.read(phase, number)), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
