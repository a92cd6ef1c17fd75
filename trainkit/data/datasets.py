"""The data of a run: what is trained on, what is held out, and how samples become a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainkit.data.fingerprint import fingerprint


@dataclass(frozen=True)
class Datasets:
    """Two map-style data sets that share no sample: one to train on and one to measure on.

    train, held_out: `__len__` and `__getitem__(index)`; or also `__getitems__(indices)`, which returns a list of
        samples to collate, or a tree of tensors (first dimension the samples) that is a batch already.
    collate: makes a batch of a list of samples; None for torch's own.
    facts: what else a reader of a run should know of them, such as how many documents they were made of.
    tokenizer: what made the tokens, for text; recipes that print sentences need one.

    A specification of data (`Text`, `Images`) loads into this. It is also a specification itself, so that one's own
    data sets go wherever those go: `data: {_target_: trainkit.data.Datasets, train: {...}, held_out: {...}}`.
    """

    train: Any
    held_out: Any
    collate: Callable[[list[Any]], Any] | None = None
    tokenizer: Any = None
    facts: Mapping[str, int | str] = field(default_factory=dict)

    def describe(self) -> dict[str, int | str]:
        """Numbers of samples, where a length is known, and the `facts`, by what they are called in a summary."""
        sets = {"training samples": self.train, "held-out samples": self.held_out}
        return {**{name: len(samples) for name, samples in sets.items() if hasattr(samples, "__len__")}, **self.facts}

    def fingerprints(self) -> dict[str, str]:
        """Of the training data and of the held-out data, by `fingerprint`."""
        return {"train": fingerprint(self.train), "held_out": fingerprint(self.held_out)}

    def load(self, progress: bool = True) -> "Datasets":
        """Itself: there is nothing to build."""
        return self
