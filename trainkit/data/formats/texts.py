"""Texts: documents from the shards of other tools, one file after another."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from trainkit.data.formats.index_file import INDEX
from trainkit.data.formats.opening import open_dataset, shards_in
from trainkit.data.formats.sharded import ShardedDataset
from trainkit.errors import DataError
from trainkit.storage import locate

_LEVELS = 3  # of folders that an index may lie above its shards


def find_shards(folder: Path, names: Sequence[str]) -> list[Path] | None:
    """Returns the files of the shards that lie in a folder, in MDS, of litdata or as tars; None where there are none.

    Args:
        folder: that may hold shards.
        names: of its files.

    Raises:
        DataError: for shards whose index cannot be read.
    """
    kind = shards_in(locate(folder), names)
    if kind in (None, "arrow"):  # these are found by their own index
        return None
    if kind == "tar":
        return [folder / name for name in sorted(names) if name.lower().endswith(".tar")]
    dataset = open_dataset(folder, columns=[])
    if missing := next((path for path in dataset.paths() if not path.is_file()), None):
        raise DataError(f"data.path: {missing} is not there, and {folder / INDEX} names it; copy the data set again")
    return dataset.paths()


def read_shard(path: Path, field: str) -> Iterator[str]:
    """Yields the column `field` of the samples of a shard.

    Raises:
        DataError: where the column does not exist or holds no text, or the shard is damaged.
    """
    source = path if path.name.lower().endswith(".tar") else _index_of(path)
    status = source.stat()
    dataset, numbers = _opened(source, field, status.st_mtime_ns, status.st_size)
    if path not in numbers:
        raise DataError(f"{path} is not among the shards of {source}; copy the data set again")
    yield from dataset.documents(numbers[path], field)


@lru_cache(4)
def _opened(source: Path, field: str, *state: int) -> tuple[ShardedDataset, dict[Path, int]]:
    del state  # only tells an index from one that was written later
    open_dataset(source, columns=[]).require(field, "set data.field=NAME")
    dataset = open_dataset(source, columns=[field])
    return dataset, {path: number for number, path in enumerate(dataset.paths())}


def _index_of(path: Path) -> Path:
    for folder in path.parents[:_LEVELS]:
        if (folder / INDEX).is_file():
            return folder / INDEX
    raise DataError(f"{path} is a shard without its {INDEX}; copy that, too")
