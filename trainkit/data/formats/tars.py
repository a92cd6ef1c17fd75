"""Tars: the samples of tar files that webdataset writes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.cache import cache_root, cached
from trainkit.data.files import state_of
from trainkit.data.formats.index_file import read_index
from trainkit.data.formats.recent import Recent
from trainkit.data.formats.shard_files import OpenShard, ShardFiles, inside
from trainkit.data.formats.sharded import ShardedDataset
from trainkit.data.formats.tar_shard import BLOCK, TarShard, read_idx, scan, size_in
from trainkit.data.image_formats import extensions
from trainkit.data.mapped_files import MappedFiles
from trainkit.data.parallel import in_order
from trainkit.data.progress import track
from trainkit.errors import DataError
from trainkit.storage import Location

_FORMAT = 1  # of the index: increase it whenever the same tars would give another one
_KEPT = 256
WIDS = "wids-shard-index-v1"
"""The kind of a JSON file that lists shards for webdataset's indexed reading."""
_BINARY = frozenset({"npy", "npz", "pickle", "pkl", "pt", "pth", "pyd", "ten", "tenbin"})
_FILES = {"firsts": np.int64, "offsets": np.int64, "sizes": np.int64, "columns": np.int32, "key_ends": np.int64} | {
    "keys": np.uint8
}


