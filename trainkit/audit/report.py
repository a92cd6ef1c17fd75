"""Report: what an audit found, how much it compared, and where."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["exact", "near", "group", "later", "seen", "name"]
KINDS: dict[Kind, str] = {
    "exact": "exact duplicates",
    "near": "near-duplicates",
    "group": "groups on both sides",
    "later": "training examples later than held-out ones",
    "seen": "held-out texts in the pre-training corpus",
    "name": "same file name on both sides (a hint)",
}
HINTS: tuple[Kind, ...] = ("name",)
"""Kinds that are shown and do not count as leakage."""
MOST_DROPPED = 0.5
"""Share of the training examples that on_leak=drop leaves out at most: more are a split by something else."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A training example and a held-out one that should not be on two sides.

    Args:
        kind: of leakage.
        train: the name of the training example; of the kind `seen`, nothing.
        held_out: the name of the held-out example.
        similarity: 0 to 1; None: they are not compared by content.
        train_text: the beginning of it; None: it has none.
        held_out_text: likewise.
        train_pixels: uint8 [C, R, R]; None: it is no picture.
        held_out_pixels: likewise.
    """

    kind: Kind
    train: str
    held_out: str
    similarity: float | None = None
    train_text: str | None = None
    held_out_text: str | None = None
    train_pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    held_out_pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    def facts(self) -> dict[str, Any]:
        """Returns all but the pixels, without what is not known, JSON-serializable."""
        return {name: value for name, value in vars(self).items() if value is not None and "pixels" not in name}


@dataclass(frozen=True, kw_only=True)
class GivenAway:
    """A label that one feature gives away.

    Args:
        feature: in words.
        label: the class; None: the feature tells all of them.
        score: on the held-out examples: F1 of the class, or the share of the errors of the most frequent class that
            the feature avoids.
    """

    feature: str
    label: str | None
    score: float

    def __str__(self) -> str:
        what = f"the label {self.label!r}" if self.label is not None else "the labels"
        return f"{self.feature} gives away {what} (score {self.score:.3f} on the held-out examples)"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an audit.

    Args:
        num_train: training examples that were compared.
        num_held_out: held-out examples that they were compared with.
        total_train: that there are; None: not known.
        total_held_out: likewise.
        is_complete: whether all were compared.
        seconds: that it took.
        train: by kind, the number of training examples that leak.
        held_out: by kind, the number of held-out examples with a leak.
        num_affected: held-out examples with a leak of any kind but the hints.
        leaks: pairs of each kind, the first ones found.
        given_away: labels that one feature gives away.
        keys: the content of the training examples that leak, for `LeftOut`.
        num_leaking: training examples that leak, of any kind but the hints.
        notes: what was not looked at, and why.
    """

    num_train: int
    num_held_out: int
    total_train: int | None
    total_held_out: int | None
    is_complete: bool
    seconds: float
    train: Mapping[str, int]
    held_out: Mapping[str, int]
    num_affected: int
    leaks: tuple[Leak, ...]
    given_away: tuple[GivenAway, ...] = ()
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)
    num_leaking: int = 0
    notes: tuple[str, ...] = ()

    @property
    def can_be_dropped(self) -> bool:
        """Whether training examples leak, and so few that on_leak=drop leaves them out."""
        return 0 < self.num_leaking <= MOST_DROPPED * self.num_train

    @property
    def is_clean(self) -> bool:
        """Whether nothing but hints was found."""
        return not self.given_away and all(kind in HINTS for kind in (*self.train, *self.held_out))

    def counts(self) -> dict[str, Any]:
        """Returns the numbers without the pairs, as a run keeps them, JSON-serializable."""
        return {
            "train": dict(self.train),
            "held_out": dict(self.held_out),
            "held_out_affected": self.num_affected,
            "train_leaking": self.num_leaking,
            "labels_given_away": len(self.given_away),
            "compared": {"train": self.num_train, "held_out": self.num_held_out},
            "of": {"train": self.total_train, "held_out": self.total_held_out},
            "complete": self.is_complete,
        }

    def facts(self) -> dict[str, Any]:
        """Returns all but pixels and keys, JSON-serializable."""
        return {
            **self.counts(),
            "seconds": round(self.seconds, 3),
            "given_away": [vars(one) for one in self.given_away],
            "notes": list(self.notes),
            "pairs": [leak.facts() for leak in self.leaks],
        }

    def line(self) -> str:
        """Returns what was found and how much was compared, in one line."""
        found = [f"{num:,} {_SHORT[kind]}" for kind, num in self._by_kind() if kind not in HINTS]
        found += [str(one) for one in self.given_away[:1]]
        if len(self.given_away) > 1:
            found[-1] += f", and {len(self.given_away) - 1} more"
        share = self.num_affected / max(1, self.num_held_out)
        what = f"{self.num_affected:,} of {self.num_held_out:,} held-out examples leak ({share:.2%})"
        shown = f"{what}: {', '.join(found)}" if found else f"none of {self.num_held_out:,} held-out examples leaks"
        return f"{shown}; {self.coverage()}"

    def coverage(self) -> str:
        """Returns how much was compared, in words."""
        train = _of(self.num_train, self.total_train, self.is_complete)
        if self.is_complete:
            return f"compared with all {train} training examples"
        held_out = _of(self.num_held_out, self.total_held_out, False)
        return (
            f"NOT FINISHED after {self.seconds:.0f} s: compared {train} training examples with {held_out} held-out ones"
        )

    def _by_kind(self) -> Iterator[tuple[Kind, int]]:
        for kind in KINDS:
            if num := self.held_out.get(kind, 0) or self.train.get(kind, 0):
                yield kind, num


_SHORT: dict[Kind, str] = {
    "exact": "exactly",
    "near": "nearly",
    "group": "by their group",
    "later": "older than a training example",
    "seen": "in the pre-training corpus",
    "name": "by their file name",
}


def _of(num: int, total: int | None, is_complete: bool) -> str:
    return f"{num:,}" if is_complete else f"{num:,} of {total:,}" if total is not None else f"the first {num:,}"
