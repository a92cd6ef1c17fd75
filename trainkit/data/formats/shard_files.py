"""ShardFiles: the bytes of the shards of a data set, mapped into memory or read by range."""

import bz2
import gzip
import io
import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.cache import cache_root, cached
from trainkit.data.formats.hashes import Hash, require_hash, state_of_file
from trainkit.data.formats.recent import Recent
from trainkit.errors import DataError
from trainkit.storage import LocalLocation, Location
from trainkit.storage.location import Range

MAX_SAMPLE_BYTES = 1 << 30
"""Of a sample: a broken index must not fill the memory."""
CODECS = ("zstd", "gz", "bz2", "br")
"""Compressions of whole shards that are read."""
_MOST_OPEN = 256
_BLOCK_BYTES = 1 << 20
_SHARD = "shard"


@dataclass(frozen=True)
class Packed:
    """How a whole shard is compressed.

    Args:
        codec: one of `CODECS`.
        num_bytes: of the shard, decompressed.
    """

    codec: str
    num_bytes: int


@dataclass(frozen=True)
class OpenShard:
    """A shard whose bytes can be read.

    Args:
        location: of the file that is read, decompressed.
        num_bytes: its size.
        content: all of it, mapped into memory; None: it lies elsewhere.
    """

    location: Location
    num_bytes: int
    content: mmap.mmap | bytes | None

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Returns the bytes of ranges, which lie in the file."""
        if self.content is not None:
            return [self.content[start:stop] for start, stop in ranges]
        return self.location.read_ranges(ranges)

    def array(self, dtype: str, count: int, offset: int) -> NDArray[Any]:
        """Returns `count` numbers from byte `offset` on, which lie in the file, without copying where it is mapped."""
        if self.content is not None:
            return np.frombuffer(self.content, dtype, count, offset)
        size = np.dtype(dtype).itemsize * count
        return np.frombuffer(self.location.read(offset, offset + size), dtype) if size else np.empty(0, dtype)


class ShardFiles:
    """The shards of a data set. A process has some of them open; a copy in another process opens its own.

    A shard that is compressed as a whole is decompressed once, into the cache.

    Args:
        folder: that the shards lie in.
        names: of the shards, relative to it.
        index: what names them, for messages.
        packed: of each shard that is compressed, by its number, how.
        cache_dir: where these are decompressed; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.
        is_copied: whether shards that lie elsewhere are copied into the cache, as a whole, and read from there.
        hashes: of the files of some shards, by their numbers, which are checked when a file is opened, once for each
            state of it. Of one that is read from elsewhere by ranges none is.
    """

    def __init__(
        self,
        folder: Location,
        names: Sequence[str],
        index: str,
        packed: dict[int, Packed] | None = None,
        cache_dir: Path | None = None,
        *,
        is_copied: bool = False,
        hashes: dict[int, Hash] | None = None,
    ) -> None:
        self.folder, self.names, self.index, self.packed, self.cache_dir = folder, names, index, packed or {}, cache_dir
        self.is_copied, self.hashes = is_copied, hashes or {}
        self._open: Recent[int, OpenShard] = Recent(_MOST_OPEN)
        self._locations: Recent[int, Location] = Recent(_MOST_OPEN)  # what a store says of a file is asked for once

    @property
    def is_local(self) -> bool:
        """Whether the shards lie on this machine."""
        return self.folder.local_path() is not None

    def open(self, shard: int) -> OpenShard:
        """Opens a shard.

        Raises:
            DataError: where it is not there.
        """
        return self._open.get(shard, self._opened)

    def location(self, shard: int) -> Location:
        """Returns where the file of a shard lies, compressed or not."""
        return self._locations.get(shard, lambda number: self.folder.child(self.names[number]))

    def paths(self) -> list[Path]:
        """Returns the files of the shards on this machine; none where they lie elsewhere."""
        found = [self.location(shard).local_path() for shard in range(len(self.names))]
        return [path for path in found if path is not None]

    def shown(self, shard: int) -> str:
        """Returns how a shard is named to people."""
        return self.location(shard).shown

    def _opened(self, shard: int) -> OpenShard:
        location = self.location(shard)
        if not location.is_file():
            raise DataError(f"{location.shown} is not there, and {self.index} names it; copy the data set again")
        if location.local_path() is None and self.is_copied:
            location = LocalLocation(copied(location, self.cache_dir))
        if shard in self.hashes:
            require_hash(location, self.hashes[shard], self.cache_dir, is_read=shard in self.packed)
        if shard in self.packed:
            location = LocalLocation(expanded(location, self.packed[shard], self.cache_dir))
        path, num_bytes = location.local_path(), location.size()
        return OpenShard(location, num_bytes, None if path is None else _mapped(path))


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:  # nothing cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def inside(name: object, index: str) -> str:
    """Returns the name of a file that an index names, once it is known to lie below the folder of the index.

    Args:
        name: as it is written in the index.
        index: how the index is named to people.

    Raises:
        DataError: where it leads elsewhere, or is no name.
    """
    if isinstance(name, str) and name:
        path = PurePosixPath(name.replace("\\", "/"))
        if not path.is_absolute() and ".." not in path.parts and "://" not in name and path.parts:
            return str(path)
    raise DataError(f"{index} names the file {name!r}, which does not lie beside it; write the index again")


def expanded(location: Location, packed: Packed, cache_dir: Path | None = None) -> Path:
    """Decompresses a whole shard into the cache, once for each state of it.

    Args:
        location: of the compressed file.
        packed: how it is compressed.
        cache_dir: None: $TRAINKIT_CACHE, else ~/.cache/trainkit.

    Returns:
        The path of the decompressed file.

    Raises:
        DataError: where it cannot be decompressed, or becomes larger or smaller than `packed` says.
    """
    name = f"shard-{state_of_file(location, packed)}"
    return cached(cache_root(cache_dir), name, lambda aside: _expand(location, packed, aside / _SHARD)) / _SHARD


def copied(location: Location, cache_dir: Path | None = None) -> Path:
    """Copies a whole file into the cache, once for each state of it; returns the path of the copy."""
    name = f"shard-{state_of_file(location)}"
    return cached(cache_root(cache_dir), name, lambda aside: location.download(aside / _SHARD)) / _SHARD


def _expand(location: Location, packed: Packed, target: Path) -> None:
    import pyarrow

    path = location.local_path()
    with path.open("rb") if path is not None else io.BytesIO(location.read()) as source, target.open("wb") as file:
        left = packed.num_bytes
        try:
            opened = _decompressed(source, packed.codec)
            while left >= 0 and (block := opened.read(_BLOCK_BYTES)):
                left -= len(block)
                file.write(block)
        except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the content
                raise
            raise DataError(f"{location.shown} cannot be decompressed ({error}); copy it again") from None
    if left:
        more = f"more than {packed.num_bytes:,}" if left < 0 else f"{packed.num_bytes - left:,}"
        raise DataError(
            f"{location.shown} has {more} bytes when it is decompressed, and its index says {packed.num_bytes:,}; copy "
            f"it again"
        )


def _decompressed(source: Any, codec: str) -> Any:
    import pyarrow

    if codec == "gz":
        return gzip.GzipFile(fileobj=source)
    if codec == "bz2":
        return bz2.BZ2File(source)
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(source, "r"), {"br": "brotli"}.get(codec, codec))
