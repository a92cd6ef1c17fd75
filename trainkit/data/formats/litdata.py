"""Litdata: the chunks that litdata writes, and streams of tokens among them."""

import hashlib
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.data.formats.index_file import INDEX, read_index
from trainkit.data.formats.litdata_chunks import Framed, Plain, Rows, open_chunk
from trainkit.data.formats.litdata_leaves import Tree, require_readable, token_dtype, vector
from trainkit.data.formats.mds_columns import Decode
from trainkit.data.formats.recent import Recent
from trainkit.data.formats.shard_files import Packed, ShardFiles, inside
from trainkit.data.formats.sharded import ShardedDataset, unreadable
from trainkit.errors import DataError
from trainkit.storage import Location

_KEPT = 256  # chunks whose offsets are kept
_PICTURES = ("jpeg", "image", "pil", "bytes", "file")


class Litdata(ShardedDataset):
    """The samples of a directory that litdata wrote, each as litdata decodes it: a dict, a list, a tuple or a value.

    A column is a leaf of these, named by its path, such as `x.0`; a sample that is one value has the column `item`.
    With `columns` a sample is a dict of them. Chunks that are compressed as a whole are decompressed once, into the
    cache. Pickles are refused, since they could run code; encrypted chunks are not read.

    Args:
        folder: with index.json and the chunks.
        columns: that a sample has; None: all, in the form they were given in.
        cache_dir: where compressed chunks are decompressed; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.

    Raises:
        DataError: for an index that cannot be read, and for columns that are not.
    """

    def __init__(
        self, folder: Location, *, columns: Sequence[str] | None = None, cache_dir: Path | None = None
    ) -> None:
        index, content = read_index(folder)
        shown = folder.child(INDEX).shown
        config, chunks = read_config(index, shown)
        if config.get("item_loader", "PyTreeLoader") != "PyTreeLoader":
            raise _other_loader(config, shown)
        self._tree, kinds = Tree(config.get("data_spec"), shown), config["data_format"]
        if len(self._tree.names) != len(kinds) or len({*self._tree.names}) < len(kinds):
            raise DataError(f"{shown}: data_format does not fit data_spec; write the data set again")
        super().__init__(
            folder.shown,
            "litdata",
            block_sizes=[chunk["chunk_size"] for chunk in chunks],
            kinds=dict(zip(self._tree.names, kinds, strict=True)),
            columns=columns,
            content=hashlib.blake2b(content, digest_size=16).hexdigest(),
            files=_files(folder, chunks, shown, config, cache_dir),
        )
        self._level = config.get("compression_level") or "chunk"
        self._chunks: Recent[int, Plain | Framed | Rows] = Recent(_KEPT)
        self._decoders: Recent[str, Decode] = Recent(len(kinds))
        for name in self.columns:  # before anything is read
            self._decoder(name)

    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""
        return self.kinds[name] in ("str", "text")

    def is_picture(self, name: str) -> bool:
        """Whether a column may hold encoded pictures."""
        return self.kinds[name].partition(":")[0] in _PICTURES

    def is_pixels(self, name: str) -> bool:
        """Whether a column holds bare pixels."""
        return self.kinds[name] == "pil"

    def is_label(self, name: str) -> bool:
        """Whether a column may hold labels."""
        return self.kinds[name] in ("int", "str")

    def cell(self, index: int, name: str) -> bytes:
        """Returns the bytes of a leaf."""
        shard, row = self.place(index)
        chunk = self._chunk(shard)
        if isinstance(chunk, Rows):
            value = chunk.rows([row])[0].get(name)
            return value if isinstance(value, bytes) else str(value).encode()
        return self._leaves(shard, row, chunk.items([row])[0])[self._tree.names.index(name)]

    def _samples(self, shard: int, rows: list[int]) -> list[Any]:
        chunk = self._chunk(shard)
        if isinstance(chunk, Rows):
            found = chunk.rows(rows)
            return found if self.is_whole else [{name: row.get(name) for name in self.columns} for row in found]
        items = zip(rows, chunk.items(rows), strict=True)
        return [self._sample(shard, row, self._leaves(shard, row, content)) for row, content in items]

    def _sample(self, shard: int, row: int, leaves: list[bytes]) -> Any:
        values: dict[str, Any] = {}
        for name, content in zip(self._tree.names, leaves, strict=True):
            if name in self.columns:
                try:
                    values[name] = self._decoder(name)(content)
                except MemoryError:
                    raise
                except Exception as error:  # Pillow may raise anything for a broken file
                    raise unreadable(self.shard_name(shard), row, name, self.kinds[name], error) from error
        return self._tree.build([*values.values()]) if self.is_whole else {name: values[name] for name in self.columns}

    def _leaves(self, shard: int, row: int, content: bytes) -> list[bytes]:
        count = len(self._tree.names)
        sizes = struct.unpack_from(f"<{count}I", content) if len(content) >= 4 * count else ()
        if sum(sizes) + 4 * count != len(content):
            raise DataError(f"{self.shard_name(shard)}, sample {row}: its columns do not fit into it; copy it again")
        ends = np.cumsum([4 * count, *sizes]).tolist()
        return [content[start:stop] for start, stop in pairwise(ends)]

    def _chunk(self, shard: int) -> Plain | Framed | Rows:
        return self._chunks.get(shard, self._opened)

    def _opened(self, shard: int) -> Plain | Framed | Rows:
        count, is_packed = int(self._counts[shard]), self._level == "sample"
        return open_chunk(self._files.open(shard), count, is_packed, self.shard_name(shard))

    def _raw(self, shard: int, row: int) -> bytes:
        chunk = self._chunk(shard)
        return repr(chunk.rows([row])).encode() if isinstance(chunk, Rows) else chunk.items([row])[0]

    def _prefetch(self, shard: int, rows: list[int]) -> None:
        if shard in self._files.packed:  # read as a whole at its first use
            return
        location = self._files.location(shard)
        if shard not in self._chunks:  # where the items are comes first, and is little
            location.prefetch([(0, 4 * (int(self._counts[shard]) + 2))])
        elif not isinstance(chunk := self._chunk(shard), Rows):
            location.prefetch(chunk.ranges(rows))

    def _decoder(self, name: str) -> Decode:
        return self._decoders.get(name, self._decoder_of)

    def _decoder_of(self, name: str) -> Decode:
        others = [other for other in self._tree.names if other != name]
        return require_readable(name, self.kinds[name], others, self.shown)


