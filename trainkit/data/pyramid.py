"""Pyramid: images at every resolution, in memory-mapped files.

Every level is `avg_pool2d` of the largest one, rounded to bytes once: rounding from level to level would accumulate.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from trainkit.cache import PART
from trainkit.data.image_rows import Rows
from trainkit.data.partial_build import PartialBuild, reopen
from trainkit.errors import ConfigError

SMALLEST, LARGEST = 4, 1024
COMPARED = 64
"""Pixels at which an audit compares images."""
_HASHES, _HASH_BYTES = f"{PART}hashes.bin", 8
_PART_LABELS, _LABELS, _LABEL_BYTES = f"{PART}labels.bin", "labels.npy", 8
_PART_FILES, _FILES, _FILE_BYTES = f"{PART}files.bin", "files.npy", 8


def levels(image: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Averages an image over boxes of 2x2, 4x4 ... pixels.

    Args:
        image: uint8 [C, R, R], R a power of two.

    Yields:
        The image itself, then uint8 [C, R/2, R/2] and so on, down to [C, 4, 4].
    """
    yield image
    values = image.astype(np.float32)  # holds sums of up to 256x256 bytes exactly
    while values.shape[-1] > SMALLEST:
        pairs = values[..., 0::2, :] + values[..., 1::2, :]
        values = (pairs[..., 0::2] + pairs[..., 1::2]) * np.float32(0.25)
        yield np.rint(values).astype(np.uint8)


def resolutions(largest: int) -> list[int]:
    """Returns the resolutions from 4 to `largest`.

    Example:
        >>> resolutions(32)
        [4, 8, 16, 32]
    """
    return [1 << power for power in range(SMALLEST.bit_length() - 1, largest.bit_length())]


def require_resolution(resolution: int, largest: int) -> None:
    """Raises ConfigError for a resolution that images of a largest one do not have."""
    if resolution not in resolutions(largest):
        raise ConfigError(
            f"resolution={resolution}: the data has {', '.join(map(str, resolutions(largest)))}; "
            f"set data.resolution for a larger one"
        )


def key_of_pixels(image: NDArray[np.uint8]) -> int:
    """Returns a hash of the pixels of an image, 64 bits."""
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=_HASH_BYTES).digest(), "little")


class PyramidWriter:
    """Fills a directory with one file per level; images are added one by one, so only one is in memory.

    A build that was killed is continued: `num_taken` files were already appended or left out.

    Args:
        directory: where the files are written.
        resolution: pixels of the largest level.
        channels: of an image.
        names: of all images to be added, in their order; a partial build of other names is dropped.
        labels: of these images, in their order; None: they have none.
    """

    def __init__(
        self,
        directory: Path,
        resolution: int,
        channels: int,
        names: Sequence[str],
        labels: Sequence[int] | None = None,
    ) -> None:
        self._directory, self._partial, self._labels = directory, PartialBuild(directory), labels
        self._names = hashlib.blake2b(repr([*names]).encode(), digest_size=16).hexdigest()
        done = self._partial.read()
        if done.get("of") != self._names:
            done = {}
        self.num_duplicates: int = done.get("duplicates", 0)
        self.num_contradictions: int = done.get("contradictions", 0)
        self.num_upscaled: int = done.get("upscaled", 0)
        self.num_profiles_ignored: int = done.get("profiles_ignored", 0)
        self.num_taken: int = done.get("taken", 0)
        self.left_out: list[dict[str, str]] = done.get("left_out", [])
        num = done.get("images", 0)
        self._hashes = reopen(directory / _HASHES, _HASH_BYTES * num)
        self._label_file = None if labels is None else reopen(directory / _PART_LABELS, _LABEL_BYTES * num)
        self._of_files = reopen(directory / _PART_FILES, _FILE_BYTES * num)
        known = [-1] * num if labels is None else np.fromfile(directory / _PART_LABELS, np.int64, num).tolist()
        self._keys = dict(zip(np.fromfile(directory / _HASHES, np.uint64, num).tolist(), known, strict=True))
        self._files = {
            size: reopen(_level(directory, size), channels * size**2 * num) for size in resolutions(resolution)
        }

    def append(self, *frames: NDArray[np.uint8], is_upscaled: bool = False, is_profile_ignored: bool = False) -> None:
        """Adds the images of one file, unless the same pixels are already there: the first label stays.

        Args:
            *frames: uint8 [C, R, R] each.
            is_upscaled: whether they are smaller than R.
            is_profile_ignored: whether the file has a colour profile that does not fit its pixels.
        """
        self.num_profiles_ignored += is_profile_ignored
        label = -1 if self._labels is None else self._labels[self.num_taken]
        for image in frames:
            key = key_of_pixels(image)
            if key in self._keys:
                self.num_duplicates += 1
                self.num_contradictions += self._keys[key] != label
                continue
            self._keys[key] = label
            self.num_upscaled += is_upscaled
            self._hashes.write(np.uint64(key).tobytes())
            self._of_files.write(np.int64(self.num_taken).tobytes())
            if self._label_file is not None:
                self._label_file.write(np.int64(label).tobytes())
            for level in levels(image):
                self._files[level.shape[-1]].write(level.tobytes())
        self.num_taken += 1
        self._partial.note(self._open_files(), self._done)

    def leave_out(self, file: dict[str, str]) -> None:
        """Records an image that cannot be read."""
        self.left_out.append(file)
        self.num_taken += 1

    def __len__(self) -> int:
        return len(self._keys)

    def __enter__(self) -> "PyramidWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        for file in self._open_files():
            file.close()
        if kind is None:
            np.save(self._directory / "keys.npy", np.array(list(self._keys), np.uint64))
            if self._labels is not None:
                np.save(self._directory / _LABELS, np.array(list(self._keys.values()), np.int64))
            np.save(self._directory / _FILES, np.fromfile(self._directory / _PART_FILES, np.int64))

    def _open_files(self) -> list[IO[bytes]]:
        return [
            file for file in (self._hashes, self._of_files, self._label_file, *self._files.values()) if file is not None
        ]

    def _done(self) -> dict[str, Any]:
        return {
            "of": self._names,
            "images": len(self._keys),
            "duplicates": self.num_duplicates,
            "contradictions": self.num_contradictions,
            "upscaled": self.num_upscaled,
            "profiles_ignored": self.num_profiles_ignored,
            "taken": self.num_taken,
            "left_out": self.left_out,
        }