class Tars(ShardedDataset):
    """The samples of tar files as webdataset groups them: {"__key__": text, suffix: bytes} each, not decoded.

    Where each sample lies is read from the `.idx` of NVIDIA DALI beside a tar, where there is one, else from the
    headers of the tar, once for each state of it, into the cache.

    Args:
        folder: that the tars lie in.
        names: of the tars; None: all below the folder, sorted.
        shard_list: the name of a JSON file in the folder that lists the tars, in webdataset's wids format; it has the
            tars in place of `names`.
        columns: suffixes that a sample has; None: all that there are.
        cache_dir: for the index; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.
        progress: whether to show a progress bar.

    Raises:
        DataError: for a tar that cannot be read, and where there is no sample.
    """

    def __init__(
        self,
        folder: Location,
        names: Sequence[str] | None = None,
        *,
        shard_list: str | None = None,
        columns: Sequence[str] | None = None,
        cache_dir: Path | None = None,
        progress: bool = False,
    ) -> None:
        expected: list[int | None] = []
        if shard_list is not None:
            names, expected = _listed(folder, shard_list)
        elif names is None:
            names = [name for name in folder.names() if name.lower().endswith(".tar")]
        index = folder.child(shard_list).shown if shard_list else folder.shown
        files = ShardFiles(folder, names, index)
        self._directory = _index(files, cache_root(cache_dir), progress)
        head = json.loads((self._directory / "summary.json").read_text())
        for name, count, given in zip(names, head["samples"], expected, strict=False):
            if given is not None and given != count:
                raise DataError(f"{folder.child(name).shown} holds {count:,} samples, and {index} says {given:,}")
        kept = [number for number, count in enumerate(head["samples"]) if count]
        if not kept:
            raise DataError(f"{folder.shown} holds no sample: files in tars must have names such as 000001.jpg")
        self._suffixes = tuple(head["columns"])
        super().__init__(
            folder.shown if len(names) != 1 else folder.child(names[0]).shown,
            "webdataset",
            block_sizes=[head["samples"][number] for number in kept],
            kinds=dict.fromkeys(sorted(self._suffixes), "files"),
            columns=columns,
            content=head["digest"],
            files=ShardFiles(folder, [names[number] for number in kept], index),
        )
        self._mapped, self._checked = MappedFiles(), Recent[int, OpenShard](_KEPT)

    def is_text(self, name: str) -> bool:
        """Whether a column may hold text."""
        return not self.is_picture(name) and name.rpartition(".")[2] not in _BINARY

    def is_picture(self, name: str) -> bool:
        """Whether a column holds files of pictures."""
        return f".{name.rpartition('.')[2]}" in extensions()

    def is_label(self, name: str) -> bool:
        """Whether a column may hold labels."""
        return name.rpartition(".")[2] in ("cls", "cls2", "index", "inx", "id", "txt", "text")

    def cell(self, index: int, name: str) -> bytes:
        """Returns the content of a file."""
        shard, row = self.place(index)
        for suffix, place in self._members(shard, row):
            if suffix == name:
                return self._open(shard).read([place])[0]
        raise self._lacks(shard, row, name)

    def keys(self, shard: int) -> list[str]:
        """Returns the names of the samples of a shard, up to the first dot."""
        first = self._first(shard)
        return self._keys(first, first + int(self._counts[shard]))

    def _keys(self, first: int, last: int) -> list[str]:
        ends = self._array("key_ends")
        start = int(ends[first - 1]) if first else 0
        places = (ends[first:last] - start).tolist()
        content = self._array("keys")[start : start + places[-1]].tobytes()
        return [
            content[begin:end].decode("utf-8", "surrogateescape")
            for begin, end in zip([0, *places], places, strict=False)
        ]

    def _samples(self, shard: int, rows: list[int]) -> list[dict[str, Any]]:
        places = [self._members(shard, row) for row in rows]
        if not self.is_whole:
            places = [[member for member in members if member[0] in self.columns] for members in places]
        content = iter(self._open(shard).read([place for members in places for _, place in members]))
        first = self._first(shard)
        found: list[dict[str, Any]] = []
        for row, members in zip(rows, places, strict=True):
            sample: dict[str, Any] = {"__key__": self._keys(first + row, first + row + 1)[0]}
            sample |= {suffix: next(content) for suffix, _ in members}
            if not self.is_whole and len(members) < len(self.columns):
                raise self._lacks(shard, row, next(name for name in self.columns if name not in sample))
            found.append(sample)
        return found

    def _lacks(self, shard: int, row: int, name: str) -> DataError:
        number = self._first(shard) + row
        (key,) = self._keys(number, number + 1)
        return DataError(
            f"{self.shard_name(shard)}: sample {key} has no file {key}.{name}; add it, or leave the sample out"
        )

    def _members(self, shard: int, row: int) -> list[tuple[str, tuple[int, int]]]:
        """Returns (suffix, range of bytes) of the files of a sample."""
        firsts, number = self._array("firsts"), self._first(shard) + row
        where = slice(int(firsts[number]), int(firsts[number + 1]))
        columns, offsets, sizes = (self._array(name)[where].tolist() for name in ("columns", "offsets", "sizes"))
        found = zip(columns, offsets, sizes, strict=True)
        return [(self._suffixes[column], (offset, offset + size)) for column, offset, size in found]

    def _first(self, shard: int) -> int:
        return int(self._ends[shard] - self._counts[shard])

    def _array(self, name: str) -> NDArray[Any]:
        return np.asarray(self._mapped.array(self._directory / f"{name}.bin", np.dtype(_FILES[name])))

    def _open(self, shard: int) -> OpenShard:
        return self._checked.get(shard, self._opened)

    def _opened(self, shard: int) -> OpenShard:
        """Opens a tar, and compares its first file with the index: another tar may have taken its place."""
        opened, shown = self._files.open(shard), self.shard_name(shard)
        ((_, (start, stop)), *_) = self._members(shard, 0)
        last = max(stop for row in (0, int(self._counts[shard]) - 1) for _, (_, stop) in self._members(shard, row))
        header = opened.read([(start - BLOCK, start)])[0] if last <= opened.num_bytes else b""
        if size_in(header) != stop - start:
            raise DataError(f"{shown} is not the tar that its index is of; remove {self._directory} or the .idx file")
        return opened

    def _raw(self, shard: int, row: int) -> bytes:
        members = self._members(shard, row)
        return repr([suffix for suffix, _ in members]).encode() + b"".join(
            self._open(shard).read([place for _, place in members])
        )

    def _prefetch(self, shard: int, rows: list[int]) -> None:
        ranges = [place for row in rows for name, place in self._members(shard, row) if name in self.columns]
        self._files.location(shard).prefetch(ranges)


