"""Writing shards: from parts of any size, which lie one after the other in an array, to files of one size."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainkit.data.parallel import in_order
from trainkit.data.shards.index import FILE, FORMAT, VERSION
from trainkit.data.shards.layout import SUM_BYTES, Layout, sums_of
from trainkit.data.shards.work import Work
from trainkit.json_text import digest
from trainkit.storage import Location

SUMS = "sums"


@dataclass(frozen=True)
class Parts:
    """An array to be written, as parts that follow one another.

    Args:
        layout: of the shards.
        counts: int64 [parts], the items in each.
        read: called with the number of a part for its items.
    """

    layout: Layout
    counts: NDArray[np.int64]
    read: Callable[[int], NDArray[Any]]


def write_shard(folder: Location, work: Work, parts: Parts, shard: int, *, force: bool = False) -> bool:
    """Writes one shard, unless it is there.

    Args:
        folder: of the shards.
        work: of the build; the checksums of the shard are a result in it, and so are written last.
        parts: of the array.
        shard: its number.
        force: as of `Work.make`.

    Returns:
        Whether it is there; False: another process writes it.
    """

    def write(file: BinaryIO) -> None:
        content = memoryview(_items(parts, shard).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        work.put(folder.child(parts.layout.file(shard)), lambda shard_file: shard_file.write(content))
        file.write(sums_of(content).tobytes())

    return work.make(f"{SUMS}.{parts.layout.name}", shard, write, force=force)


def _items(parts: Parts, shard: int) -> NDArray[Any]:
    layout = parts.layout
    start = shard * layout.items_per_shard
    stop = start + layout.items_of(shard)
    ends = np.cumsum(parts.counts)
    found = np.empty((stop - start, *layout.shape), layout.dtype)
    first = int(np.searchsorted(ends, start, side="right"))
    for number in range(first, int(np.searchsorted(ends, stop, side="left")) + 1):
        if not parts.counts[number]:
            continue
        begin = int(ends[number] - parts.counts[number])  # of the part, in the array
        low, high = max(start, begin), min(stop, int(ends[number]))
        found[low - start : high - start] = parts.read(number)[low - begin : high - begin]
    return found


def finish(
    folder: Location, work: Work, layouts: Sequence[Layout], facts: dict[str, Any], files: dict[str, str]
) -> None:
    """Writes the checksums, the other files and, last, the index, which makes the folder one of shards.

    Args:
        folder: of the shards.
        work: of the build.
        layouts: of all arrays.
        facts: of the index.
        files: small ones beside it, by name.
    """
    for layout in layouts:
        work.put(folder.child(layout.sums_file), partial(_write_sums, work, layout))
    for name, text in files.items():
        work.put(folder.child(name), partial(_write_text, text))
    more = {**facts.pop("more", {}), "digests": {name: digest(text) for name, text in files.items()}}
    index = {"format": FORMAT, "version": VERSION, **facts, "more": more}
    index["arrays"] = {layout.name: {**asdict(layout), "shape": list(layout.shape)} for layout in layouts}
    index["digest"] = digest(index)
    work.put(folder.child(FILE), partial(_write_text, json.dumps(index, indent=1, allow_nan=False) + "\n"))


def _write_sums(work: Work, layout: Layout, file: BinaryIO) -> None:
    results = in_order(partial(work.read, f"{SUMS}.{layout.name}"), range(layout.num_shards))
    for shard, content in enumerate(results):
        start, stop = layout.sums_range(shard)
        assert len(content) == stop - start and file.tell() == start, f"{len(content)} {SUM_BYTES}"
        file.write(content)


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())
