"""Inspection: what a folder or zip file of images holds, before anything trains on it."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.data.decoding import Decoded, Unreadable
from trainkit.data.files import listed_counts
from trainkit.data.images import Images
from trainkit.data.labels import find_labels
from trainkit.data.near_duplicates import groups, perceptual_hash, require_imagehash
from trainkit.data.parallel import in_order
from trainkit.data.progress import track
from trainkit.data.pyramid import LARGEST, resolutions
from trainkit.data.square import is_upscaled

SIDE = 64  # pixels at which images are compared
NUM_SHOWN = 144
MOST_UPSCALED = 0.1  # share of the images at the resolution that is suggested
_QUANTILES = (0, 0.05, 0.5, 0.95, 1)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found.

    Args:
        path: data.path.
        images: files that can be read.
        unreadable: the others, each with its reason.
        files_not_read: files that are no images, by suffix.
        resolution: that was asked for or is suggested.
        upscaled: by resolution, the images that would be scaled up.
        widths: quantiles 0, 0.05, 0.5, 0.95, 1 in pixels.
        heights: likewise.
        aspect_ratios: likewise, of width / height.
        modes: number of images by Pillow's mode.
        formats: likewise by format.
        profiles_ignored: images with a colour profile that does not fit their pixels.
        animated: images of several frames.
        frames: of all images.
        classes: number of images by class; empty: no labels.
        folders: the first folders below the path, where they could be classes.
        duplicates: groups of names with the same pixels at SIDE; a run leaves out those that are the same at its
            resolution.
        near_duplicates: groups of names, without exact duplicates: the others look like the first.
        shown: uint8 [n, 3, SIDE, SIDE] for a contact sheet, evenly spread over the names.
    """

    path: str
    images: int
    unreadable: list[Unreadable]
    files_not_read: str
    resolution: int
    upscaled: dict[int, int]
    widths: list[float]
    heights: list[float]
    aspect_ratios: list[float]
    modes: dict[str, int]
    formats: dict[str, int]
    profiles_ignored: int
    animated: int
    frames: int
    classes: dict[str, int]
    folders: list[str]
    duplicates: list[list[str]]
    near_duplicates: list[list[str]]
    shown: NDArray[np.uint8]

    def facts(self) -> dict[str, Any]:
        """Returns all but the pixels, JSON-serializable."""
        return {name: value for name, value in asdict(self).items() if name != "shown"}

    @property
    def num_duplicates(self) -> int:
        """Images that have the same pixels as one before them."""
        return sum(len(group) - 1 for group in self.duplicates)


def inspect(images: Images, resolution: int | None = None, progress: bool = True) -> Inspection:
    """Decodes every image once, in bounded memory.

    Args:
        images: what to inspect, and how it is decoded.
        resolution: pixels; None: the largest at which at most 10 % of the images are scaled up.
        progress: whether to show a bar.

    Returns:
        What was found.

    Raises:
        DataError: without ImageHash, for labels that cannot be used, and where no image can be read.
    """
    require_imagehash()
    source = images.source()
    names = source.names()
    labels = find_labels(source, images.labels)
    scan = _Scan(len(names))
    decode = partial(images.decoder(SIDE).decode, source)
    results = in_order(lambda name: _look(decode(name)), names, images.num_workers)
    for number, (result, seen) in enumerate(track(results, "reading images", len(names), progress)):
        scan.add(number, result, seen)
    if not scan.sizes:
        first = scan.unreadable[0]
        raise images.cannot_read(first)
    sizes = np.array(scan.sizes)
    upscaled = {side: sum(is_upscaled(size, side, images.fit) for size in scan.sizes) for side in resolutions(LARGEST)}
    fitting = [side for side, num in upscaled.items() if num <= MOST_UPSCALED * len(sizes)]
    of = [] if labels is None else [labels.classes[labels.of[number]] for number in scan.numbers]
    found = Counter(source.class_of(name) for name in names)
    same, alike = scan.duplicates(names)
    return Inspection(
        path=str(images.path),
        images=len(sizes),
        unreadable=scan.unreadable,
        files_not_read=listed_counts(source.not_read()),
        resolution=resolution or max(fitting, default=resolutions(LARGEST)[0]),
        upscaled=upscaled,
        widths=_quantiles(sizes[:, 0]),
        heights=_quantiles(sizes[:, 1]),
        aspect_ratios=_quantiles(sizes[:, 0] / sizes[:, 1]),
        modes=dict(scan.modes.most_common()),
        formats=dict(scan.formats.most_common()),
        profiles_ignored=scan.profiles_ignored,
        animated=scan.animated,
        frames=scan.frames,
        classes=dict(sorted(Counter(of).items(), key=lambda entry: -entry[1])),
        folders=[] if labels is not None or None in found or len(found) < 2 else sorted(map(str, found)),
        duplicates=same,
        near_duplicates=alike,
        shown=np.stack(scan.shown),
    )


@dataclass(frozen=True)
class _Seen:
    pixels: NDArray[np.uint8]
    key: int
    look: int


def _look(result: Decoded | Unreadable) -> tuple[Decoded | Unreadable, _Seen | None]:
    if isinstance(result, Unreadable):
        return result, None
    pixels = result.frames[0]
    key = int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
    return result, _Seen(pixels, key, perceptual_hash(pixels))


class _Scan:
    """What is kept of each image: some 100 bytes, and the pixels of those that are shown."""

    def __init__(self, num: int) -> None:
        self._step = max(1, num // NUM_SHOWN)
        self.numbers: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.keys: list[int] = []
        self.looks: list[int] = []
        self.unreadable: list[Unreadable] = []
        self.shown: list[NDArray[np.uint8]] = []
        self.modes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.animated = self.frames = self.profiles_ignored = 0

    def add(self, number: int, result: Decoded | Unreadable, seen: _Seen | None) -> None:
        if isinstance(result, Unreadable) or seen is None:
            if isinstance(result, Unreadable):
                self.unreadable.append(result)
            return
        if len(self.numbers) % self._step == 0 and len(self.shown) < NUM_SHOWN:
            self.shown.append(np.broadcast_to(seen.pixels, (3, SIDE, SIDE)).copy())
        self.numbers.append(number)
        self.sizes.append(result.size)
        self.keys.append(seen.key)
        self.looks.append(seen.look)
        self.modes[result.mode] += 1
        self.formats[result.format] += 1
        self.animated += result.num_frames > 1
        self.profiles_ignored += result.is_profile_ignored
        self.frames += result.num_frames

    def duplicates(self, names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
        """Groups of names with the same pixels, and of names that look alike: of equal ones the first."""
        first: dict[int, list[int]] = {}
        for index, key in enumerate(self.keys):
            first.setdefault(key, []).append(index)
        same = [indices for indices in first.values() if len(indices) > 1]
        kept = [indices[0] for indices in first.values()]
        alike = groups(np.array([self.looks[index] for index in kept], np.uint64))

        def named(indices: Iterator[int]) -> list[str]:
            return [names[self.numbers[index]] for index in indices]

        return [named(iter(group)) for group in same], [named(kept[i] for i in group) for group in alike]


def _quantiles(values: NDArray[Any]) -> list[float]:
    return [round(float(value), 3) for value in np.quantile(values, _QUANTILES)]