class Pyramid(Dataset[dict[str, Tensor]]):
    """A map-style data set of {"images": uint8 [C, R, R]}; `at` returns the same images at another resolution.

    Images with labels have them beside: {"images": ..., "labels": int64 []}. `__getitems__(indices)` returns a whole
    batch, {"images": [N, C, R, R], "labels": [N]}, already collated.

    Args:
        directory: that a PyramidWriter has filled.
        rows: int64 [len]: which of its images.
        resolution: pixels, R.
        channels: C.
        largest: the largest resolution in the directory.
    """

    is_thread_safe = True
    """Threads may read at the same time."""

    def __init__(
        self, directory: Path, rows: NDArray[np.int64] | Rows, *, resolution: int, channels: int, largest: int
    ) -> None:
        self.resolution, self.channels, self.largest = resolution, channels, largest
        self._directory, self._rows = directory, rows if isinstance(rows, Rows) else Rows(rows)
        self._map()

    def at(self, resolution: int) -> "Pyramid":
        """Returns the same images, in the same order, at another resolution.

        Args:
            resolution: pixels: a power of two from 4 to that of the data.

        Returns:
            The data set at that resolution.

        Raises:
            ConfigError: for a resolution that the data does not have.
        """
        require_resolution(resolution, self.largest)
        return Pyramid(self._directory, self._rows, resolution=resolution, channels=self.channels, largest=self.largest)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """Hash of the images, equal at every resolution; the name of a cache directory is a hash of its content."""
        return f"{self._directory.name} {self._rows.digest}"

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = self._rows.values[indices]
        batch = {"images": torch.from_numpy(self._images[rows])}
        if self._labels is not None:
            batch["labels"] = torch.from_numpy(self._labels[rows])
        return batch

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """int64 [len], the labels of all images; None where they have none."""
        return None if self._labels is None else self._labels[self._rows.values]

    @property
    def keys(self) -> NDArray[np.uint64]:
        """uint64 [len], the hashes of the images' pixels at the largest resolution."""
        return read_keys(self._directory)[self._rows.values]

    @property
    def files(self) -> NDArray[np.int64]:
        """int64 [len], the place of each image's file among the names that the directory was filled from."""
        files: NDArray[np.int64] = np.load(self._directory / _FILES, mmap_mode="r")
        return files[self._rows.values]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_images", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def _map(self) -> None:
        images = np.memmap(_level(self._directory, self.resolution), np.uint8, "r")
        self._images = images.reshape(-1, self.channels, self.resolution, self.resolution)
        self._labels: NDArray[np.int64] | None = read_labels(self._directory)


def read_keys(directory: Path) -> NDArray[np.uint64]:
    """Maps the hashes of the images' pixels at the largest resolution, in their order, each once."""
    keys: NDArray[np.uint64] = np.load(directory / "keys.npy", mmap_mode="r")
    return keys


def read_labels(directory: Path) -> NDArray[np.int64] | None:
    """Maps the labels of the images, in their order; None where they have none."""
    path = directory / _LABELS
    return np.load(path, mmap_mode="r") if path.is_file() else None


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Writes the summary of a build as JSON."""
    (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def read_summary(directory: Path) -> dict[str, Any]:
    """Reads the summary that `write_summary` wrote."""
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return summary


def _level(directory: Path, resolution: int) -> Path:
    return directory / f"{resolution:05}.bin"
