"""Examples: labelled texts in files, split into those to train on and those that are held out."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.data.datasets import Datasets
from trainkit.data.rows import CONLL, HELD_OUT_NAMES, SQUAD, SUPPORTED, Row, find_splits, format_of, read_rows
from trainkit.data.sides import NOTHING, Entry, LeftOut, Sides
from trainkit.data.split import lowest_fraction
from trainkit.data.tokenizer import WordPiece
from trainkit.errors import DataError, nearest

_TRAIN_NAMES = ("train", "training")


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled text.

    Args:
        text: a string, or the list of its words.
        pair: the second text; None: there is none.
        label: as the source has it; None: it has none.
        row: where it comes from.
    """

    text: Any
    pair: Any
    label: Any
    row: Row

    @classmethod
    def given(cls, text: Any, pair: Any = None, label: Any = None) -> "Example":
        """Makes an example that is in no file."""
        return cls(text, pair, label, Row({}, Path("the given text"), "line 1"))

    @property
    def where(self) -> str:
        """The file and the place in it, for messages."""
        return self.row.where

    def key(self) -> int:
        """Returns a hash of the texts without white space, 64 bits."""
        return _hash(self.text) if self.pair is None else _hash(self.text, self.pair)

    def entry(self, group_by: str | None = None, time: str | None = None) -> Entry:
        """Returns what an audit compares.

        Args:
            group_by: the column of the group; None: there is none.
            time: the column of the time; None: there is none.

        Raises:
            DataError: where the row has no such column, or no time in it.
        """
        texts = [_joined(text) for text in (self.text, self.pair) if text is not None]
        shown = {*texts, str(self.label)}
        columns = {
            name: value
            for name, value in self.row.values.items()
            if isinstance(value, str | int | float) and str(value) not in shown and name not in (group_by, time)
        }
        group = _cell(self, "group_by", group_by)
        return Entry(
            self.key(),
            f"{self.row.path.name}, {self.row.place}",
            text="\n".join(texts),
            label=self.label if isinstance(self.label, str | int) else None,
            columns=columns,
            group=None if group is None else str(group),
            time=_time(self, _cell(self, "time", time)),
        )


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A specification of labelled texts; `load()` makes data sets of `Example` of it.

    Args:
        path: a .csv, .tsv, .jsonl, .parquet or .conll file or the .json of SQuAD, a folder with files train.* and
            validation.*, or a directory that Hugging Face datasets saved.
        held_out_path: a file to evaluate on; None: the held-out split of `path`, by `split`, or by `held_out`.
        text: the column with the text; .conll and SQuAD have their own.
        pair: the column with the second text; None: there is none.
        label: the column with the label.
        split: a column whose values are `train`, and `validation`, `dev` or `test` for what is held out.
        held_out: the fraction that is held out where the source has no split, chosen by a hash of the (first) text.
        quotes: whether a cell of a .csv or .tsv file may be in double quotes.
        vocab_file: a vocab.txt or tokenizer.json, for weights that come without one and for training from scratch.
        vocab_size: tokens of a vocabulary that is trained here, for training from scratch.
        lowercase: whether text is normalized to lower case; None: as the files beside the vocabulary say, else True.
        group_by: a column, such as the user, of which no value should be on both sides; None: there is none. The audit
            looks for those that are.
        time: a column with the time of an example, a number or as in ISO 8601; None: there is none. The audit looks for
            training examples that are later than held-out ones.
        tokenizer: an existing one, such as a checkpoint's.
        left_out: training examples that are not trained on, such as those that an audit found.

    Raises:
        DataError: for a value out of range, and where a listing of the path shows that it cannot be read.
    """

    path: Path | None = None
    held_out_path: Path | None = None
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    split: str | None = None
    held_out: float = 0.1
    quotes: bool = True
    vocab_file: Path | None = None
    vocab_size: int = 4096
    lowercase: bool | None = None
    group_by: str | None = None
    time: str | None = None
    tokenizer: WordPiece | None = None
    left_out: LeftOut = NOTHING

    def __post_init__(self) -> None:
        if not 0 < self.held_out <= 0.5:
            raise DataError(f"data.held_out={self.held_out}: must be above 0 and at most 0.5; set data.held_out")
        if self.vocab_size < 100:
            raise DataError(f"data.vocab_size={self.vocab_size}: must be at least 100; set data.vocab_size")
        if self.path is not None:
            find_splits(Path(self.path).expanduser())
        if self.held_out_path is not None and not Path(self.held_out_path).exists():
            raise DataError(f"data.held_out_path={self.held_out_path} does not exist; set it to a file, or null")
        if self.held_out_path is not None and self.split is not None:
            raise DataError(
                f"data.held_out_path={self.held_out_path} and data.split={self.split} both say what is held out: "
                f"give one"
            )
        if self.vocab_file is not None and not Path(self.vocab_file).is_file():
            raise DataError(f"data.vocab_file={self.vocab_file}: must be a vocab.txt that exists, or null")

    def load(self, progress: bool = True) -> Datasets:
        """Reads the examples.

        Args:
            progress: not used; reading takes seconds.

        Returns:
            Data sets that are lists of `Example`, with the tokenizer that was given, or that of `vocab_file`.

        Raises:
            DataError: for a file that cannot be read, without a column, or with nothing to train on or to hold out.
        """
        if self.path is None:
            raise DataError(f"data.path is not set: give {SUPPORTED}")
        files = find_splits(Path(self.path).expanduser())
        if self.held_out_path is not None:
            files["held_out"] = find_splits(Path(self.held_out_path).expanduser())["train"]
        # Pairs of similar texts have no scores, where those that are held out have them.
        train = self._read(files["train"], needs_label=self.held_out_path is None)
        facts: dict[str, int | str] = {}
        if "held_out" in files:
            held_out = self._read(files["held_out"])
        elif self.split is not None:
            train, held_out = self._by_column(train)
        else:
            train, held_out = self._by_hash(train)
        if len(self.left_out):
            before = len(train)
            train = [example for example in train if not self._is_left_out(example)]
            facts["leaking examples dropped"] = before - len(train)
        for name, examples in (("train on", train), ("evaluate on", held_out)):
            if not examples:
                raise DataError(f"data.path={self.path}: there is no example to {name}; give more of them")
        known = {example.key() for example in train}
        if num_shared := sum(example.key() in known for example in held_out):
            facts["held-out texts that are also trained on"] = num_shared
        tokenizer = self.tokenizer
        if tokenizer is None and self.vocab_file is not None:
            tokenizer = WordPiece.read(Path(self.vocab_file), lowercase=self.lowercase)
        return Datasets(train=train, held_out=held_out, tokenizer=tokenizer, facts=facts)

    def sides(self, progress: bool = True) -> Sides:
        """Returns the examples of both sides, for an audit.

        Args:
            progress: not used; reading takes seconds.

        Raises:
            DataError: as `load`, and where a time cannot be read.
        """
        loaded = replace(self, left_out=NOTHING, tokenizer=None, vocab_file=None).load()
        return sides_of_examples(loaded.train, loaded.held_out, group_by=self.group_by, time=self.time)

    def without(self, left_out: LeftOut) -> "Examples":
        """Returns the specification without these training examples, too."""
        return replace(self, left_out=self.left_out | left_out)

    def _is_left_out(self, example: Example) -> bool:
        return bool(self.left_out.covers(np.array([example.key()], np.uint64))[0])

    def read(self, path: Path) -> list[Example]:
        """Reads a file of examples, whose label column may be missing.

        Raises:
            DataError: for a file that cannot be read, or is without another column.
        """
        return self._read(find_splits(path)["train"], needs_label=False)

    def _read(self, files: Iterable[Path], needs_label: bool = True) -> list[Example]:
        return [example for path in files for example in self._of_file(path, needs_label)]

    def _of_file(self, path: Path, needs_label: bool) -> Iterator[Example]:
        columns = {"text": self.text, "pair": self.pair, "label": self.label, "split": self.split}
        if format_of(path) == CONLL:
            columns = {"text": "words", "pair": None, "label": "tags", "split": None}
        elif format_of(path) == SQUAD:
            columns = {"text": "question", "pair": "context", "label": "answers", "split": None}
        if not needs_label:
            del columns["split"]
        for row in read_rows(path, quotes=self.quotes):
            for key, column in columns.items():
                if column is not None and column not in row.values and (key != "label" or needs_label):
                    found = ", ".join(map(repr, row.values)) or "nothing"
                    raise DataError(
                        f"{row.where}: no column {column!r}, found {found}; set data.{key}=NAME."
                        f"{nearest(column, row.values)}"
                    )
            of = {key: row.values.get(column) if column else None for key, column in columns.items()}
            _require_text(row, columns["text"], of["text"])
            if columns["pair"] is not None:
                _require_text(row, columns["pair"], of["pair"])
            yield Example(of["text"], of["pair"], of["label"], row)

    def _by_column(self, examples: list[Example]) -> tuple[list[Example], list[Example]]:
        assert self.split is not None
        train, held_out = [], []
        for example in examples:
            value = str(example.row.values[self.split]).strip().lower()
            if value in _TRAIN_NAMES:
                train.append(example)
            elif value in HELD_OUT_NAMES:
                held_out.append(example)
            else:
                raise DataError(
                    f"{example.where}: data.split={self.split} is {value!r}; it must be {', '.join(_TRAIN_NAMES)}, "
                    f"{', '.join(HELD_OUT_NAMES)}"
                )
        return train, held_out

    def _by_hash(self, examples: list[Example]) -> tuple[list[Example], list[Example]]:
        # The first text of a pair; a question belongs to its context.
        keys = [_hash(e.pair if isinstance(e.label, list | dict) and e.pair is not None else e.text) for e in examples]
        hashes = np.array(keys, np.uint64)
        if len(set(keys)) < 2:
            raise DataError(f"data.path={self.path} holds {len(set(keys))} different texts, too few to hold one out")
        is_held_out = lowest_fraction(hashes, self.held_out)
        train = [example for example, held_out in zip(examples, is_held_out, strict=True) if not held_out]
        return train, [example for example, held_out in zip(examples, is_held_out, strict=True) if held_out]


def sides_of_examples(
    train: Sequence[Example], held_out: Sequence[Example], *, group_by: str | None = None, time: str | None = None
) -> Sides:
    """Returns examples as an audit compares them.

    Args:
        train: to train on.
        held_out: to measure on.
        group_by: the column of the group; None: there is none.
        time: the column of the time; None: there is none.
    """
    digest = hashlib.blake2b(repr((group_by, time)).encode(), digest_size=16)
    for side in (train, held_out):
        digest.update(f"{len(side)};".encode())
        for example in side:
            digest.update(repr((example.key(), example.label, *example.row.values.items())).encode(errors="replace"))
    return Sides(
        train=lambda: (example.entry(group_by, time) for example in train),
        held_out=lambda: (example.entry(group_by, time) for example in held_out),
        fingerprint=digest.hexdigest(),
        num_train=len(train),
        num_held_out=len(held_out),
    )


def _cell(example: Example, key: str, column: str | None) -> Any:
    values = example.row.values
    if column is not None and column not in values:
        found = ", ".join(map(repr, values)) or "nothing"
        raise DataError(
            f"{example.where}: no column {column!r}, found {found}; set data.{key}=NAME.{nearest(column, values)}"
        )
    return None if column is None or values[column] == "" else values[column]


def _time(example: Example, value: Any) -> float | None:
    if value is None:
        return None
    for parse in (float, lambda text: datetime.fromisoformat(text).timestamp()):
        with suppress(ValueError):  # of the other form, or of neither
            return parse(str(value))
    raise DataError(
        f"{example.where}: data.time holds {str(value)!r}; it must be a number, or a time as 2026-11-29T12:00"
    )


def _joined(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _require_text(row: Row, column: str | None, value: Any) -> None:
    is_list = isinstance(value, list) and all(isinstance(word, str) for word in value)
    if value is not None and not isinstance(value, str) and not is_list:
        raise DataError(f"{row.where}: column {column!r} holds {type(value).__name__}, not text; set another column")
    if not value or not "".join(value).strip():
        raise DataError(f"{row.where}: column {column!r} holds no text; remove the row")


def _hash(*texts: Any) -> int:
    content = "\0".join(" ".join((" ".join(text) if isinstance(text, list) else text).split()) for text in texts)
    return int.from_bytes(hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
