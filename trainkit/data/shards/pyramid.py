"""ShardedPyramid: images at every resolution, in shards of each."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.data.pyramid import COMPARED, require_resolution
from trainkit.data.shards.array import ShardedArray
from trainkit.data.shards.index import ShardIndex
from trainkit.data.sides import Entry, LeftOut, Sides
from trainkit.json_text import parse_json

NAMES = "names.jsonl"
"""The names of the files that the images came from, one a line, as JSON has strings."""
_READ_AT_ONCE = 256  # images


class ShardedPyramid(Dataset[dict[str, Tensor]]):
    """A map-style data set of {"images": uint8 [C, R, R]}, as `Pyramid` is, with the same images in the same order.

    Args:
        index: of the shards.
        side: `train` or `held_out`.
        resolution: pixels, R.
        rows: int64 [len]: which of the images of this side, by their places; None: all, which needs no memory.
    """

    is_thread_safe = True
    """Threads may read at the same time."""

    def __init__(self, index: ShardIndex, side: str, *, resolution: int, rows: NDArray[np.int64] | None = None) -> None:
        self.largest: int = index.settings["resolution"]
        self.channels: int = index.settings["channels"]
        require_resolution(resolution, self.largest)
        self.index, self.side, self.resolution, self._rows = index, side, resolution, rows
        self._images = index.array(level_name(side, resolution))
        self._labels = index.array(f"{side}.labels") if index.more["classes"] else None

    def at(self, resolution: int) -> "ShardedPyramid":
        """Returns the same images, in the same order, at another resolution.

        Raises:
            ConfigError: for a resolution that the shards do not have.
        """
        return ShardedPyramid(self.index, self.side, resolution=resolution, rows=self._rows)

    def without(self, left_out: LeftOut) -> "ShardedPyramid":
        """Returns the images but for some."""
        if not len(left_out):
            return self
        rows = np.flatnonzero(~left_out.covers(self.keys))
        return ShardedPyramid(self.index, self.side, resolution=self.resolution, rows=rows)

    def most(self, num: int | None) -> "ShardedPyramid":
        """Returns at most `num` of the held-out images: shards hold these in the order in which they are chosen."""
        whole = self.index.array(f"{self.side}.rows")
        num = len(whole) if num is None else min(num, len(whole))
        rows = np.argsort(whole.read(np.zeros(1, np.int64), np.array([num]))[0], kind="stable")
        return ShardedPyramid(self.index, self.side, resolution=self.resolution, rows=rows)

    def __len__(self) -> int:
        return len(self._images) if self._rows is None else len(self._rows)

    @property
    def fingerprint(self) -> str:
        """Hash of the images, equal at every resolution, and to that of the same images without shards."""
        if self._rows is None:
            return f"{self.index.content} {self.index.more['rows'][self.side]}"
        rows = self.index.array(f"{self.side}.rows").rows(self._rows)
        return f"{self.index.content} {hashlib.blake2b(rows.astype(np.int64).tobytes(), digest_size=16).hexdigest()}"

    @property
    def block_sizes(self) -> NDArray[np.int64] | None:
        """int64 [shards], the numbers of images in each shard of this resolution; None for a choice of images."""
        return None if self._rows is not None else np.diff(self._images.layout.beginnings())

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """int64 [len], the labels of all images; None where they have none."""
        return None if self._labels is None else self._all(self._labels)

    @property
    def keys(self) -> NDArray[np.uint64]:
        """uint64 [len], the hashes of the images' pixels at the largest resolution."""
        return self._all(self.index.array(f"{self.side}.keys"))

    def prefetch(self, indices: NDArray[np.int64]) -> int:
        """Says which images will be asked for next; returns at once, with the bytes that are still to come."""
        return self._images.prefetch(self._places(indices), np.ones(len(indices), np.int64))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return {name: values[0] for name, values in self.__getitems__([index % len(self)]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        places = self._places(np.asarray(indices, np.int64))
        batch = {"images": torch.from_numpy(self._images.rows(places))}
        if self._labels is not None:
            batch["labels"] = torch.from_numpy(self._labels.rows(places))
        return batch

    def _places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return indices if self._rows is None else self._rows[indices]

    def _all(self, array: ShardedArray) -> NDArray[Any]:
        found = array.everything()
        return found if self._rows is None else found[self._rows]


def level_name(side: str, resolution: int) -> str:
    """The name of the array of images of a resolution.

    Example:
        >>> level_name("train", 64)
        'train.00064'
    """
    return f"{side}.{resolution:05}"


def image_sides(train: ShardedPyramid, held_out: ShardedPyramid) -> Sides | None:
    """Returns the images of both sides, for an audit.

    Args:
        train: what is trained on.
        held_out: what is measured on.

    Returns:
        The sides; None for shards that are not on this machine: an audit would download all of them.
    """
    local = train.index.folder.local_path()
    if local is None:
        return None

    def names() -> list[str]:
        return [str(parse_json(line)) for line in (local / NAMES).read_text(encoding="utf-8").splitlines()]

    return Sides(
        train=lambda: _entries(train, names()),
        held_out=lambda: _entries(held_out, names()),
        fingerprint=f"{train.fingerprint} {held_out.fingerprint}",
        num_train=len(train),
        num_held_out=len(held_out),
    )


def _entries(pyramid: ShardedPyramid, names: list[str]) -> Iterator[Entry]:
    small = pyramid.at(min(COMPARED, pyramid.largest))
    keys, files = pyramid.keys, pyramid.index.array(f"{pyramid.side}.files")
    for first in range(0, len(pyramid), _READ_AT_ONCE):
        indices = np.arange(first, min(first + _READ_AT_ONCE, len(pyramid)))
        images = small.__getitems__(indices.tolist())["images"].numpy()
        of_files = files.rows(pyramid._places(indices)).tolist()
        for index, file, pixels in zip(indices.tolist(), of_files, images, strict=True):
            yield Entry(int(keys[index]), names[file], pixels=pixels)
