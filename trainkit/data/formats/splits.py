"""Splits: which parts of a data set are trained on, and which one is held out, by the names of their folders."""

from collections.abc import Collection
from typing import Literal

HELD_OUT_SPLITS = ("validation", "val", "valid", "test", "dev")
"""The names of splits that are not trained on; the first one that there is is held out."""


def side_of(name: str, others: Collection[str]) -> Literal["train", "held_out"] | None:
    """Returns what a data set in a folder is for; None: it is not used.

    Args:
        name: of the folder.
        others: all folders beside it that hold data sets, itself among them. Where there is no `train` they are data
            sets of their own, and all are trained on.

    Example:
        >>> [side_of(name, ["train", "val", "test"]) for name in ("train", "val", "test")]
        ['train', 'held_out', None]
        >>> side_of("val", ["val", "more"])
        'train'
    """
    if "train" not in others or name not in HELD_OUT_SPLITS:
        return "train"
    return "held_out" if name == next(split for split in HELD_OUT_SPLITS if split in others) else None
