"""Chosen images: which of a directory are trained on, held out and left out; found once for the same settings."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.cache import CacheError, cached
from trainkit.data.image_rows import Rows, digest_of
from trainkit.data.pyramid import read_keys, read_labels
from trainkit.data.sides import LeftOut
from trainkit.data.split import lowest_fraction
from trainkit.errors import DataError

_FORMAT = 1  # increase it whenever the same images and settings would give other rows
_FACTS, _TRAIN, _HELD_OUT = "facts.json", "train.npy", "held_out.npy"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The images of both sides.

    Args:
        train: to train on.
        held_out: to evaluate on.
        num_held_out: all that are held out.
        num_left_out: that would be trained on, but are left out.
        num_by_class: of the training images; empty where they have no labels.
    """

    train: Rows
    held_out: Rows
    num_held_out: int
    num_left_out: int
    num_by_class: list[int]


def choose(root: Path, directory: Path, fraction: float, most: int | None, left_out: LeftOut) -> Chosen:
    """Chooses the images of both sides, and keeps the choice in the cache.

    Args:
        root: the cache.
        directory: that a PyramidWriter has filled.
        fraction: to hold out.
        most: the maximum number of images to evaluate on; None: all.
        left_out: images that are not trained on.

    Raises:
        DataError: where no image is left to train on.
    """
    settings = repr((_FORMAT, directory.name, fraction, most, left_out.digest if len(left_out) else None))
    name = f"rows-{hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()}"
    try:
        kept = cached(root, name, lambda aside: _write(aside, *_choose(directory, fraction, most, left_out)))
    except CacheError:  # what was built there can be read, though nothing can be added
        train, held_out, facts = _choose(directory, fraction, most, left_out)
        return Chosen(train=Rows(train), held_out=Rows(held_out), **facts)
    facts = json.loads((kept / _FACTS).read_text(encoding="utf-8"))
    digests = facts.pop("digests")
    train_rows, held_out_rows = (Rows(kept / file, digests[file]) for file in (_TRAIN, _HELD_OUT))
    return Chosen(train=train_rows, held_out=held_out_rows, **facts)


def _choose(
    directory: Path, fraction: float, most: int | None, left_out: LeftOut
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, Any]]:
    keys = read_keys(directory)
    is_held_out = lowest_fraction(keys, fraction)
    is_left_out = left_out.covers(keys) & ~is_held_out
    train = np.flatnonzero(~is_held_out & ~is_left_out)
    if not len(train):
        raise DataError("on_leak=drop leaves no image to train on: set on_leak=warn, or give other images")
    labels = read_labels(directory)
    facts = {
        "num_held_out": int(is_held_out.sum()),
        "num_left_out": int(is_left_out.sum()),
        "num_by_class": [] if labels is None else np.bincount(labels[train]).tolist(),
    }
    return train, np.flatnonzero(is_held_out & _lowest(keys, is_held_out, most)), facts


def _write(aside: Path, train: NDArray[np.int64], held_out: NDArray[np.int64], facts: dict[str, Any]) -> None:
    np.save(aside / _TRAIN, train)
    np.save(aside / _HELD_OUT, held_out)
    digests = {_TRAIN: digest_of(train), _HELD_OUT: digest_of(held_out)}
    (aside / _FACTS).write_text(json.dumps({**facts, "digests": digests}), encoding="utf-8")


def _lowest(keys: NDArray[np.uint64], among: NDArray[np.bool_], most: int | None) -> NDArray[np.bool_]:
    """Chooses at most `most` of the `keys` in `among`, the lowest by low bits: the high bits decide the split."""
    chosen = np.zeros(len(keys), np.bool_)
    chosen[by_low_bits(keys, among)[:most]] = True
    return chosen


def by_low_bits(keys: NDArray[np.uint64], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the places of the `keys` in `among`, in the order of their low bits."""
    low = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return np.flatnonzero(among)[np.argsort(low[among], kind="stable")]
