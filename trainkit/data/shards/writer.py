"""Writing shards: from parts of any size, which lie one after the other in an array, to files of one size."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.shards.index import FILE, FORMAT, VERSION
from trainkit.data.shards.layout import SUM_BYTES, Layout, sums_of
from trainkit.data.shards.work import Work, write_whole
from trainkit.json_text import digest, write_json

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


def write_shard(folder: Path, work: Work, parts: Parts, shard: int, *, force: bool = False) -> bool:
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

    def write(path: Path) -> None:
        content = _items(parts, shard).tobytes()
        write_whole(folder / parts.layout.file(shard), lambda half: half.write_bytes(content), work.folder)
        path.write_bytes(sums_of(memoryview(content)).tobytes())

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


def finish(folder: Path, work: Work, layouts: Sequence[Layout], facts: dict[str, Any], files: dict[str, str]) -> None:
    """Writes the checksums, the other files and, last, the index, which makes the folder one of shards.

    Args:
        folder: of the shards.
        work: of the build.
        layouts: of all arrays.
        facts: of the index.
        files: small ones beside it, by name.
    """
    for layout in layouts:

        def write(path: Path, layout: Layout = layout) -> None:
            with path.open("wb") as file:
                for shard in range(layout.num_shards):
                    content = work.result(f"{SUMS}.{layout.name}", shard).read_bytes()
                    start, stop = layout.sums_range(shard)
                    assert len(content) == stop - start and file.tell() == start, f"{len(content)} {SUM_BYTES}"
                    file.write(content)

        write_whole(folder / layout.sums_file, write, work.folder)
    for name, text in files.items():

        def write_text(path: Path, text: str = text) -> None:
            path.write_text(text, encoding="utf-8")

        write_whole(folder / name, write_text, work.folder)
    more = {**facts.pop("more", {}), "digests": {name: digest(text) for name, text in files.items()}}
    index = {"format": FORMAT, "version": VERSION, **facts, "more": more}
    index["arrays"] = {layout.name: {**asdict(layout), "shape": list(layout.shape)} for layout in layouts}
    index["digest"] = digest(index)
    write_whole(folder / FILE, lambda path: write_json(path, index), work.folder)
