"""Opening data sets that other tools wrote."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from trainkit.data.files import counted
from trainkit.data.formats.arrow import STATE, Arrow
from trainkit.data.formats.index_file import INDEX, kind_of, read_index
from trainkit.data.formats.litdata import Litdata, LitdataTokens
from trainkit.data.formats.mds import Mds
from trainkit.data.formats.shard_files import CODECS
from trainkit.data.formats.sharded import ShardedDataset
from trainkit.data.formats.tars import Tars
from trainkit.errors import DataError
from trainkit.storage import Location, is_url, locate

_SHARD = re.compile(rf"\.(tar|bin|mds(\.({'|'.join(CODECS)}))?)$")
READ = (
    "an index.json of mosaicml-streaming (MDS) or litdata with its shards, .tar files of webdataset, and a directory "
    "that Hugging Face datasets saved"
)
"""What `open_dataset` takes, for messages."""


def open_dataset(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    block_size: int | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> ShardedDataset:
    """Opens the data set of another tool where it lies; nothing is copied.

    The format is recognised by what is there: index.json with shards (MDS of mosaicml-streaming 0.13) or chunks
    (litdata 0.2), state.json (`save_to_disk` of Hugging Face datasets), .tar files (webdataset), or a JSON file that
    lists these (wids). What a sample is, is said by the class: `Mds`, `Litdata`, `LitdataTokens`, `Arrow` or `Tars`.
    Each is map-style with random access, so that `runtime.batches` reads it in any order and resumes anywhere.

    Args:
        path: of a folder or file, or its URL.
        columns: that a sample has; None: all.
        block_size: tokens of a sample, where litdata wrote streams of tokens (TokensLoader).
        cache_dir: for shards that are compressed as a whole, and for the index of tars; None: $TRAINKIT_CACHE, else
            ~/.cache/trainkit.
        progress: whether to show progress bars.

    Returns:
        The data set.

    Raises:
        DataError: naming what is there, where it is none of these, or damaged.
    """
    location = locate(path)
    if block_size is not None and block_size < 1:
        raise DataError(f"block_size={block_size}: must be 1 or more tokens")
    if location.is_file():
        parent, name = _divided(path, location)
        kind = kind_of_file(name)
        if kind == "tar":
            return Tars(parent, [name], columns=columns, cache_dir=cache_dir, progress=progress)
        if kind == "list":
            return Tars(parent, shard_list=name, columns=columns, cache_dir=cache_dir, progress=progress)
        if name != INDEX:
            raise DataError(f"{location.shown} is a single file; what is read: {READ}")
        location = parent
    elif not location.is_folder():
        raise DataError(f"{location.shown} does not exist; give the path of a folder or file: {READ}")
    return open_folder(location, columns=columns, block_size=block_size, cache_dir=cache_dir, progress=progress)


def open_folder(
    location: Location,
    *,
    columns: Sequence[str] | None = None,
    block_size: int | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> ShardedDataset:
    """Opens the data set in a folder; see `open_dataset`."""
    found = find_kind(location)
    if block_size is not None:
        if found != "litdata":
            raise DataError(
                f"block_size={block_size} is for streams of tokens that litdata wrote, and {location.shown} is none"
            )
        return LitdataTokens(location, block_size=block_size, cache_dir=cache_dir)
    if found == "mds":
        return Mds(location, columns=columns, cache_dir=cache_dir)
    if found == "litdata":
        return Litdata(location, columns=columns, cache_dir=cache_dir)
    if found == "arrow":
        return Arrow(location, columns=columns, cache_dir=cache_dir, progress=progress)
    names = location.names()
    if any(name.lower().endswith(".tar") for name in names):
        return Tars(location, columns=columns, cache_dir=cache_dir, progress=progress)
    raise _nothing(location, names)


def find_kind(folder: Location) -> str | None:
    """Returns the format that a file in a folder says it is of: mds, litdata or arrow; None where none does.

    Raises:
        DataError: for an index that cannot be read.
    """
    if folder.child(INDEX).is_file():
        return kind_of(read_index(folder)[0])
    if folder.child(STATE).is_file() and "_data_files" in read_index(folder, STATE)[0]:
        return "arrow"
    return None


def shards_in(folder: Location, names: Sequence[str] | None = None) -> str | None:
    """Returns the format of the shards directly in a folder: mds, litdata, arrow or tar; None where there are none.

    Args:
        folder: that may hold shards.
        names: of its files, where they are known.

    Raises:
        DataError: for shards whose index cannot be read.
    """
    if names is None:
        names = _files_in(folder)
    try:
        if (INDEX in names or STATE in names) and (kind := find_kind(folder)):
            return kind
    except DataError:
        if any(is_shard(name) for name in names):
            raise
        return None  # others may write an index.json
    tars = [name for name in names if name.lower().endswith(".tar")]
    beside = (".tar", ".idx", ".json")
    return "tar" if tars and all(name.lower().endswith(beside) for name in names) else None


def _files_in(folder: Location) -> list[str]:
    path = folder.local_path()
    if path is None:
        return [name for name in folder.names() if "/" not in name]
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]


def holds_pictures(dataset: ShardedDataset) -> bool:
    """Whether a data set has a column that surely holds pictures, or none of text and one that may."""
    columns = [name for name in dataset.kinds if dataset.is_picture(name)]
    if any("bytes" not in dataset.kinds[name] and "binary" not in dataset.kinds[name] for name in columns):
        return True
    return bool(columns) and not any(dataset.is_text(name) for name in dataset.kinds)


def content_of_shards(path: Path) -> Literal["text", "images"] | None:
    """Returns what the shards at a path of this machine hold, by their columns: text or images; None: no shards.

    Raises:
        DataError: for shards that cannot be read.
    """
    if not (path.is_dir() and shards_in(locate(path))) and not (path.is_file() and path.name.lower().endswith(".tar")):
        return None
    return "images" if holds_pictures(open_dataset(path, columns=[])) else "text"


def is_shard(name: str) -> bool:
    """Whether a file has the name of a shard.

    Example:
        >>> is_shard("shard.00000.mds.zstd"), is_shard("chunk-0-1.bin"), is_shard("a.txt")
        (True, True, False)
    """
    return _SHARD.search(name.lower()) is not None


def kind_of_file(name: str) -> str | None:
    """Returns `tar`, or `list` for a JSON file that may list shards; None for another file."""
    if name.lower().endswith(".tar"):
        return "tar"
    return "list" if name.lower().endswith(".json") and name != INDEX else None


def _divided(path: str | Path, location: Location) -> tuple[Location, str]:
    """Returns the folder that a file is in, and its name there."""
    if not is_url(path):
        local = location.local_path()
        assert local is not None
        return locate(local.parent), local.name
    folder, _, name = str(path).rpartition("/")
    return locate(folder), name


def _nothing(location: Location, names: Sequence[str]) -> DataError:
    if splits := [
        name.rpartition("/")[0] for name in names if name.endswith(f"/{INDEX}") or name.endswith(f"/{STATE}")
    ]:
        listed = ", ".join(location.child(name).shown for name in splits[:4])
        return DataError(f"{location.shown} holds several data sets; give one of {listed}{' ...' * (len(splits) > 4)}")
    hint = (
        "; tars that are compressed must be decompressed first" if any(".tar." in f"{name}." for name in names) else ""
    )
    found = counted(names) or "nothing"
    return DataError(f"{location.shown} is no data set that is read: found {found}{hint}; what is read: {READ}")
