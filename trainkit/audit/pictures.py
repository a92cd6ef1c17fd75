"""PictureIndex: held-out pictures, among which those that show nearly the same as a given one are found."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trainkit.audit.texts import Match

SIDE = 64
"""Pixels at which pictures are compared."""
MIN_CORRELATION = 0.95
"""Of the pixels of two near-duplicates, once one is laid on the other."""
MAX_LOCAL = 0.33
"""Largest difference between their means over a square of 8 x 8 pixels, in standard deviations of the pixels: the same
face with another mouth correlates as well as a crop does, and differs in one place."""

_MOST_BITS = 10  # of 64 that differ between whole pictures, or between a whole one and a part
_SHARES = (0.95, 0.9, 0.84)  # of a side that a part covers
_MOST_VERIFIED = 3  # held-out pictures that one is laid on
_ROWS = 64  # hashes compared with all others at once: bounds the memory
# Pixels of a side of the part that is searched for in the other picture at half the size, to leave out most candidates.
_CUTS_OF_HALF, _MIN_OF_HALF = range(32, 25, -1), 0.85
_PLACE = 8  # pixels of a side
_MIN_CONTRAST = 2.0  # standard deviation of the pixels; below it there is nothing to compare


class _Views(NamedTuple):
    whole: NDArray[np.uint64]  # [n]
    parts: NDArray[np.uint64]  # [n, num_parts]
    pixels: NDArray[np.uint8]  # [n, 3, SIDE, SIDE]


class PictureIndex:
    """Finds candidates by perceptual hashes of the pictures and of their parts, and lays one on the other.

    The hash is that of `data.near_duplicates`: signs of low frequencies. A crop has another hash than the whole, so
    that the hashes of 27 parts are compared, too. A candidate counts if the pixels of the part that fits best, in
    colour, correlate with those of the other picture. Takes 12 kB of memory a picture.
    """

    def __init__(self) -> None:
        self._whole: list[NDArray[np.uint64]] = []
        self._parts: list[NDArray[np.uint64]] = []
        self._pixels: list[NDArray[np.uint8]] = []

    def add(self, pictures: Sequence[NDArray[np.uint8]]) -> None:
        """Adds pictures, uint8 [C, R, R], which get the next places."""
        views = _views(pictures)
        self._whole.append(views.whole)
        self._parts.append(views.parts)
        self._pixels.append(views.pixels)

    def matches(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Match]:
        """Finds near-duplicates.

        Args:
            pictures: uint8 [C, R, R] each.

        Returns:
            Those of each picture, in the order of `pictures`.
        """
        if not self._whole or not len(pictures):
            return []
        if len(self._whole) > 1:
            self._whole, self._parts = [np.concatenate(self._whole)], [np.concatenate(self._parts)]
            self._pixels = [np.concatenate(self._pixels)]
        views, found = _views(pictures), []
        for place, number in self._candidates(views):
            correlation, local = compared(views.pixels[place], self._pixels[0][number])
            if correlation >= MIN_CORRELATION and local <= MAX_LOCAL:
                found.append(Match(place, number, correlation))
        return found

    def _candidates(self, views: _Views) -> list[tuple[int, int]]:
        whole, parts = self._whole[0], self._parts[0]
        pairs = []
        for start in range(0, len(views.whole), _ROWS):
            ours = slice(start, start + _ROWS)
            bits = np.bitwise_count(views.whole[ours, None] ^ whole)
            for part in range(parts.shape[1]):
                np.minimum(bits, np.bitwise_count(views.whole[ours, None] ^ parts[:, part]), out=bits)
                np.minimum(bits, np.bitwise_count(views.parts[ours, part, None] ^ whole), out=bits)
            for row in np.flatnonzero((bits <= _MOST_BITS).any(1)):
                nearest = np.argsort(bits[row], kind="stable")[:_MOST_VERIFIED]
                pairs += [(start + int(row), int(number)) for number in nearest if bits[row, number] <= _MOST_BITS]
        return pairs


def compared(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[float, float]:
    """Lays a part of either picture on the other where it fits best, and compares their pixels.

    Args:
        first: uint8 [3, SIDE, SIDE].
        second: likewise.

    Returns:
        The correlation over all pixels and channels, and the largest difference in one place; see `MAX_LOCAL`. For
        pictures that are not alike at half the size, and of one colour, 0 and infinity.
    """
    one, other = _blurred(first), _blurred(second)
    if min(one.std(), other.std()) < _MIN_CONTRAST:
        return 0.0, np.inf
    best = (0.0, np.inf)
    for whole, part in ((one, other), (other, one)):
        small = _resized(whole.mean(0), SIDE // 2), _resized(part.mean(0), SIDE // 2)
        score, size, _, _ = max(_fit(*small, size) for size in _CUTS_OF_HALF)
        if score >= _MIN_OF_HALF:
            best = max(best, _best_fit(whole, part, range(2 * size - 1, min(SIDE, 2 * size + 1) + 1)))
    return best


def _fit(grey: NDArray[np.float32], part: NDArray[np.float32], size: int) -> tuple[float, int, int, int]:
    """The best correlation of `part`, made `size` pixels wide, with a square of `grey`; the size, and where it is."""
    template = _resized(part, size)
    template = template - template.mean()
    windows = sliding_window_view(grey, (size, size))
    num = len(windows)
    products = (windows.reshape(num * num, -1) @ template.ravel()).reshape(num, num)
    spread = _sums(np.square(grey), size) - np.square(_sums(grey, size)) / size**2
    scores = products / np.sqrt(np.maximum(1e-3, spread * np.square(template).sum()))
    down, across = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores[down, across]), size, int(down), int(across)


def _sums(values: NDArray[np.float32], size: int) -> NDArray[np.float64]:
    """Sums over every square of `size` x `size`."""
    sums = np.zeros((len(values) + 1, len(values) + 1))
    sums[1:, 1:] = values.astype(np.float64).cumsum(0).cumsum(1)
    return sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]


def _best_fit(whole: NDArray[np.float32], part: NDArray[np.float32], sizes: Iterable[int]) -> tuple[float, float]:
    """Compares `part`, of one of the sizes, with the square of `whole` that is most like it."""
    grey, grey_part = whole.mean(0), part.mean(0)
    score, size, down, across = max(_fit(grey, grey_part, size) for size in sizes)
    square = whole[:, down : down + size, across : across + size]
    small = _resized(part, size)
    square, small = square - square.mean(), small - small.mean()
    both, norm = float((square * small).sum()), float(np.square(small).sum())
    correlation = both / max(1e-6, float(np.sqrt(norm * np.square(square).sum())))
    rest = square - both / max(1e-6, norm) * small
    num = size // _PLACE
    places = rest[:, : num * _PLACE, : num * _PLACE].reshape(3, num, _PLACE, num, _PLACE).mean((2, 4))
    return min(score, correlation), float(np.abs(places).max() / max(1e-6, square.std()))


def _views(pictures: Sequence[NDArray[np.uint8]]) -> _Views:
    pixels = np.stack([_at_side(picture) for picture in pictures])
    grey = pixels.astype(np.float32).mean(1)
    hashes = np.stack([_hashes(grey, rows, columns) for rows, columns in _parts()], 1)
    return _Views(hashes[:, 0], hashes[:, 1:], pixels)


@cache
def _parts() -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """For the whole and each part, what takes its rows, and its columns, to their eight lowest frequencies."""
    spans = [(0.0, 1.0)]
    parts = [(spans[0], spans[0])]
    for share in _SHARES:
        spans = [(place * (1 - share), place * (1 - share) + share) for place in (0.0, 0.5, 1.0)]
        parts += [(down, across) for down in spans for across in spans]
    return [(_frequencies(*down), _frequencies(*across)) for down, across in parts]


def _frequencies(begin: float, end: float) -> NDArray[np.float32]:
    """[8, SIDE]: the cosine transform of the pixels from `begin` to `end`, of 32 samples."""
    middles = (begin + (end - begin) * (np.arange(32) + 0.5) / 32) * SIDE
    low, high = middles - (end - begin) * SIDE / 64, middles + (end - begin) * SIDE / 64
    pixel = np.arange(SIDE)
    overlap = np.clip(np.minimum(high[:, None], pixel + 1) - np.maximum(low[:, None], pixel), 0, None)
    cosines = np.cos(np.pi * np.arange(8)[:, None] * (np.arange(32) + 0.5) / 32)
    frequencies: NDArray[np.float32] = (cosines @ (overlap / overlap.sum(1, keepdims=True))).astype(np.float32)
    return frequencies


def _hashes(grey: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.uint64]:
    low = (rows @ grey @ columns.T).reshape(len(grey), 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).ravel()


def _at_side(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [3, SIDE, SIDE]."""
    if picture.shape[-1] != SIDE:
        picture = np.rint(_resized(picture.astype(np.float32), SIDE)).astype(np.uint8)
    return np.broadcast_to(picture, (3, SIDE, SIDE))


def _resized(picture: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """[C, size, size], each pixel the mean of the area that it covers; enlarged, the pixel below it."""
    if picture.shape[-1] == size:
        return picture
    weights = _areas(picture.shape[-1], size)
    resized: NDArray[np.float32] = (weights @ picture @ weights.T).astype(np.float32, copy=False)
    return resized


@cache
def _areas(before: int, after: int) -> NDArray[np.float32]:
    edges = np.arange(after + 1) * before / after
    pixel = np.arange(before)
    overlap = np.clip(np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel), 0, None)
    weights: NDArray[np.float32] = (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
    return weights


def _blurred(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Averages over 3 x 3 pixels: a shift by part of a pixel then changes little."""
    padded = np.pad(picture.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    blurred: NDArray[np.float32] = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / np.float32(9)
    return blurred