def _listed(folder: Location, shard_list: str) -> tuple[list[str], list[int | None]]:
    index, _ = read_index(folder, shard_list)
    shown = folder.child(shard_list).shown
    entries = index.get("shardlist")
    if index.get("__kind__") != WIDS or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise DataError(f"{shown} is no list of shards of kind {WIDS}; write it again, or give the folder of the tars")
    counts = [entry.get("nsamples") for entry in entries]
    if not all(count is None or isinstance(count, int) for count in counts):
        raise DataError(f"{shown}: nsamples must be numbers; write it again, or give the folder of the tars")
    return [inside(entry.get("url"), shown) for entry in entries], counts


def idx_of(name: str) -> str:
    """Returns the name of the index that DALI's wds2idx writes for a tar.

    Example:
        >>> idx_of("train/a.00.tar")
        'train/a.idx'
    """
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}.idx"


def _index(files: ShardFiles, root: Path, progress: bool) -> Path:
    """Returns the directory with the index of all tars, which is built where it does not exist."""
    names = set(files.folder.names()) if len(files.names) > 1 else {*files.names}
    beside = {
        name: idx
        for name in files.names
        if (idx := idx_of(name)) in names or (len(names) == 1 and _is_file(files, idx))
    }
    if len({*beside.values()}) < len(beside):
        beside = {}  # names such as a.00.tar and a.01.tar would share one
    digest = hashlib.blake2b(f"{_FORMAT} {sorted(beside)}".encode("utf-8", "surrogateescape"), digest_size=16)
    for name in (*files.names, *beside.values()):
        location = files.folder.child(name)
        path = location.local_path()
        if path is not None:
            digest.update(state_of([path.absolute()]).encode())
        else:
            digest.update(f"{location.shown} {location.size()}\0".encode())
    name = f"tars-{digest.hexdigest()}"
    return cached(root, name, lambda aside: _build(files, beside, aside, progress))


def _is_file(files: ShardFiles, name: str) -> bool:
    return files.folder.child(name).is_file()


def _build(files: ShardFiles, beside: dict[str, str], directory: Path, progress: bool) -> None:
    def indexed(shard: int) -> TarShard:
        opened, name = files.open(shard), files.names[shard]
        if name in beside:
            return read_idx(files.folder.child(beside[name]), opened.num_bytes)
        return scan(opened, files.shown(shard))

    numbers: dict[str, int] = {}
    counts, digest, num_members, key_end = [], hashlib.blake2b(digest_size=16), 0, 0
    shards: Iterator[TarShard] = in_order(indexed, range(len(files.names)))
    outputs = {name: (directory / f"{name}.bin").open("wb") for name in _FILES}
    try:
        outputs["firsts"].write(np.zeros(1, np.int64).tobytes())
        for shard in track(shards, "reading tar headers", len(files.names), progress):
            firsts = np.cumsum(np.asarray(shard.counts, np.int64))
            keys = [key.encode("utf-8", "surrogateescape") for key in shard.keys]
            arrays: dict[str, NDArray[Any]] = {
                "firsts": num_members + firsts,
                "offsets": np.asarray(shard.offsets, np.int64),
                "sizes": np.asarray(shard.sizes, np.int64),
                "columns": np.asarray([numbers.setdefault(c, len(numbers)) for c in shard.columns], np.int32),
                "key_ends": key_end + np.cumsum(np.asarray([len(key) for key in keys], np.int64)),
            }
            arrays["keys"] = np.frombuffer(b"".join(keys), np.uint8)
            for name, values in arrays.items():
                outputs[name].write(values.tobytes())
                digest.update(values.tobytes())
            num_members, key_end = num_members + len(shard.columns), key_end + sum(map(len, keys))
            counts.append(len(keys))
    finally:
        for file in outputs.values():
            file.close()
    summary = {"samples": counts, "columns": [*numbers], "digest": digest.hexdigest()}
    (directory / "summary.json").write_text(json.dumps(summary))
