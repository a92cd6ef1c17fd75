"""Labels: classes that one trivial feature of an example gives away."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainkit.audit.report import GivenAway
from trainkit.data.sides import Entry

MIN_SCORE = 0.95
"""From which on a feature gives a label away: the best score is 1."""
MIN_HELD_OUT = 20
"""Held-out examples of a class; fewer show nothing."""

_MOST_CLASSES = 200
_MOST_WORDS = 2000  # of a text
_MOST_EXAMPLES = 20_000  # of each side: the first ones
_NUM_BINS = 64  # of a number


class Labels:
    """Collects labels and features of both sides; what one feature alone predicts is measured on the held-out side.

    Features are: whether a word occurs, the first and the last word, the length, and every other column of the row.
    """

    def __init__(self) -> None:
        self._train: list[tuple[str, dict[str, Any], frozenset[str]]] = []
        self._held_out: list[tuple[str, dict[str, Any], frozenset[str]]] = []

    def add_train(self, entries: Sequence[Entry]) -> None:
        """Takes the training examples that have a label, up to a number."""
        self._add(self._train, entries)

    def add_held_out(self, entries: Sequence[Entry]) -> None:
        """Takes the held-out examples that have a label, up to a number."""
        self._add(self._held_out, entries)

    def given_away(self) -> Iterator[GivenAway]:
        """Yields what gives labels away, the plainest first: all labels, then one."""
        classes = Counter(label for label, _, _ in self._train)
        if not self._held_out or not 2 <= len(classes) <= _MOST_CLASSES:
            return
        found = [*self._by_column(classes)]
        yield from found
        if not any(one.label is None for one in found):
            yield from self._by_word(classes)

    def _add(self, side: list[tuple[str, dict[str, Any], frozenset[str]]], entries: Sequence[Entry]) -> None:
        for entry in entries[: max(0, _MOST_EXAMPLES - len(side))]:
            if isinstance(entry.label, str | int | bool):
                words = (entry.text or "").lower().split()[:_MOST_WORDS]
                values: dict[str, Any] = {f"the column {name!r}": value for name, value in entry.columns.items()}
                if words:
                    values |= {"the first word": words[0], "the last word": words[-1]}
                    values |= {"the number of words": len(words), "the number of characters": len(entry.text or "")}
                side.append((str(entry.label), values, frozenset(words)))

    def _by_column(self, classes: Mapping[str, int]) -> Iterator[GivenAway]:
        """One value of each example: the class that most training examples of this value have is predicted."""
        commonest = max(classes, key=lambda label: classes[label])
        truth = [label for label, _, _ in self._held_out]
        errors = sum(label != commonest for label in truth)
        if errors < MIN_HELD_OUT:
            return
        for name in self._train[0][1]:
            edges = _edges([values.get(name) for _, values, _ in self._train])
            by_value: dict[Hashable, Counter[str]] = defaultdict(Counter)
            for label, values, _ in self._train:
                by_value[_binned(values.get(name), edges)][label] += 1
            guesses = {value: labels.most_common(1)[0][0] for value, labels in by_value.items()}
            guessed = [guesses.get(_binned(values.get(name), edges), commonest) for _, values, _ in self._held_out]
            wrong = sum(guess != label for guess, label in zip(guessed, truth, strict=True))
            if (score := 1 - wrong / errors) >= MIN_SCORE:
                yield GivenAway(feature=name, label=None, score=score)

    def _by_word(self, classes: Mapping[str, int]) -> Iterator[GivenAway]:
        """The word with the best F1 on the training examples of a class, measured on the held-out ones."""
        of_class: dict[str, Counter[str]] = defaultdict(Counter)
        everywhere: Counter[str] = Counter()
        for label, _, words in self._train:
            of_class[label].update(words)
            everywhere.update(words)
        held_out = Counter(label for label, _, _ in self._held_out)
        for label, num in classes.items():
            if held_out[label] < MIN_HELD_OUT or held_out[label] > len(self._held_out) - MIN_HELD_OUT:
                continue
            scores = ((2 * hits / (num + everywhere[word]), word) for word, hits in of_class[label].items())
            best, word = max(scores, default=(0.0, ""))
            if best < MIN_SCORE:
                continue
            has_word = sum(word in words for _, _, words in self._held_out)
            hits = sum(word in words for other, _, words in self._held_out if other == label)
            if (score := 2 * hits / (held_out[label] + has_word)) >= MIN_SCORE:
                yield GivenAway(feature=f"the word {word!r}", label=label, score=score)


def _edges(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """Bounds of bins for a column of numbers; None for another column."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    return np.unique(np.quantile(np.array(values, np.float64), np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))


def _binned(value: Any, edges: NDArray[np.float64] | None) -> Hashable:
    if edges is not None and isinstance(value, int | float):
        return int(np.searchsorted(edges, value))
    return str(value)
