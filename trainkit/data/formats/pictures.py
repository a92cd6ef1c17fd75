"""Pictures: images in a column of the shards of other tools."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainkit.cache import cached
from trainkit.data.file_look import Verify
from trainkit.data.files import state_of
from trainkit.data.formats.mds_columns import pixels
from trainkit.data.formats.opening import open_dataset
from trainkit.data.formats.sharded import ShardedDataset
from trainkit.data.parallel import in_order
from trainkit.data.progress import track
from trainkit.errors import DataError, nearest

if TYPE_CHECKING:
    from PIL import Image

_AHEAD = 64
"""Images of shards elsewhere that are fetched ahead."""
_LABELS = ("cls", "label", "labels", "class", "category", "target")


class Pictures:
    """The images of a data set in MDS, of litdata, of Hugging Face datasets, or in tars; an `ImageSource`.

    Args:
        path: of the folder or file, or its URL; see `open_dataset`.
        field: the column of the pictures; None: the only one there is.
        label_field: the column of the classes; None: the only one of a usual name, such as `label` or `cls`.

    Raises:
        DataError: where the data set cannot be read, has no such column, or has several.
    """

    def __init__(self, path: str | Path, field: str | None = None, label_field: str | None = None) -> None:
        self.path, self.label_field = path, label_field
        whole = open_dataset(path, columns=[])
        self.field = _picture_column(whole, field)
        self._dataset = open_dataset(path, columns=[self.field])
        self._ahead = range(0)
        if label_field is not None:
            _require(whole, "label_field", label_field, [name for name in whole.kinds if whole.is_label(name)])

    def names(self) -> Sequence[str]:
        """Returns the shard and the name of each sample, sorted."""
        return sorted(self._indices)

    def fingerprint(self, memory: Path, progress: bool = False) -> str:
        """Hashes every byte of the shards, once per state of them; of shards elsewhere, what the store says of them."""
        paths = self._dataset.paths()
        if not paths:
            files = (self._dataset.location(shard) for shard in range(self._dataset.num_shards))
            states = in_order(lambda file: f"{file.size()} {file.version()}", files)
            digest = hashlib.blake2b("\n".join(states).encode(), digest_size=16).hexdigest()
            return f"{self._dataset.fingerprint} {digest} {self.field}"

        def write(directory: Path) -> None:
            whole = hashlib.blake2b(digest_size=16)
            for digest in track(in_order(_digest, paths), "comparing images", len(paths), progress):
                whole.update(digest)
            (directory / "digest").write_text(whole.hexdigest())

        name = f"listing-{state_of(path.absolute() for path in paths)}"
        return f"{(cached(memory, name, write) / 'digest').read_text()} {self.field}"

    def num_bytes(self, name: str) -> int:
        """Returns the size of the picture in bytes, as it is stored."""
        return len(self._content(name))

    def look(self, memory: Path, verify: Verify, progress: bool) -> None:
        """Does nothing: the index says what is there."""

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns what is computed."""
        return compute()

    def not_read(self) -> Mapping[str, int]:
        """Returns nothing: other columns are no images."""
        return {}

    def open(self, name: str) -> "Image.Image":
        """Opens an image; it is decoded when its pixels are read."""
        from PIL import Image

        self._fetch_ahead(self._indices[name])
        content = self._content(name)
        return pixels(content) if self._dataset.is_pixels(self.field) else Image.open(io.BytesIO(content))

    def read(self, name: str) -> bytes | None:
        """Returns nothing: there are no other files."""
        return None

    def class_of(self, name: str) -> str | None:
        """Returns nothing: the class is in a column, see `label_of`."""
        return None

    def label_of(self, name: str) -> int | str:
        """Returns the label of an image, of the column of labels.

        Raises:
            DataError: where there is no such column, or no label in it.
        """
        if self._labelled is None:
            found = self._dataset.listed()
            raise DataError(
                f"data.path={self.path} has no column of labels, found {found}; set data.label_field=COLUMN"
            )
        dataset, column = self._labelled
        value = dataset[self._indices[name]][column]
        if isinstance(value, bytes):
            text = value.decode("utf-8", "replace").strip()
            value = int(text) if text.isdecimal() else text
        if isinstance(value, str) and value:
            return value
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = -1
        if number < 0:
            raise DataError(
                f"data.path={self.path}: {name} has the label {value!r}, which is no class; set data.labels=none"
            )
        return number

    @cached_property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, by label; empty where none are stored."""
        return self._labelled[0].class_names(self._labelled[1]) if self._labelled else ()

    @cached_property
    def _labelled(self) -> tuple[ShardedDataset, str] | None:
        column = self.label_field
        if column is None:
            usual = [name for name in _LABELS if name in self._dataset.kinds and self._dataset.is_label(name)]
            if len(usual) != 1:
                return None
            (column,) = usual
        return open_dataset(self.path, columns=[column]), column

    def _fetch_ahead(self, index: int) -> None:
        """Of shards elsewhere, says what is read next: images are opened about in the order in which they lie."""
        if index not in self._ahead:
            self._ahead = range(index, min(index + _AHEAD, len(self._dataset)))
            self._dataset.prefetch(np.arange(self._ahead.start, min(index + 2 * _AHEAD, len(self._dataset))))

    def _content(self, name: str) -> bytes:
        return self._dataset.cell(self._indices[name], self.field)

    @cached_property
    def _indices(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for shard in range(self._dataset.num_shards):
            file = Path(self._dataset.shard_name(shard)).name
            for key in self._dataset.keys(shard):
                name = f"{file}/{key}"
                found[name if name not in found else f"{name}#{len(found)}"] = len(found)
        return found


def _picture_column(dataset: ShardedDataset, field: str | None) -> str:
    columns = [name for name in dataset.kinds if dataset.is_picture(name)]
    if field is not None:
        _require(dataset, "field", field, columns)
        return field
    surely = [name for name in columns if "bytes" not in dataset.kinds[name] and "binary" not in dataset.kinds[name]]
    columns = surely or columns
    if len(columns) == 1:
        return columns[0]
    if not columns:
        raise DataError(f"data.path={dataset.shown} has no column of pictures, found {dataset.listed()}; set data.path")
    raise DataError(
        f"data.field: must be one of {', '.join(columns)}, the columns of pictures of {dataset.shown}; set it"
    )


def _require(dataset: ShardedDataset, setting: str, name: str, allowed: list[str]) -> None:
    if name not in allowed:
        raise DataError(
            f"data.{setting}={name}: must be one of {', '.join(allowed) or 'none'}, of the columns {dataset.listed()} "
            f"of {dataset.shown}; set data.{setting}.{nearest(name, allowed)}"
        )


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
