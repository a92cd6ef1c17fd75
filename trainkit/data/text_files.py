"""TextFiles: which files of a folder are text, and where data sets of Hugging Face keep theirs."""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

from trainkit.data.files import suffix_of
from trainkit.data.formats.index_file import INDEX
from trainkit.data.formats.opening import is_shard
from trainkit.data.formats.splits import HELD_OUT_SPLITS, side_of
from trainkit.data.formats.texts import find_shards
from trainkit.data.grouping import Grouping
from trainkit.data.readers import reader_of
from trainkit.errors import DataError
from trainkit.json_text import read_json

TRAIN, HELD_OUT, UNREAD = "train", "held_out", "unread"


class TextFiles(Grouping):
    """The files of a folder of text: those to train on, those of its own held-out split, and others.

    Args:
        root: the folder, where it may hold a data set itself.
    """

    name, sorting, groups, unread = "text", "parts", (TRAIN, HELD_OUT, UNREAD), UNREAD

    def __init__(self, root: Path | None = None) -> None:
        self._root = root  # it is no split of what lies around it
        self._directory: Path | None = None
        self._saved: Path | None = None  # the data set of another tool that the directory is in
        self._of_saved: dict[Path, str] = {}
        self._with_tars: Path | None = None
        self._suffixes: Counter[str] = Counter()  # of files that are not read

    def group_of(self, directory: Path, name: str) -> str | None:
        """Returns `train`, `held_out` or `unread`; None for other files of a data set that another tool wrote."""
        if directory != self._directory:
            self._enter(directory)
        path = directory / name
        if path.suffix.lower() == ".tar" and self._saved is None and directory != self._with_tars:
            self._with_tars = directory  # looked at once: it lists the directory again
            self._take_shards(directory)
        if self._saved is not None:
            return self._of_saved.get(path)
        if is_readable(path):
            return TRAIN
        self._suffixes[suffix_of(name)] += 1
        return UNREAD

    def content(self, path: Path) -> bytes:
        """Returns the format of a file and a hash of all its bytes."""
        return content_of(path)

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of files that are not read, by suffix."""
        return {UNREAD: dict(self._suffixes)}

    def _enter(self, directory: Path) -> None:
        self._directory = directory
        if self._saved is not None and directory.is_relative_to(self._saved):
            return
        self._saved = None
        if (directory / "dataset_dict.json").is_file():
            train, held_out = _of_dataset_dict(directory)
            self._saved = directory
            self._of_saved = {**dict.fromkeys(held_out, HELD_OUT), **dict.fromkeys(train, TRAIN)}
        elif (directory / "state.json").is_file():
            self._saved, self._of_saved = directory, dict.fromkeys(arrow_files(directory), TRAIN)
        elif (directory / INDEX).is_file():
            self._take_shards(directory)

    def _take_shards(self, directory: Path) -> None:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
        if (shards := find_shards(directory, names)) is not None:
            side = self._side_of(directory)
            self._saved, self._of_saved = directory, {} if side is None else dict.fromkeys(shards, side)

    def _side_of(self, directory: Path) -> str | None:
        if directory == self._root or directory.name not in HELD_OUT_SPLITS:
            return TRAIN
        splits = ("train", *HELD_OUT_SPLITS)
        return side_of(directory.name, [name for name in splits if (directory.parent / name / INDEX).is_file()])


def is_readable(path: Path) -> bool:
    """Whether a file is text that a folder of text contains."""
    return (
        path.is_file()
        and suffix_of(path) not in (".py", ".arrow")
        and not is_shard(path.name)
        and reader_of(path) is not None
    )


def _of_dataset_dict(path: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Returns the files to train on, and those held out."""
    splits = splits_of(path)
    if "train" not in splits:
        raise DataError(f"data.path={path} has the splits {', '.join(splits)} and no 'train'; set data.path to one")
    held_out = (arrow_files(path / split) for split in HELD_OUT_SPLITS if split in splits)
    return arrow_files(path / "train"), next(filter(None, held_out), ())


def splits_of(path: Path) -> list[str]:
    """Returns the names of the splits of a directory that `save_to_disk` of Hugging Face datasets wrote.

    Raises:
        DataError: where its dataset_dict.json names none.
    """
    try:
        splits = read_json(path / "dataset_dict.json")["splits"]
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise ValueError("no list of splits")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"data.path: {path}/dataset_dict.json is damaged ({error}); save the data set again") from None
    return splits


def arrow_files(path: Path) -> tuple[Path, ...]:
    """Returns the files of a directory that `save_to_disk` of Hugging Face datasets wrote for one split.

    Raises:
        DataError: where it is not complete.
    """
    state = path / "state.json"
    if not state.is_file():
        raise DataError(f"data.path: {path} has no state.json, so it is not a complete data set; save it again")
    try:
        names = [str(entry["filename"]) for entry in read_json(state)["_data_files"]]
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"it names {outside[0]!r}, which is not beside it")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"data.path: {state} is damaged ({error}); save the data set again") from None
    files = tuple(path / name for name in names)
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise DataError(f"data.path: {path} lacks {missing.name}; save the data set again")
    return files


def content_of(path: Path) -> bytes:
    """Returns the format of a file and a hash of all its bytes.

    Raises:
        DataError: where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return os.fsencode(suffix_of(path)) + hashlib.file_digest(file, "blake2b").digest()
    except OSError as error:
        raise DataError(
            f"data.path: {path} cannot be read ({error.strerror or error}); make it readable, or remove it"
        ) from error
