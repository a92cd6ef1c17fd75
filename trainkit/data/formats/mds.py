"""MDS: the shards that mosaicml-streaming writes.

A shard is the number of samples, where each begins and the last one ends (all uint32, little endian), a description of
the columns, and the samples: the sizes of its values that have no fixed one (uint32), and the values.
"""

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trainkit.data.formats.hashes import hash_in
from trainkit.data.formats.index_file import INDEX, read_index
from trainkit.data.formats.mds_columns import Decode, require_readable
from trainkit.data.formats.recent import Recent
from trainkit.data.formats.shard_files import CODECS, Packed, ShardFiles, inside
from trainkit.data.formats.sharded import ShardedDataset, checked_offsets, unreadable
from trainkit.errors import DataError
from trainkit.storage import Location

_KEPT = 256  # shards whose offsets are kept


class Mds(ShardedDataset):
    """The samples of a directory in MDS format, version 2: a dict by column each, as mosaicml-streaming decodes them.

    Shards that are compressed as a whole (zstd, gz, bz2, br) are decompressed once, into the cache. Columns that are
    pickles are refused, since they could run code.

    Args:
        folder: with index.json and the shards.
        columns: that a sample has; None: all.
        cache_dir: where compressed shards are decompressed; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.

    Raises:
        DataError: for an index that cannot be read, and for columns that are not.
    """

    def __init__(
        self, folder: Location, *, columns: Sequence[str] | None = None, cache_dir: Path | None = None
    ) -> None:
        index, content = read_index(folder)
        shown = folder.child(INDEX).shown
        shards = _entries(index, shown)
        names, packed, hashes = [], {}, {}
        for number, shard in enumerate(shards):
            name, how = _file_of(shard, folder, shown)
            names.append(name)
            if how is not None:
                packed[number] = how
            if (found := hash_in(shard["zip_data" if how else "raw_data"].get("hashes"), shown)) is not None:
                hashes[number] = found
        head = shards[0] if shards else {"column_names": [], "column_encodings": [], "column_sizes": []}
        super().__init__(
            folder.shown,
            "MDS",
            block_sizes=[shard["samples"] for shard in shards],
            kinds=dict(zip(head["column_names"], head["column_encodings"], strict=True)),
            columns=columns,
            content=hashlib.blake2b(content, digest_size=16).hexdigest(),
            files=ShardFiles(folder, names, shown, packed, cache_dir, hashes=hashes),
        )
        self._sizes: list[int | None] = head["column_sizes"]
        self._names = [*self.kinds]
        self._head = f"<{sum(not size for size in self._sizes)}I"
        self._offsets: Recent[int, NDArray[Any]] = Recent(_KEPT)
        self._decoders: Recent[str, Decode] = Recent(len(self._names))
        for name in self.columns:  # before anything is read
            self._decoder(name)

    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""
        return self.kinds[name] == "str"

    def is_picture(self, name: str) -> bool:
        """Whether a column may hold encoded pictures."""
        return self.kinds[name] in ("jpeg", "png", "pil", "bytes")

    def is_pixels(self, name: str) -> bool:
        """Whether a column holds bare pixels."""
        return self.kinds[name] == "pil"

    def is_label(self, name: str) -> bool:
        """Whether a column may hold labels."""
        return self.kinds[name] in ("int", "str", "str_int") or self.kinds[name].startswith(("int", "uint"))

    def cell(self, index: int, name: str) -> bytes:
        """Returns the bytes of a value."""
        shard, row = self.place(index)
        return self._values(shard, row, self._raw(shard, row))[self._names.index(name)]

    def _samples(self, shard: int, rows: list[int]) -> list[dict[str, Any]]:
        found, shown = [], self._files.shown
        columns = [(name, self._names.index(name), self._decoder(name)) for name in self.columns]
        for row, content in zip(rows, self._files.open(shard).read(self._ranges(shard, rows)), strict=True):
            values, sample = self._values(shard, row, content), {}
            for name, number, decode in columns:
                try:
                    sample[name] = decode(values[number])
                except MemoryError:
                    raise
                except Exception as error:  # Pillow may raise anything for a broken file
                    raise unreadable(shown(shard), row, name, self.kinds[name], error) from error
            found.append(sample)
        return found

    def _values(self, shard: int, row: int, content: bytes) -> list[bytes]:
        place, values = struct.calcsize(self._head), list[bytes]()
        if len(content) < place:
            raise self._cut(shard, row)
        given = iter(struct.unpack_from(self._head, content))
        for size in self._sizes:
            stop = place + (size or next(given))
            values.append(content[place:stop])
            place = stop
        if place != len(content):
            raise self._cut(shard, row)
        return values

    def _cut(self, shard: int, row: int) -> DataError:
        return DataError(f"{self._files.shown(shard)}, sample {row}: its columns do not fit into it; copy it again")

    def _raw(self, shard: int, row: int) -> bytes:
        return self._files.open(shard).read(self._ranges(shard, [row]))[0]

    def _ranges(self, shard: int, rows: list[int]) -> list[tuple[int, int]]:
        offsets = self._offsets.get(shard, self._read_offsets)
        return [(int(offsets[row]), int(offsets[row + 1])) for row in rows]

    def _read_offsets(self, shard: int) -> NDArray[Any]:
        opened, expected, shown = self._files.open(shard), int(self._counts[shard]), self._files.shown(shard)
        first = 4 * (expected + 2)
        if opened.num_bytes < first:
            raise DataError(f"{shown} has {opened.num_bytes:,} bytes, too few for its samples; copy it again")
        table = opened.array("<u4", expected + 2, 0)
        if table[0] != expected:
            raise DataError(f"{shown} holds {table[0]:,} samples, and its index says {expected:,}; copy both again")
        return checked_offsets(table[1:], first, opened.num_bytes, shown)

    def _prefetch(self, shard: int, rows: list[int]) -> None:
        if shard in self._files.packed:  # read as a whole at its first use
            return
        if shard in self._offsets:
            self._files.location(shard).prefetch(self._ranges(shard, rows))
        else:  # where the samples are comes first, and is little
            self._files.location(shard).prefetch([(0, 4 * (int(self._counts[shard]) + 2))])

    def _decoder(self, name: str) -> Decode:
        return self._decoders.get(name, self._decoder_of)

    def _decoder_of(self, name: str) -> Decode:
        others = [other for other in self._names if self.kinds[other] != "pkl" and other != name]
        return require_readable(name, self.kinds[name], others, self.shown)


