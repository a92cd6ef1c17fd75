"""TarShard: where the files of the samples of one tar lie, found by its headers or by an index beside it."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainkit.data.formats.shard_files import MAX_SAMPLE_BYTES, OpenShard
from trainkit.errors import DataError
from trainkit.storage import Location

BLOCK = 512
"""Bytes of a header; files begin at multiples of it."""
_HEADERS = 1 << 20  # bytes of the headers of a member at most
_WINDOW = 1 << 16
_SPLIT = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")
_IDX_VERSIONS = {"v1.1": 3, "v1.2": 4}
_MAX_IDX_BYTES = 1 << 30


@dataclass
class TarShard:
    """The samples of a tar: files that follow one another and have the same name up to the first dot.

    Args:
        keys: of the samples.
        counts: files of each sample.
        columns: of each file, the rest of its name, in lower case.
        offsets: of each file, where it begins.
        sizes: of each file, in bytes.
    """

    keys: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def append(self, key: str, column: str, offset: int, size: int, shown: str) -> None:
        """Adds a file, to the last sample if it has this key.

        Raises:
            DataError: where that sample has such a file.
        """
        if not self.keys or self.keys[-1] != key:
            self.keys.append(key)
            self.counts.append(0)
        elif column in self.columns[len(self.columns) - self.counts[-1] :]:
            raise DataError(f"{shown} holds {key}.{column} twice in a row; write it again with different names")
        self.counts[-1] += 1
        self.columns.append(column)
        self.offsets.append(offset)
        self.sizes.append(size)


def scan(shard: OpenShard, shown: str) -> TarShard:
    """Reads the headers of a tar.

    Names are divided as webdataset does: up to the first dot of the last part, and the rest. Files without a dot,
    hidden ones, and those named __*__ are in no sample.

    Args:
        shard: the file.
        shown: how it is named to people.

    Raises:
        DataError: for a file that is no tar, is compressed or cut short, and for links, whose content is elsewhere.
    """
    found, file = TarShard(), _Headers(shard, shown)
    for member in _members(file, shown):
        where = f"{shown}: {member.name[:200]}"
        if member.issym() or member.islnk():
            raise DataError(f"{where} is a link, whose content is elsewhere; write the tar with --hard-dereference -h")
        if member.issparse():
            raise DataError(f"{where} is a sparse file, which is not read; write the tar without --sparse")
        if member.isreg() and not _META.match(member.name) and (parts := _SPLIT.fullmatch(member.name)):
            require_within(member.offset_data, member.size, shard.num_bytes, where)
            found.append(parts[1], parts[2].lower(), member.offset_data, member.size, shown)
    return found


def require_within(offset: int, size: int, num_bytes: int, where: str) -> None:
    """Raises DataError for a file that does not end within its tar, or is too large."""
    if offset < BLOCK or size < 0 or offset + size > num_bytes:
        raise DataError(
            f"{where} lies at bytes {offset:,} to {offset + size:,}, and the tar has {num_bytes:,}: it is cut short or "
            f"damaged; copy it again"
        )
    if size > MAX_SAMPLE_BYTES:
        raise DataError(f"{where} has {size:,} bytes, and at most {MAX_SAMPLE_BYTES:,} are read; leave it out")


def size_in(header: bytes) -> int | None:
    """Returns the size of a file that its header states; None for what is no header."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
    except tarfile.TarError:
        return None


def _members(file: "_Headers", shown: str) -> Iterator[tarfile.TarInfo]:
    opened: Any = file  # of what tarfile asks of one, it has what reading needs
    try:
        with tarfile.open(fileobj=opened, mode="r:") as tar:
            while (member := tar.next()) is not None:
                yield member
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                file.read_bytes = 0
            end = tar.offset
    except RecursionError:
        raise DataError(f"{shown} is no tar: its headers have no end; write it again") from None
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        why = "it is compressed, so that no sample can be found in it: decompress it" if file.is_compressed() else error
        raise DataError(f"{shown} is not a tar that can be read, or not a complete one ({why})") from None
    if file.at(end) != bytes(BLOCK):
        raise DataError(f"{shown} has no end mark of a tar at byte {end:,}: it is cut short or damaged; copy it again")


class _Headers:
    """A file for tarfile, which reads little of it: of a damaged one, tarfile would read gigabytes as a header."""

    def __init__(self, shard: OpenShard, shown: str) -> None:
        self.shard, self.shown, self.place, self.read_bytes = shard, shown, 0, 0
        self._start, self._window = 0, b""

    def read(self, num_bytes: int) -> bytes:
        self.read_bytes += num_bytes
        if self.read_bytes > _HEADERS:
            raise DataError(
                f"{self.shown} has headers of more than {_HEADERS:,} bytes at {self.place:,}: it is damaged"
            )
        content = self.at(self.place, num_bytes)
        self.place += len(content)
        return content

    def at(self, place: int, num_bytes: int = BLOCK) -> bytes:
        stop = min(place + num_bytes, self.shard.num_bytes)
        if self.shard.content is not None:
            return self.shard.content[place:stop]
        if not self._start <= place <= stop <= self._start + len(self._window):
            last = min(max(stop, place + _WINDOW), self.shard.num_bytes)
            self._start, self._window = place, self.shard.location.read(place, last) if place < last else b""
        return self._window[place - self._start : stop - self._start]

    def seek(self, place: int) -> int:
        self.place = place
        return place

    def tell(self) -> int:
        return self.place

    def is_compressed(self) -> bool:
        start = self.at(0, 6)
        return start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"))


def read_idx(location: Location, num_bytes: int) -> TarShard:
    """Reads the index that NVIDIA DALI's wds2idx writes beside a tar, of version 1.1 or 1.2.

    Args:
        location: of the index.
        num_bytes: of the tar.

    Raises:
        DataError: naming the line that is damaged, or does not fit the tar.
    """
    if (size := location.size()) > _MAX_IDX_BYTES:
        raise DataError(f"{location.shown} has {size:,} bytes, and at most {_MAX_IDX_BYTES:,} are read; divide the tar")
    lines = location.read().decode("utf-8", "surrogateescape").splitlines()
    head = lines[0].split() if lines else []
    if len(head) != 2 or head[0] not in _IDX_VERSIONS or not head[1].isdecimal() or int(head[1]) != len(lines) - 1:
        raise _no_idx(location, 1, "it must be `v1.2 SAMPLES`, with that many lines below")
    width, found = _IDX_VERSIONS[head[0]], TarShard()
    for number, line in enumerate(lines[1:], start=2):
        words = line.split(" ")
        if len(words) % width:
            raise _no_idx(location, number, f"its words must be groups of {width}")
        for place in range(0, len(words), width):
            column, offset, size_word = words[place : place + 3]
            if not offset.isdecimal() or not size_word.isdecimal():
                raise _no_idx(location, number, f"{offset!r} and {size_word!r} must be numbers")
            name = words[place + 3] if width == 4 else f"{number - 2:08d}.{column}"
            parts = _SPLIT.fullmatch(name)
            key = parts[1] if parts else name
            require_within(int(offset), int(size_word), num_bytes, f"{location.shown}, line {number}")
            found.append(key, column.lower(), int(offset), int(size_word), location.shown)
    if len(found.keys) != len(lines) - 1:
        raise _no_idx(location, 1, "two samples in a row have one name")
    return found


def _no_idx(location: Location, number: int, why: str) -> DataError:
    return DataError(
        f"{location.shown}, line {number}: {why}; write it again with wds2idx, or remove it, so that the tar is read"
    )
