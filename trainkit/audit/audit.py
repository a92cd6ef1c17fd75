"""Audit: held-out examples that a training set gives away, looked for in bounded time."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import PurePath
from typing import TypeVar

import numpy as np

from trainkit.audit.contamination import Contamination
from trainkit.audit.labels import Labels
from trainkit.audit.pictures import PictureIndex
from trainkit.audit.report import HINTS, Kind, Leak, Report
from trainkit.audit.texts import TextIndex
from trainkit.data.progress import track
from trainkit.data.sides import Entry, Sides

Item = TypeVar("Item")
NUM_KEPT = 1000
"""Pairs of each kind that a report names."""
SHOWN_CHARS = 1000
"""Of a text in a report."""

_AT_ONCE = 512  # examples
_HELD_OUT_SHARE = 0.4  # of the time at most is for reading the held-out examples
_TRAIN_SHARE = 0.8  # of the time at most has gone before a corpus is read
_STEM = re.compile(r"(?=.*[^\W\d_]{2})\w*\d{4,}\w*|\w{16,}")  # says which file it is, unlike `test` or `image_1`


def audit(
    sides: Sides, *, seconds: float | None = None, corpus: Iterable[str] | None = None, progress: bool = True
) -> Report:
    """Looks for training examples that give held-out ones away.

    Args:
        sides: what to compare.
        seconds: after which it ends with what it has compared so far, and says so; None: it compares all.
        corpus: texts of a pre-training corpus, in which held-out texts are looked for.
        progress: whether to show progress bars.

    Returns:
        What was found.

    Raises:
        DataError: for data that cannot be read.

    Example:
        >>> from trainkit.data.sides import Entry, Sides
        >>> sides = Sides(train=lambda: iter([Entry(1, "a"), Entry(2, "b")]), held_out=lambda: iter([Entry(2, "c")]))
        >>> audit(sides).line()
        '1 of 1 held-out examples leak (100.00%): 1 exactly; compared with all 2 training examples'
    """
    return _Audit(sides, seconds, progress).run(corpus)


class _Audit:
    def __init__(self, sides: Sides, seconds: float | None, progress: bool) -> None:
        self._sides, self._seconds, self._progress = sides, seconds, progress
        self._begin = time.monotonic()
        self._held_out: list[Entry] = []  # with the beginnings of their texts
        self._by_key: dict[int, list[int]] = defaultdict(list)
        self._by_group: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        self._by_time: list[tuple[float, int]] = []
        self._texts, self._pictures, self._labels = TextIndex(), PictureIndex(), Labels()
        self._with_text: list[int] = []
        self._with_pixels: list[int] = []
        self._contamination: list[str] | None = None
        self._leaks: dict[Kind, list[Leak]] = defaultdict(list)
        self._num: Counter[Kind] = Counter()
        self._hit: dict[Kind, set[int]] = defaultdict(set)
        self._keys: list[int] = []
        self._latest = -np.inf
        self._num_train = self._num_leaking = 0

    def run(self, corpus: Iterable[str] | None) -> Report:
        sides = self._sides
        self._contamination = None if corpus is None else []
        held_out = track(sides.held_out(), "reading held-out examples", sides.num_held_out, self._progress)
        is_complete = self._each(held_out, self._add, _HELD_OUT_SHARE)
        self._by_time.sort()
        train = track(sides.train(), "comparing training examples", sides.num_train, self._progress)
        is_complete &= self._each(train, self._compare, 1.0 if corpus is None else _TRAIN_SHARE)
        notes = []
        if corpus is not None:
            is_read = self._look_into(corpus)
            is_complete &= is_read
            notes += [] if is_read else ["the pre-training corpus was not read to its end"]
        self._hit["later"] = {number for time, number in self._by_time if time < self._latest}
        affected = set().union(*(hit for kind, hit in self._hit.items() if kind not in HINTS))
        return Report(
            num_train=self._num_train,
            num_held_out=len(self._held_out),
            total_train=self._num_train if is_complete else sides.num_train,
            total_held_out=len(self._held_out) if is_complete else sides.num_held_out,
            is_complete=is_complete,
            seconds=time.monotonic() - self._begin,
            train={kind: num for kind, num in self._num.items() if num},
            held_out={kind: len(hit) for kind, hit in self._hit.items() if hit},
            num_affected=len(affected),
            leaks=tuple(chain(*self._leaks.values())),
            given_away=tuple(self._labels.given_away()),
            keys=np.unique(np.array(self._keys, np.uint64)),
            num_leaking=self._num_leaking,
            notes=tuple(notes),
        )

    # -- the held-out side -------------------------------------------------------------------------------------------

    def _add(self, batch: list[Entry]) -> None:
        first, texts, pictures = len(self._held_out), [], []
        self._labels.add_held_out(batch)
        for number, entry in enumerate(batch, first):
            self._by_key[entry.key].append(number)
            if entry.group is not None:
                self._by_group[entry.group].append(number)
            if (stem := _stem(entry)) is not None:
                self._by_stem[stem].append(number)
            if entry.time is not None:
                self._by_time.append((entry.time, number))
            if entry.text is not None:
                texts.append(entry.text)
                self._with_text.append(number)
            if entry.pixels is not None:
                pictures.append(entry.pixels)
                self._with_pixels.append(number)
            short = None if entry.text is None else entry.text[:SHOWN_CHARS]
            self._held_out.append(Entry(entry.key, entry.name, text=short, pixels=entry.pixels))
        if texts:
            self._texts.add(texts)
            if self._contamination is not None:
                self._contamination += texts
        if pictures:
            self._pictures.add(pictures)

    # -- the training side -------------------------------------------------------------------------------------------

    def _compare(self, batch: list[Entry]) -> None:
        self._labels.add_train(batch)
        is_leak = [self._compare_alone(entry) for entry in batch]
        # What is there exactly needs no further look.
        with_text = [place for place, entry in enumerate(batch) if entry.text is not None and not is_leak[place]]
        for match in self._texts.matches([batch[place].text or "" for place in with_text]):
            place, number = with_text[match.train], self._with_text[match.held_out]
            copies = [self._with_text[copy] for copy in self._texts.copies.get(match.held_out, ())]
            self._found("near", batch[place], [number, *copies], similarity=match.similarity, again=is_leak[place])
            is_leak[place] = True
        pictures = {
            place: entry.pixels for place, entry in enumerate(batch) if entry.pixels is not None and not is_leak[place]
        }
        with_pixels = [*pictures]
        for match in self._pictures.matches([*pictures.values()]):
            place, number = with_pixels[match.train], self._with_pixels[match.held_out]
            self._found("near", batch[place], [number], similarity=match.similarity, again=is_leak[place])
            is_leak[place] = True
        for place, entry in enumerate(batch):
            is_leak[place] |= self._compare_origin(entry)
        self._keys += [entry.key for place, entry in enumerate(batch) if is_leak[place]]
        self._num_leaking += sum(is_leak)
        self._num_train += len(batch)

    def _compare_alone(self, entry: Entry) -> bool:
        same = self._by_key.get(entry.key)
        if same:
            self._found("exact", entry, same, similarity=1.0)
        if (stem := _stem(entry)) is not None and stem in self._by_stem:
            self._found("name", entry, self._by_stem[stem])
        return bool(same)

    def _compare_origin(self, entry: Entry) -> bool:
        is_leak = False
        if entry.group is not None and (numbers := self._by_group.get(entry.group)):
            self._found("group", entry, numbers)
            is_leak = True
        if entry.time is not None and self._by_time and entry.time > self._by_time[0][0]:
            self._found("later", entry, [self._by_time[0][1]])
            self._latest, is_leak = max(self._latest, entry.time), True
        return is_leak

    def _found(
        self, kind: Kind, entry: Entry, numbers: list[int], *, similarity: float | None = None, again: bool = False
    ) -> None:
        self._num[kind] += not again
        self._hit[kind].update(numbers)
        if len(self._leaks[kind]) >= NUM_KEPT:
            return
        other = self._held_out[numbers[0]]
        self._leaks[kind].append(
            Leak(
                kind=kind,
                train=entry.name,
                held_out=other.name,
                similarity=similarity,
                train_text=None if entry.text is None else entry.text[:SHOWN_CHARS],
                held_out_text=other.text,
                train_pixels=entry.pixels,
                held_out_pixels=other.pixels,
            )
        )

    # -- the corpus --------------------------------------------------------------------------------------------------

    def _look_into(self, corpus: Iterable[str]) -> bool:
        found = Contamination(self._contamination or [])
        texts = track(corpus, "reading the pre-training corpus", enabled=self._progress)
        is_complete = self._each(texts, found.look_into, 1.0)
        for place, share in found.seen():
            number = self._with_text[place]
            self._hit["seen"].add(number)
            if len(self._leaks["seen"]) < NUM_KEPT:
                other = self._held_out[number]
                self._leaks["seen"].append(
                    Leak(kind="seen", train="", held_out=other.name, similarity=share, held_out_text=other.text)
                )
        return is_complete

    # -- time --------------------------------------------------------------------------------------------------------

    def _each(self, items: Iterator[Item], take: Callable[[list[Item]], None], share: float) -> bool:
        """Gives batches to `take` until `share` of the time has gone; returns whether there was time for all."""
        while batch := list(islice(items, _AT_ONCE)):
            take(batch)
            if self._seconds is not None and time.monotonic() - self._begin > share * self._seconds:
                return next(items, None) is None
        return True


def _stem(entry: Entry) -> str | None:
    """The name of a picture's file without folders and suffix, where it says which one it is."""
    if entry.pixels is None:
        return None
    stem = PurePath(entry.name).stem
    return stem if _STEM.fullmatch(stem) else None
