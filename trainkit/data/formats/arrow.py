"""Arrow: directories that `save_to_disk` of Hugging Face datasets wrote for one split."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.formats.index_file import read_index
from trainkit.data.formats.mds_columns import picture
from trainkit.data.formats.recent import Recent
from trainkit.data.formats.shard_files import ShardFiles, inside
from trainkit.data.formats.sharded import ShardedDataset, unreadable
from trainkit.data.progress import track
from trainkit.errors import DataError
from trainkit.storage import Location

STATE = "state.json"
_KEPT = 256  # files whose record batches are kept


@dataclass(frozen=True)
class _File:
    schema: Any
    batches: list[Any]
    starts: NDArray[np.int64]  # the first row of each batch, and the end of the last one
    is_checked: NDArray[np.bool_]  # of each batch, whether its values lie within it


class Arrow(ShardedDataset):
    """The rows of a directory that `save_to_disk` wrote for one split: a dict by column each.

    Values are those of Python, but lists of numbers are arrays; columns of pictures (the feature Image) are pictures of
    Pillow. Files are memory-mapped, and a row is found by its record batch. Files elsewhere are copied once, into the
    cache.

    Args:
        folder: with state.json and the .arrow files.
        columns: that a row has; None: all.
        cache_dir: that files elsewhere are copied into; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.
        progress: whether to show a progress bar.

    Raises:
        DataError: where it is not complete.
    """

    def __init__(
        self,
        folder: Location,
        *,
        columns: Sequence[str] | None = None,
        cache_dir: Path | None = None,
        progress: bool = False,
    ) -> None:
        state, content = read_index(folder, STATE)
        shown = folder.child(STATE).shown
        names, listed = files_named(state, "_data_files", shown), files_named(state, "_indices_data_files", shown)
        # Where its batches begin is not said, so that finding one by ranges would read about all of a file.
        found = ShardFiles(folder, names, shown, cache_dir=cache_dir, is_copied=True)
        self._listed = ShardFiles(folder, listed, shown, cache_dir=cache_dir, is_copied=True)
        self._opened: Recent[int, _File] = Recent(_KEPT)
        opened = (self._opened.get(number, partial(_read, found)) for number in range(len(names)))
        files = [*track(opened, "opening Arrow files", len(names), progress)]
        schema: Any = files[0].schema if files else None
        for number, file in enumerate(files):
            if file.schema.names != schema.names or len({*schema.names}) < len(schema.names):
                raise DataError(f"{found.shown(number)} has the columns {file.schema.names}; save the set again")
        self._features = _features(schema)
        counts = [int(file.starts[-1]) for file in files]
        self._row_ends = np.cumsum(np.asarray(counts, np.int64))
        # Rows that `select` or `shuffle` chose lie anywhere, so that they are one block.
        self._chosen = self._read_chosen(sum(counts)) if listed else None
        blocks = [len(self._chosen)] if self._chosen is not None else counts
        self._shards = [0] if self._chosen is not None else [number for number, count in enumerate(counts) if count]
        super().__init__(
            folder.shown,
            "Hugging Face datasets",
            block_sizes=[blocks[number] for number in self._shards] if sum(blocks) else [],
            kinds={} if schema is None else {name: self._kind(schema, name) for name in schema.names},
            columns=columns,
            content=hashlib.blake2b(content, digest_size=16).hexdigest(),
            files=found,
        )

    def shard_name(self, shard: int) -> str:
        """Returns the path or the URL of a file."""
        return self.shown if self._chosen is not None else self._files.shown(self._shards[shard])

    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""
        return "string" in self.kinds[name] and "<" not in self.kinds[name]

    def is_picture(self, name: str) -> bool:
        """Whether a column may hold encoded pictures."""
        return self.kinds[name] in ("Image", "binary", "large_binary")

    def is_label(self, name: str) -> bool:
        """Whether a column may hold labels."""
        kind = self.kinds[name]
        return kind == "ClassLabel" or kind.startswith(("int", "uint")) or self.is_text(name)

    def class_names(self, name: str) -> Sequence[str]:
        """Returns the names of the classes of a column of labels, by label."""
        names = self._features.get(name, {}).get("names", ())
        return [str(each) for each in names] if isinstance(names, list) else ()

    def cell(self, index: int, name: str) -> bytes:
        """Returns the content of a picture, or the text of another value."""
        shard, row = self.place(index)
        batch, place = self._row(shard, row)
        value = batch.column(batch.schema.get_field_index(name))[place].as_py()
        if isinstance(value, dict):
            value = _embedded(value)
        return value if isinstance(value, bytes) else str(value).encode()

    def _samples(self, shard: int, rows: list[int]) -> list[dict[str, Any]]:
        found = []
        for row in rows:
            batch, place = self._row(shard, row)
            sample = {}
            for name in self.columns:
                try:
                    sample[name] = self._value(name, batch.column(batch.schema.get_field_index(name))[place])
                except MemoryError:
                    raise
                except Exception as error:  # Pillow may raise anything for a broken file
                    raise unreadable(self.shard_name(shard), row, name, self.kinds[name], error) from error
            found.append(sample)
        return found

    def _value(self, name: str, scalar: Any) -> Any:
        import pyarrow

        if not scalar.is_valid:
            return None
        if self.kinds[name] == "Image":
            return picture(_embedded(scalar.as_py()))
        kind = scalar.type
        if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
            values = scalar.values
            is_number = pyarrow.types.is_integer(values.type) or pyarrow.types.is_floating(values.type)
            if is_number and not values.null_count:
                return values.to_numpy(zero_copy_only=False).copy()  # else read only, and torch warns
        return scalar.as_py()

    def _raw(self, shard: int, row: int) -> bytes:
        batch, place = self._row(shard, row)
        content: bytes = batch.slice(place, 1).serialize().to_pybytes()
        return content

    def _row(self, shard: int, row: int) -> tuple[Any, int]:
        """Returns the record batch of a row, and its place there."""
        number = self._shards[shard]
        if self._chosen is not None:
            chosen = int(self._chosen[row])
            number = int(np.searchsorted(self._row_ends, chosen, side="right"))
            row = chosen - (int(self._row_ends[number - 1]) if number else 0)
        file = self._file(number)
        batch = int(np.searchsorted(file.starts, row, side="right")) - 1
        if not file.is_checked[batch]:  # at its first use: it reads all of the batch, and pyarrow itself checks nothing
            with _complete(self._files.shown(number)):
                file.batches[batch].validate(full=True)
            file.is_checked[batch] = True
        return file.batches[batch], row - int(file.starts[batch])

    def _file(self, number: int) -> _File:
        return self._opened.get(number, partial(_read, self._files))

    def _read_chosen(self, num_rows: int) -> NDArray[np.int64]:
        found = [
            np.asarray(batch.column(0)).astype(np.int64)
            for number in range(len(self._listed.names))
            for batch in _read(self._listed, number).batches
        ]
        chosen = np.concatenate([np.empty(0, np.int64), *found])
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < num_rows):
            raise DataError(f"{self._listed.shown(0)} names rows that are not there; save the data set again")
        return chosen

    def _kind(self, schema: Any, name: str) -> str:
        feature = self._features.get(name, {}).get("_type")
        return feature if feature in ("Image", "ClassLabel") else str(schema.field(name).type)


def files_named(state: dict[str, Any], key: str, shown: str) -> list[str]:
    """Returns the files that a state.json names under a key, which lie beside it."""
    try:
        return [inside(entry["filename"], shown) for entry in state.get(key) or []]
    except (KeyError, TypeError) as error:
        raise DataError(f"{shown} is damaged ({error}); save the data set again") from None


def _read(files: ShardFiles, number: int) -> _File:
    import pyarrow

    opened, shown = files.open(number), files.shown(number)
    with _complete(shown):
        reader = pyarrow.ipc.open_stream(pyarrow.py_buffer(opened.content or b""))
        batches = [batch for batch in reader if batch.num_rows]
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    return _File(reader.schema, batches, starts, np.zeros(len(batches), np.bool_))


@contextmanager
def _complete(shown: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{shown} is not an Arrow stream, or not a complete one ({said}); save it again") from None


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Returns what Hugging Face datasets wrote about the columns of a file."""
    written = (schema.metadata or {}).get(b"huggingface") if schema is not None else None
    if written is None:
        return {}
    try:
        features = json.loads(written)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):  # others may write such a key
        return {}
    return (
        {name: value for name, value in features.items() if isinstance(value, dict)}
        if isinstance(features, dict)
        else {}
    )


def _embedded(value: dict[str, Any]) -> bytes:
    content = value.get("bytes")
    if not isinstance(content, bytes):
        raise ValueError(f"it names the file {str(value.get('path'))[:200]!r} and holds no picture: embed the files")
    return content
