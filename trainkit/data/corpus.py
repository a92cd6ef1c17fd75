"""Corpus: the text files of a run, found by listing and read as a stream of documents."""

import hashlib
import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from trainkit.cache import cached
from trainkit.data.files import counted, state_of, suffix_of, walk
from trainkit.data.formats.opening import is_shard
from trainkit.data.formats.texts import find_shards
from trainkit.data.progress import track
from trainkit.data.readers import reader_of
from trainkit.errors import DataError
from trainkit.json_text import read_json

_SUPPORTED = (
    ".txt, .md, .html, .jsonl, .csv, .tsv (also .gz and .zst of them), .parquet, and shards (MDS, litdata, .tar)"
)
_HELD_OUT_SPLITS = ("validation", "test", "dev")
_NOT_DOCUMENTATION = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "_inductor"}


@dataclass(frozen=True)
class Corpus:
    """Files of text, in a fixed order.

    Args:
        train: the files to train on.
        held_out: the files of the source's own held-out split; empty where one is to be drawn.
        field: the key or column that contains the text, in formats with several.
        unread: other files in the folder, which cannot be read as text.
    """

    train: tuple[Path, ...]
    held_out: tuple[Path, ...] = ()
    field: str = "text"
    unread: tuple[Path, ...] = ()

    def documents(self) -> Iterator[tuple[bool, str]]:
        """Reads the documents that are not blank, held-out ones first.

        Returns:
            Of each (whether it belongs to the source's own held-out split, text).
        """
        return ((is_held_out, text) for is_held_out, _, text in self.named())

    def named(self) -> Iterator[tuple[bool, str, str]]:
        """Reads the documents as `documents` does, and says where each is.

        Yields:
            (whether it belongs to the source's own held-out split, the file and its number there, text).
        """
        for is_held_out, files in ((True, self.held_out), (False, self.train)):
            for path in files:
                read = reader_of(path)
                assert read is not None, f"{path} was found to be readable"
                for number, text in enumerate(read(path, self.field), start=1):
                    if text and not text.isspace():
                        yield is_held_out, f"{path.name}, document {number}", text

    @property
    def num_bytes(self) -> int:
        """The size of the files."""
        return sum(path.stat().st_size for path in (*self.held_out, *self.train))

    def fingerprint(self, memory: Path, progress: bool = False) -> str:
        """Hashes the content of the files, once per state of them; their names and paths do not matter.

        Args:
            memory: a directory to cache the result in.
            progress: whether to show a progress bar.

        Returns:
            Hexadecimal digits.
        """
        found: list[str] = []

        def write(directory: Path) -> None:
            found.append(self._content(progress))
            (directory / "digest").write_text(found[0])

        state = hashlib.blake2b(f"{self.field} {len(self.held_out)}".encode(), digest_size=16)
        state.update(state_of(path.absolute() for path in self.held_out + self.train).encode())
        try:
            return (cached(memory, f"listing-{state.hexdigest()}", write) / "digest").read_text()
        except DataError:  # what was built there can be read, though nothing can be added
            return found[0] if found else self._content(progress)

    def _content(self, progress: bool) -> str:
        files = self.held_out + self.train
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
            digests = list(track(pool.map(_digest, files), "comparing text", len(files), progress))
        whole = hashlib.blake2b(f"{self.field} {len(self.held_out)}".encode(), digest_size=16)
        for path, digest in zip(files, digests, strict=True):
            whole.update(os.fsencode(suffix_of(path)) + digest)
        return whole.hexdigest()


def find_corpus(path: Path | None, field: str = "text") -> Corpus:
    """Finds the corpus at a path. Lists directories, and reads only the start of files without a suffix.

    Args:
        path: a file of a format in `readers`; a directory written by `save_to_disk` of Hugging Face datasets (of a
            DatasetDict, `train` is trained on, and `validation` or `test` is held out); shards of MDS, litdata or
            webdataset; or a folder with any of these, at any depth, links followed. None: the built-in corpus.
        field: the key or column that contains the text, in formats with several.

    Returns:
        The corpus.

    Raises:
        DataError: where nothing can be read at `path`; the message names the key data.path.
    """
    if path is None:
        return documentation()
    if not path.exists():
        raise DataError(
            f"data.path={path} does not exist; set data.path to a folder of {_SUPPORTED}, "
            f"or leave it out for the built-in corpus"
        )
    if path.is_file():
        if not _is_readable(path) and suffix_of(path) != ".tar":
            raise DataError(f"data.path={path} is a {suffix_of(path) or 'nameless'} file; it takes {_SUPPORTED}")
        return Corpus((path,), field=field)
    return _folder(path, field)


@cache
def documentation() -> Corpus:
    """Returns the built-in corpus: the docstrings of the installed Python, NumPy and PyTorch; nothing is downloaded.

    About 35,000 paragraphs and 8 MB of technical English. It changes with the installed versions; a process lists them
    once.
    """
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in ("numpy", "torch"):
        spec = importlib.util.find_spec(name)  # finds a top-level package without importing it
        if spec is not None and spec.submodule_search_locations:
            roots.append(Path(spec.submodule_search_locations[0]))
    return Corpus(tuple(path for root in roots for path in _sources(root)))


def _sources(root: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_DOCUMENTATION)  # os.walk enters only the folders that stay in the list
        yield from (Path(directory, name) for name in sorted(files) if name.endswith(".py"))


@dataclass
class _Found:
    train: list[Path] = field(default_factory=list)
    held_out: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)


def _folder(path: Path, text_field: str) -> Corpus:
    found = _Found()
    for directory, folders, files in walk(path):
        if "dataset_dict.json" in files:
            _add_dataset_dict(directory, found)
            folders.clear()
        elif "state.json" in files:
            found.train += arrow_files(directory)
            folders.clear()
        elif (shards := find_shards(directory, files)) is not None:
            found.train += shards
            folders.clear()
        else:
            for file in (directory / name for name in files):
                (found.train if _is_readable(file) else found.unread).append(file)
    if not found.train:
        if not found.unread:
            raise DataError(f"data.path={path} is empty; put {_SUPPORTED} there or set data.path to another folder")
        raise DataError(
            f"data.path={path} holds no text that can be read: found {counted(found.unread)}; it takes {_SUPPORTED}"
        )
    return Corpus(tuple(sorted(found.train)), tuple(found.held_out), text_field, tuple(found.unread))


def _is_readable(path: Path) -> bool:
    return (
        path.is_file()
        and suffix_of(path) not in (".py", ".arrow")
        and not is_shard(path.name)
        and reader_of(path) is not None
    )


def _add_dataset_dict(path: Path, found: _Found) -> None:
    splits = splits_of(path)
    if "train" not in splits:
        raise DataError(f"data.path={path} has the splits {', '.join(splits)} and no 'train'; set data.path to one")
    found.train += arrow_files(path / "train")
    for split in _HELD_OUT_SPLITS:
        if split in splits and (files := arrow_files(path / split)):
            found.held_out += files
            break


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


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