def _entries(index: dict[str, Any], shown: str) -> list[dict[str, Any]]:
    shards = index["shards"]
    for number, shard in enumerate(shards):
        try:
            if shard["format"] != "mds" or shard["version"] != 2:
                raise ValueError(f"format {shard['format']}, version {shard['version']}: only MDS, version 2, is read")
            samples, names = shard["samples"], shard["column_names"]
            if not isinstance(samples, int) or not 0 <= samples < 1 << 30:
                raise ValueError(f"{samples!r} samples")
            if len({*names}) != len(names) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"the columns {names}")
            if not len(names) == len(shard["column_encodings"]) == len(shard["column_sizes"]):
                raise ValueError("columns without encodings or sizes")
            if not all(isinstance(encoding, str) for encoding in shard["column_encodings"]):
                raise ValueError("an encoding that is no text")
            if not all(size is None or (type(size) is int and size >= 0) for size in shard["column_sizes"]):
                raise ValueError("a size that is no number")
            for key in ("column_names", "column_encodings", "column_sizes"):
                if shard[key] != shards[0][key]:
                    raise ValueError("other columns than the first shard")
        except (KeyError, TypeError, ValueError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else error
            raise DataError(f"{shown}: shard {number} has {said}; write the data set again") from None
    return [shard for shard in shards if shard["samples"]]


def _file_of(shard: dict[str, Any], folder: Location, shown: str) -> tuple[str, Packed | None]:
    try:
        name = inside(shard["raw_data"]["basename"], shown)
        zipped = shard.get("zip_data")
        if not zipped or folder.child(name).is_file():
            return name, None
        codec, num_bytes = str(shard["compression"]).partition(":")[0], shard["raw_data"]["bytes"]
        packed = inside(zipped["basename"], shown)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{shown} does not say where its shards are ({error}); write the data set again") from None
    if codec not in CODECS or not isinstance(num_bytes, int) or not 0 <= num_bytes < 1 << 32:
        raise DataError(
            f"{shown}: shards are compressed by {codec!r} to {num_bytes!r} bytes; {', '.join(CODECS)} are read, so "
            f"write them with one of these, or decompressed"
        )
    return packed, Packed(codec, num_bytes)
