"""Images for a generative model: any source of them, decoded once into every resolution from 4x4 up."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainkit.cache import cache_root, cached
from trainkit.comm.cluster import Cluster
from trainkit.data.datasets import Datasets
from trainkit.data.glyphs import Glyphs
from trainkit.data.image_sources import ImageSource, find_source
from trainkit.data.parallel import in_order
from trainkit.data.progress import track
from trainkit.data.pyramid import LARGEST, Pyramid, PyramidWriter, read_keys, read_summary, resolutions, write_summary
from trainkit.data.split import lowest_share
from trainkit.data.square import square
from trainkit.errors import DataError

_FORMAT = 2  # of the cache: raise it whenever the same images and settings would give other files
_NUM_NAMED = 3  # unreadable files in a message


@dataclass(frozen=True)
class Unreadable:
    """A file that Pillow could not decode, and what it said."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Images:
    """What images to train on; `load()` turns it into data sets that hold them at every resolution.

    path: a folder, searched recursively, or a zip file, of images in any format that Pillow reads; None for the
        built-in letters and digits, which need no download.
    resolution: the largest, a power of two from 4 to 1024; images are cut to their central square and scaled to it.
    channels: 3 for RGB, 1 for grey.
    held_out: share of the images that is held out, chosen by a hash of their pixels. Images with the same pixels at
        `resolution` are one image, so none is on both sides.
    on_unreadable: an image that cannot be decoded is an `error`, or is left out and counted: `skip`.
    cache_dir: where pixels are kept; None for $TRAINKIT_CACHE, else ~/.cache/trainkit.
    num_workers: threads that decode; None for one a core.
    Raises DataError, at once, for what a listing of the path can tell.
    """

    path: Path | None = None
    resolution: int = 32
    channels: Literal[1, 3] = 3
    held_out: float = 0.05
    on_unreadable: Literal["error", "skip"] = "error"
    cache_dir: Path | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        sizes = resolutions(LARGEST)
        _check(self.resolution in sizes, "resolution", self.resolution, f"one of {', '.join(map(str, sizes))}")
        _check(self.channels in (1, 3), "channels", self.channels, "1 (grey) or 3 (RGB)")
        _check(0 < self.held_out <= 0.5, "held_out", self.held_out, "above 0 and at most 0.5")
        _check(self.on_unreadable in ("error", "skip"), "on_unreadable", self.on_unreadable, "error or skip")
        _check(self.num_workers is None or self.num_workers > 0, "num_workers", self.num_workers, "at least 1, or null")
        if self.path is not None:
            self._source()

    def load(self, progress: bool = True) -> Datasets:
        """Train and held-out `Pyramid`s; built into the cache if they are not there yet.

        Raises DataError for images that cannot be read, and where there are too few to hold one out.
        """
        source = self._source()
        directory = cached(
            cache_root(self.cache_dir),
            f"images-{self._key(source, progress)}",
            lambda aside: self._build(source, aside, progress),
        )
        summary = read_summary(directory)
        unreadable = [Unreadable(**entry) for entry in summary["unreadable"]]
        if unreadable and self.on_unreadable == "error":
            raise self._cannot_read(unreadable[0])
        if unreadable and progress and Cluster.from_environment().rank == 0:
            print(_skipped(unreadable, summary["images"]), file=sys.stderr, flush=True)
        is_held_out = lowest_share(read_keys(directory), self.held_out)
        return Datasets(train=self._side(directory, ~is_held_out), held_out=self._side(directory, is_held_out))

    def _side(self, directory: Path, chosen: NDArray[np.bool_]) -> Pyramid:
        rows = np.flatnonzero(chosen)
        return Pyramid(directory, rows, resolution=self.resolution, channels=self.channels, largest=self.resolution)

    def _source(self) -> ImageSource:
        return Glyphs(self.resolution) if self.path is None else find_source(Path(self.path).expanduser())

    def _key(self, source: ImageSource, progress: bool) -> str:
        content = source.fingerprint(cache_root(self.cache_dir), progress)
        settings = (_FORMAT, content, self.resolution, self.channels)
        return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()

    def _build(self, source: ImageSource, directory: Path, progress: bool) -> None:
        def decode(name: str) -> NDArray[np.uint8] | Unreadable:
            try:
                with source.open(name) as image:
                    return square(image, self.resolution, self.channels)
            except MemoryError:
                raise
            except Exception as error:  # what a broken file makes a decoder raise is of any kind
                return Unreadable(name, " ".join(str(error).split()) or type(error).__name__)

        names = source.names()
        unreadable: list[Unreadable] = []
        with PyramidWriter(directory, self.resolution) as pyramid:
            for result in track(in_order(decode, names, self.num_workers), "reading images", len(names), progress):
                if not isinstance(result, Unreadable):
                    pyramid.append(result)
                elif self.on_unreadable == "error":
                    raise self._cannot_read(result)
                else:
                    unreadable.append(result)
        if len(pyramid) < 2:
            raise DataError(
                f"data.path={self.path} holds {len(pyramid)} different images that can be read, too few to hold one "
                f"out; add more" + (f" (unreadable: {_listed(unreadable)})" if unreadable else "")
            )
        write_summary(
            directory,
            {
                "images": len(pyramid),
                "duplicates": pyramid.num_duplicates,
                "unreadable": [vars(file) for file in unreadable],
            },
        )

    def _cannot_read(self, file: Unreadable) -> DataError:
        return DataError(
            f"data.path={self.path}: {file.name} cannot be read as an image ({file.reason}); "
            f"mend or remove it, or set data.on_unreadable=skip"
        )


def _skipped(unreadable: list[Unreadable], num_read: int) -> str:
    return f"trainkit: {len(unreadable)} unreadable images skipped, {num_read} read; skipped: {_listed(unreadable)}"


def _listed(unreadable: list[Unreadable]) -> str:
    named = ", ".join(f"{file.name} ({file.reason})" for file in unreadable[:_NUM_NAMED])
    return named + (f" and {len(unreadable) - _NUM_NAMED} more" if len(unreadable) > _NUM_NAMED else "")


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise DataError(f"data.{name}={value} must be {allowed}; set data.{name}")