class LitdataTokens(ShardedDataset):
    """The blocks of the token streams of a directory that litdata wrote for its TokensLoader: a vector each.

    A chunk is a stream of its own; what is left at its end, shorter than a block, is in no sample.

    Args:
        folder: with index.json and the chunks.
        block_size: tokens of a sample.
        cache_dir: where compressed chunks are decompressed; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.

    Raises:
        DataError: for an index that cannot be read.
    """

    def __init__(self, folder: Location, *, block_size: int, cache_dir: Path | None = None) -> None:
        index, content = read_index(folder)
        shown = folder.child(INDEX).shown
        config, chunks = read_config(index, shown)
        try:
            self._dtype = token_dtype(*config["data_format"])
            self._starts = [4 * (chunk["chunk_size"] + 2) for chunk in chunks]
            sizes = [int(chunk["dim"]) for chunk in chunks]
        except (TypeError, ValueError) as error:
            raise DataError(f"{shown} describes no streams of tokens ({error}); give no block_size") from None
        self.block_size, self._itemsize = block_size, self._dtype.itemsize
        super().__init__(
            folder.shown,
            "litdata tokens",
            block_sizes=[size // block_size for size in sizes],
            kinds={"item": config["data_format"][0]},
            columns=None,
            content=hashlib.blake2b(content + b"%d" % block_size, digest_size=16).hexdigest(),
            files=_files(folder, chunks, shown, config, cache_dir),
        )

    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""
        return False

    is_picture = is_label = is_text

    def cell(self, index: int, name: str) -> bytes:
        """Returns the bytes of a block."""
        return self._raw(*self.place(index))

    def _samples(self, shard: int, rows: list[int]) -> list[Any]:
        ranges = self._ranges(shard, rows)
        opened = self._files.open(shard)
        if max(stop for _, stop in ranges) > opened.num_bytes:
            raise DataError(f"{self.shard_name(shard)} has {opened.num_bytes:,} bytes: it is cut short; copy it again")
        return [vector(content, self._dtype) for content in opened.read(ranges)]

    def _raw(self, shard: int, row: int) -> bytes:
        return self._files.open(shard).read(self._ranges(shard, [row]))[0]

    def _ranges(self, shard: int, rows: list[int]) -> list[tuple[int, int]]:
        size = self.block_size * self._itemsize
        return [(self._starts[shard] + row * size, self._starts[shard] + (row + 1) * size) for row in rows]

    def _prefetch(self, shard: int, rows: list[int]) -> None:
        if shard not in self._files.packed:
            self._files.location(shard).prefetch(self._ranges(shard, rows))


def read_config(index: dict[str, Any], shown: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the configuration of an index of litdata, and its chunks that are not empty.

    Raises:
        DataError: where it is damaged, or the chunks are encrypted.
    """
    config, chunks = index["config"], index["chunks"]
    try:
        if not isinstance(config, dict) or not isinstance(config["data_format"], list):
            raise ValueError("no data_format")
        for chunk in chunks:
            size, num_bytes = chunk["chunk_size"], chunk["chunk_bytes"]
            if not isinstance(size, int) or not 0 <= size < 1 << 30:
                raise ValueError(f"a chunk of {size!r} items")
            if not isinstance(num_bytes, int) or not 0 <= num_bytes < 1 << 40:
                raise ValueError(f"a chunk of {num_bytes!r} bytes")
            inside(chunk["filename"], shown)
        if not all(isinstance(kind, str) for kind in config["data_format"]):
            raise ValueError("a data_format that is no text")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{shown} is damaged ({error}); write the data set again") from None
    if config.get("encryption"):
        raise DataError(f"{shown}: its chunks are encrypted, which is not read; write them without encryption")
    return config, [chunk for chunk in chunks if chunk["chunk_size"]]


def _other_loader(config: dict[str, Any], shown: str) -> DataError:
    loader = config["item_loader"]
    advice = {
        "TokensLoader": "streams of token ids, not text: in your own loop, trainkit.data.open_dataset(PATH, "
        "block_size=TOKENS) reads them",
        "ParquetLoader": "parquet files: read these by themselves",
    }.get(loader, "samples that only that loader of litdata reads: write them with its default one")
    return DataError(f"{shown} was written for litdata's {loader}, and describes {advice}")


def _files(
    folder: Location, chunks: list[dict[str, Any]], shown: str, config: dict[str, Any], cache_dir: Path | None
) -> ShardFiles:
    packed: dict[int, Packed] = {}
    if (codec := config.get("compression")) and (config.get("compression_level") or "chunk") == "chunk":
        if codec.partition(":")[0] != "zstd":
            raise DataError(f"{shown}: chunks are compressed by {codec!r}; zstd is read, so write them with that")
        packed = {number: Packed("zstd", chunk["chunk_bytes"]) for number, chunk in enumerate(chunks)}
    return ShardFiles(folder, [inside(chunk["filename"], shown) for chunk in chunks], shown, packed, cache_dir)
