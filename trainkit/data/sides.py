"""Sides: the training and the held-out examples of a data set, as an audit for leakage compares them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Entry:
    """One example of a side.

    Args:
        key: a hash of its content, 64 bits: equal for equal content.
        name: where it is, for a reader.
        text: None: it has none.
        pixels: uint8 [C, R, R]; None: it is no picture.
        group: what it belongs to, such as a user; None: not known.
        time: when it was made, in any unit; None: not known.
        label: what is to be learnt; None: nothing.
        columns: other values of its row, by column.
    """

    key: int
    name: str
    text: str | None = None
    pixels: NDArray[np.uint8] | None = None
    group: str | None = None
    time: float | None = None
    label: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both sides, each of which can be read again.

    Args:
        train: called for the examples that are trained on.
        held_out: called for those that a result is measured on.
        fingerprint: a hash of both; None: not known, so the result of an audit is not kept.
        num_train: None: not known before they are read.
        num_held_out: None: not known before they are read.
    """

    train: Callable[[], Iterator[Entry]]
    held_out: Callable[[], Iterator[Entry]]
    fingerprint: str | None = None
    num_train: int | None = None
    num_held_out: int | None = None


class LeftOut:
    """Training examples that a run leaves out, by their content.

    Args:
        keys: the hashes of their content, in any order, each as often as it likes.
    """

    def __init__(self, keys: NDArray[np.uint64] | None = None) -> None:
        self.keys: NDArray[np.uint64] = np.unique(np.empty(0, np.uint64) if keys is None else keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LeftOut) and np.array_equal(self.keys, other.keys)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"LeftOut({len(self)} keys, {self.digest})"

    def __or__(self, other: "LeftOut") -> "LeftOut":
        return LeftOut(np.concatenate([self.keys, other.keys]))

    @property
    def digest(self) -> str:
        """A hash of the keys, 32 hexadecimal digits; empty where nothing is left out."""
        return hashlib.blake2b(self.keys.tobytes(), digest_size=16).hexdigest() if len(self) else ""

    def covers(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Says of each key whether its example is left out.

        Args:
            keys: uint64 [n].

        Returns:
            bool [n].

        Example:
            >>> LeftOut(np.array([7, 9], np.uint64)).covers(np.array([9, 8], np.uint64)).tolist()
            [True, False]
        """
        return np.isin(keys, self.keys)


NOTHING = LeftOut()
"""Leaves nothing out."""
