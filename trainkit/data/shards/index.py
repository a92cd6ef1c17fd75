"""ShardIndex: what a folder of shards holds and was made with, in its shards.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainkit.data.shards.array import ShardedArray, damaged
from trainkit.data.shards.layout import Layout
from trainkit.errors import DataError, StorageError
from trainkit.json_text import digest, parse_json
from trainkit.storage import Location, locate

FILE = "shards.json"
TOKENIZER = "tokenizer.json"
FORMAT, VERSION = "trainkit shards", 1
WORK = ".work"
"""The folder of a build that has not ended."""
Kind = Literal["text", "images"]
_MAX_INDEX_BYTES = 1 << 24


@dataclass(frozen=True)
class ShardIndex:
    """A folder of shards.

    Args:
        folder: that they are in.
        kind: of data.
        content: a hash of everything that decides the samples; of text, the same as without shards.
        settings: that they were made with, by their names in `data`.
        facts: to show to a reader of a run.
        layouts: of the arrays, by name.
        more: what one kind of data has beside, such as the names of classes.
        source: what they were made from.
        digest: a hash of all this.
    """

    folder: Location
    kind: Kind
    content: str
    settings: dict[str, Any]
    facts: dict[str, int | str]
    layouts: dict[str, Layout]
    more: dict[str, Any]
    source: dict[str, Any]
    digest: str

    def array(self, name: str) -> ShardedArray:
        """Returns an array by its name."""
        return ShardedArray(self.folder, self.layouts[name])

    def read_text(self, name: str) -> str:
        """Reads a small file beside the shards, which must have its checksum."""
        where = self.folder.child(name)
        content = where.read()
        if digest(content.decode(errors="replace")) != self.more["digests"][name]:
            raise damaged(where.shown, 0, len(content))
        return content.decode()

    def contradicts(self, name: str, given: object, made_with: object) -> DataError:
        """Returns the error for a setting that the shards were not made with."""
        return DataError(
            f"data.{name}={given}: the shards in {self.folder.shown} were made with {made_with}; leave "
            f"data.{name} out, or run trainkit data prepare with {name}={given} into another folder"
        )


def find_shards(path: str | Path, kind: Kind) -> ShardIndex | None:
    """Finds shards of a kind of data at a path.

    Args:
        path: a path or a URL.
        kind: that is to be read.

    Returns:
        Their index; None: there are no shards.

    Raises:
        DataError: for shards of the other kind, unfinished ones, and an index that cannot be read.
    """
    folder = locate(path)
    if folder.child(FILE).is_file():
        index = read_index(folder)
        if index.kind != kind:
            recipe = {"text": "recipe=bert", "images": "recipe=progressive_gan"}[index.kind]
            raise DataError(f"data.path={folder.shown} holds shards of {index.kind}: use them with {recipe}")
        return index
    if (local := folder.local_path()) is not None and (local / WORK / "plan.json").is_file():
        raise DataError(
            f"data.path={folder.shown} holds shards that are not complete: run the same trainkit data prepare again, "
            f"which goes on where it ended"
        )
    return None


def read_index(folder: Location) -> ShardIndex:
    """Reads the index of a folder of shards, and looks whether the files have their sizes where they are local.

    Raises:
        DataError: where it is none, or of a newer trainkit, or files are missing.
    """
    where = folder.child(FILE)
    if where.size() > _MAX_INDEX_BYTES:
        raise DataError(f"{where.shown} is no index of shards: it has more than {_MAX_INDEX_BYTES:,} bytes")
    try:
        found = parse_json(where.read())
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
        if found["version"] != VERSION:
            raise DataError(f"{where.shown} is of version {found['version']}, and this trainkit reads {VERSION}")
        stored = found.pop("digest")
        if stored != digest(found):
            raise ValueError("it does not have its checksum")
        layouts = {name: Layout(**{**one, "shape": tuple(one["shape"])}) for name, one in found["arrays"].items()}
        kept = {key: found[key] for key in ("kind", "content", "settings", "facts", "more", "source")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where.shown} is no index of shards ({error}); copy it again, or prepare the data again"
        ) from None
    index = ShardIndex(folder=folder, layouts=layouts, digest=stored, **kept)
    _require_sizes(index)
    return index


def _require_sizes(index: ShardIndex) -> None:
    """Of shards on this machine: a file that is too short would end the process that has mapped it."""
    local = index.folder.local_path()
    if local is None:
        return
    for layout in index.layouts.values():
        files = [(layout.file(shard), layout.bytes_of(shard)) for shard in range(layout.num_shards)]
        for name, num_bytes in [*files, (layout.sums_file, layout.sums_bytes)]:
            try:
                found = (local / name).stat().st_size
            except OSError as error:
                raise StorageError(f"{local / name}: {error.strerror}; copy the shards again") from None
            if found != num_bytes:
                raise StorageError(f"{local / name} has {found:,} bytes and should have {num_bytes:,}: copy it again")
