"""ShardIndex: what a folder of shards holds and was made with, in its shards.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainkit.data.pyramid import resolutions
from trainkit.data.shards.array import ShardedArray, damaged, twice
from trainkit.data.shards.layout import Layout
from trainkit.errors import DataError, StorageError
from trainkit.json_text import digest, parse_json
from trainkit.storage import Location, locate

FILE = "shards.json"
TOKENIZER = "tokenizer.json"
FORMAT, VERSION = "trainkit shards", 1
WORK = ".work"
"""The folder of a build that has not ended."""
PLAN = "plan.json"
"""In that folder: what is being made."""
Kind = Literal["text", "images"]
_MAX_INDEX_BYTES = 1 << 24
_DTYPES = ("<u2", "<u4", "<i8", "<u8", "|u1")


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

        def read() -> str:
            content = where.read()
            if digest(content.decode(errors="replace")) != self.more["digests"][name]:
                raise damaged(where.shown, 0, len(content))
            return content.decode()

        return twice(read, where, [(0, where.size())])

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
    if folder.child(f"{WORK}/{PLAN}").is_file():
        raise DataError(
            f"data.path={folder.shown} holds shards that are not complete: run the same trainkit data prepare again, "
            f"which goes on where it ended"
        )
    return None


def read_index(folder: Location) -> ShardIndex:
    """Reads the index of a folder of shards.

    Raises:
        DataError: where it is none, or of a newer trainkit.
    """
    where = folder.child(FILE)
    return twice(lambda: _read_index(folder, where), where, [(0, where.size())])


def _read_index(folder: Location, where: Location) -> ShardIndex:
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
        _require_usable(found, layouts)
        kept = {key: found[key] for key in ("kind", "content", "settings", "facts", "more", "source")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{where.shown} is no index of shards ({error}); copy it again, or prepare the data again"
        ) from None
    return ShardIndex(folder=folder, layouts=layouts, digest=stored, **kept)


def _require_usable(found: Any, layouts: Mapping[str, Layout]) -> None:
    """Raises ValueError for an index that lacks what readers use, whoever wrote it."""
    for name, layout in layouts.items():
        numbers = (layout.num_items, layout.items_per_shard, *layout.shape)
        if layout.name != name or layout.dtype not in _DTYPES or not all(type(one) is int for one in numbers):
            raise ValueError(f"the array {name!r} has a kind of its own")
        if layout.num_items < 0 or min(layout.items_per_shard, *layout.shape, 1) < 1 or len(layout.shape) > 3:
            raise ValueError(f"the array {name!r} has impossible numbers")
    more, settings = found["more"], found["settings"]
    arrays = ["", ".ends"] if found["kind"] == "text" else [".keys", ".files", ".rows"]
    if found["kind"] == "images":
        arrays += [f".{size:05}" for size in resolutions(settings["resolution"])]
        arrays += [".labels"] if more["classes"] else []
    if missing := [side + end for side in ("train", "held_out") for end in arrays if side + end not in layouts]:
        raise ValueError(f"it lacks the array {missing[0]!r}")
    names = {"text": ("vocab_size", "held_out", "field"), "images": ("channels", "held_out", "fit")}[found["kind"]]
    for part, keys in ((settings, names), (more, ("digests", "left_out")), (found["source"], ("fingerprint",))):
        if lacking := [key for key in keys if key not in part]:
            raise ValueError(f"it lacks {lacking[0]!r}")


def require_sizes(index: ShardIndex) -> None:
    """Checks the sizes of shards on this machine: a file that is too short would end the process that has mapped it.

    Raises:
        StorageError: naming the file.
    """
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
