"""Selection: what was kept and what each rule has dropped."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.version import __version__

MANIFEST = "selection.json"
KEPT = 0


@dataclass(frozen=True)
class Step:
    """What a rule did.

    Args:
        rule: as it is named to people.
        before: examples that it looked at.
        dropped: examples that it dropped.
        facts: such as the loss at which it cut.
    """

    rule: str
    before: int
    dropped: int
    facts: Mapping[str, Any]


class Choice:
    """Which examples are left, as rule after rule drops some.

    Args:
        num: examples.
    """

    def __init__(self, num: int) -> None:
        self._dropped_by = np.full(num, KEPT, np.uint8)
        self.steps: list[Step] = []

    @property
    def left(self) -> NDArray[np.bool_]:
        """bool [n], the examples that no rule has dropped."""
        is_left: NDArray[np.bool_] = self._dropped_by == KEPT
        return is_left

    def drop(self, rule: str, is_dropped: NDArray[np.bool_], **facts: Any) -> None:
        """Applies a rule to what is left.

        Args:
            rule: its name.
            is_dropped: bool [n]; what was dropped before does not count.
            facts: to keep.
        """
        left = self.left
        dropped = left & is_dropped
        self.steps.append(Step(rule, int(left.sum()), int(dropped.sum()), facts))
        self._dropped_by[dropped] = len(self.steps)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A selection, and where it came from.

    Args:
        kind: `text` or `images`.
        source: the path that was read.
        rules: what was asked for.
        steps: what each rule did, in order.
        before: amounts in the source, such as documents and characters.
        after: the same of what is kept.
        unread: files that could not be read, and why.
        content: a hash of what is kept, in order.
        files: what was written, and the examples and bytes in each; empty: nothing was.
        facts: more about it, such as the form of the files.
    """

    kind: str
    source: str
    rules: Mapping[str, Any]
    steps: tuple[Step, ...]
    before: Mapping[str, int]
    after: Mapping[str, int]
    unread: tuple[Mapping[str, Any], ...]
    content: str
    files: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any]

    def to_json(self) -> str:
        """Returns it as JSON: the same for the same source, rules and version."""
        steps = [
            {
                "rule": one.rule,
                "before": one.before,
                "dropped": one.dropped,
                "after": one.before - one.dropped,
                **one.facts,
            }
            for one in self.steps
        ]
        values = {
            "kind": self.kind,
            "source": self.source,
            **self.facts,
            "rules": dict(self.rules),
            "before": dict(self.before),
            "steps": steps,
            "after": dict(self.after),
            "unread": [dict(one) for one in self.unread],
            "content": self.content,
            "files": [dict(one) for one in self.files],
            "trainkit": __version__,
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def write(self, directory: Path) -> None:
        """Writes MANIFEST into a folder."""
        (directory / MANIFEST).write_text(self.to_json(), encoding="utf-8")


def between(values: NDArray[np.float64], quantiles: tuple[float, float]) -> tuple[NDArray[np.bool_], float, float]:
    """Chooses the values between two quantiles, both included.

    Args:
        values: float64 [n]; NaN is never chosen.
        quantiles: the lower and the upper one.

    Returns:
        bool [n], and the values at the quantiles.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return np.zeros(len(values), np.bool_), float("nan"), float("nan")
    low, high = (float(value) for value in np.quantile(known, quantiles))
    return (values >= low) & (values <= high), low, high
