"""Where text comes from: a set of files, found by a listing and read as a stream of documents."""

import hashlib
import importlib.util
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainkit.data.readers import READERS
from trainkit.errors import DataError

_SUPPORTED = (".txt", ".jsonl", ".parquet")
_HELD_OUT_SPLITS = ("validation", "test", "dev")
_NOT_DOCUMENTATION = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "_inductor"}


@dataclass(frozen=True)
class Corpus:
    """Files of text, in a fixed order.

    held_out: the files of a held-out split that the source brings itself; empty where one is to be drawn.
    field: the key or column that holds the text, in formats with several.
    """

    train: tuple[Path, ...]
    held_out: tuple[Path, ...] = ()
    field: str = "text"

    def documents(self) -> Iterator[tuple[bool, str]]:
        """(is of the source's own held-out split, text) of each document that is not blank; held-out ones first."""
        for is_held_out, files in ((True, self.held_out), (False, self.train)):
            for path in files:
                for text in READERS[path.suffix](path, self.field):
                    if text and not text.isspace():
                        yield is_held_out, text

    def fingerprint(self) -> str:
        """A hash of what the files hold; neither their names nor where they lie count."""
        files = self.held_out + self.train
        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
            digests = list(pool.map(_digest, files))
        whole = hashlib.blake2b(f"{self.field} {len(self.held_out)}".encode(), digest_size=16)
        for path, digest in zip(files, digests, strict=True):
            whole.update(path.suffix.encode() + digest)
        return whole.hexdigest()


def find_corpus(path: Path | None, field: str = "text") -> Corpus:
    """The corpus at `path`; None for the built-in one. Lists directories and reads no file of text.

    path: a .txt, .jsonl or .parquet file; a folder with any of them, at any depth; or a directory written by
        `save_to_disk` of Hugging Face datasets (of a DatasetDict, `train` is trained on and `validation` or `test`,
        where there, held out).
    Raises DataError that names the key data.path.
    """
    if path is None:
        return documentation()
    if not path.exists():
        raise DataError(
            f"data.path={path} does not exist; set data.path to a folder of .txt, .jsonl or .parquet files, "
            f"or leave it out for the built-in corpus"
        )
    if path.is_file():
        if path.suffix not in _SUPPORTED:
            raise DataError(f"data.path={path} is a {path.suffix or 'nameless'} file; use one of {_supported()}")
        return Corpus((path,), field=field)
    if (path / "dataset_dict.json").is_file():
        return _dataset_dict(path, field)
    if (path / "state.json").is_file():
        return Corpus(_arrow_files(path), field=field)
    return _folder(path, field)


def documentation() -> Corpus:
    """The built-in corpus: what the installed Python, NumPy and PyTorch say about themselves; nothing is downloaded.

    Some 35,000 paragraphs and 8 MB of technical English. It changes with the versions that are installed.
    """
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in ("numpy", "torch"):
        spec = importlib.util.find_spec(name)  # finds a top-level package without importing it
        if spec is not None and spec.submodule_search_locations:
            roots.append(Path(spec.submodule_search_locations[0]))
    return Corpus(tuple(path for root in roots for path in _sources(root)))


def _sources(root: Path) -> Iterator[Path]:
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_DOCUMENTATION)  # what stays here is where the walk goes
        yield from (Path(directory, name) for name in sorted(files) if name.endswith(".py"))


def _folder(path: Path, field: str) -> Corpus:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(f"data.path={path} is empty; put {_supported()} files there or set data.path to another folder")
    wanted = tuple(file for file in files if file.suffix in _SUPPORTED)
    if not wanted:
        counts = Counter(file.suffix or "without a suffix" for file in files)
        found = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(4))
        raise DataError(f"data.path={path} holds no text that can be read: found {found}; it takes {_supported()}")
    return Corpus(wanted, field=field)


def _dataset_dict(path: Path, field: str) -> Corpus:
    splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
    if "train" not in splits:
        raise DataError(f"data.path={path} has the splits {', '.join(splits)} and no 'train'; set data.path to one")
    held_out = next((split for split in _HELD_OUT_SPLITS if split in splits), None)
    return Corpus(_arrow_files(path / "train"), _arrow_files(path / held_out) if held_out else (), field)


def _arrow_files(path: Path) -> tuple[Path, ...]:
    state = path / "state.json"
    if not state.is_file():
        raise DataError(f"data.path: {path} has no state.json, so it is not a whole data set; save it again")
    files = tuple(path / entry["filename"] for entry in json.loads(state.read_text())["_data_files"])
    missing = next((file for file in files if not file.is_file()), None)
    if missing or not files:
        raise DataError(f"data.path: {path} lacks {missing.name if missing else 'data files'}; save the data set again")
    return files


def _supported() -> str:
    return ", ".join(_SUPPORTED)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
