"""Checks of whole shards on this machine, by their checksums."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from trainkit.cache import cached
from trainkit.data.files import state_of
from trainkit.data.progress import track
from trainkit.data.shards.array import damaged
from trainkit.data.shards.index import ShardIndex
from trainkit.data.shards.layout import PIECE_BYTES, Layout, sums_of

_NUM_THREADS = 4


def verify(index: ShardIndex, memory: Path, progress: bool = True) -> None:
    """Checks every byte of shards on this machine, once per state of their files; those from afar are checked as read.

    Args:
        index: of the shards.
        memory: a directory that keeps what was checked.
        progress: whether to show a progress bar.

    Raises:
        StorageError: naming the first shard that is damaged.
    """
    local = index.folder.local_path()
    if local is None:
        return
    jobs = [(layout, shard) for layout in index.layouts.values() for shard in range(layout.num_shards)]
    files = [local / layout.file(shard) for layout, shard in jobs]
    files += [local / layout.sums_file for layout in index.layouts.values()]

    def check_all(directory: Path) -> None:
        with ThreadPoolExecutor(_NUM_THREADS) as pool:  # hashing releases the interpreter lock
            checked = pool.map(lambda job: _check(local, *job), jobs)
            for _ in track(checked, "checking shards", len(jobs), progress):
                pass
        (directory / "checked.json").write_text(json.dumps({"shards": len(jobs)}))

    cached(memory, f"verified-{state_of(path.absolute() for path in files)}", check_all)


def _check(local: Path, layout: Layout, shard: int) -> None:
    path = local / layout.file(shard)
    found = sums_of(memoryview(np.memmap(path, np.uint8, "r")))  # type: ignore[arg-type]  # an array is a buffer
    start, stop = layout.sums_range(shard)
    with (local / layout.sums_file).open("rb") as file:
        file.seek(start)
        stored = np.frombuffer(file.read(stop - start), "<u8")
    wrong = np.flatnonzero(found != stored)
    if len(wrong):
        first = int(wrong[0]) * PIECE_BYTES
        raise damaged(str(path), first, min(first + PIECE_BYTES, layout.bytes_of(shard)))
