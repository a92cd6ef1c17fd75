"""Datasets: the training and the held-out data of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainkit.data.fingerprint import fingerprint


@dataclass(frozen=True)
class Datasets:
    """Two data sets that share no sample: one for training and one for evaluation.

    A specification of data (`Text`, `Images`) loads into this. It is also a specification itself, so own data sets can
    be used in its place: `data: {_target_: trainkit.data.Datasets, train: {...}, held_out: {...}}`.

    Args:
        train: map-style, with `__len__` and `__getitem__(index)`; optionally also `__getitems__(indices)`, which
            returns a list of samples to collate, or a tree of tensors (first dimension the samples) that is already a
            batch.
        held_out: the same, for evaluation.
        collate: makes a batch of a list of samples; None: torch's default_collate.
        tokenizer: the tokenizer of text; needed by recipes that print sentences.
        facts: other properties to show to a reader of the run, such as the number of documents.
        classes: the names of the classes, by label; empty: items have no labels.
    """

    train: Any
    held_out: Any
    collate: Callable[[list[Any]], Any] | None = None
    tokenizer: Any = None
    facts: Mapping[str, int | str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def describe(self) -> dict[str, int | str]:
        """Returns the numbers of samples, where a length is known, and the `facts`, by their names in a summary."""
        sets = {"training samples": self.train, "held-out samples": self.held_out}
        return {**{name: len(samples) for name, samples in sets.items() if hasattr(samples, "__len__")}, **self.facts}

    def fingerprints(self) -> dict[str, str]:
        """Returns the fingerprints of the training data and the held-out data."""
        return {"train": fingerprint(self.train), "held_out": fingerprint(self.held_out)}

    def load(self, progress: bool = True) -> "Datasets":
        """Returns itself: there is nothing to build."""
        return self
