"""Corpus: the text files of a run, found by listing and read as a stream of documents."""

import hashlib
import importlib.util
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainkit.cache import CacheError, cached
from trainkit.data.file_look import Verify
from trainkit.data.files import listed_counts, state_of, suffix_of
from trainkit.data.folder_scan import Digest, holds, scan
from trainkit.data.formats.index_file import INDEX
from trainkit.data.known_files import known_files
from trainkit.data.listing import Listing
from trainkit.data.parallel import in_order
from trainkit.data.progress import track
from trainkit.data.readers import RowError, Skip, texts_of, with_hint
from trainkit.data.text_files import HELD_OUT, TRAIN, UNREAD, TextFiles, content_of, is_readable
from trainkit.errors import DataError
from trainkit.logger import logger

SUPPORTED = (
    ".txt, .md, .html, .jsonl, .csv, .tsv (also .gz and .zst of them), .parquet, and shards (MDS, litdata, .tar)"
)
_NOT_DOCUMENTATION = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "_inductor"}


@dataclass(frozen=True)
class Corpus:
    """Files of text, in a fixed order.

    Args:
        train: the files to train on.
        held_out: the files of the source's own held-out split; empty where one is to be drawn.
        field: the key or column that contains the text, in formats with several.
        unread: other files in the folder, which cannot be read as text.
        listing: of the folder, which the files are of; None: they are of none.
        skip: called for a row, or the rest of a file, that cannot be read and is left out; None: it is an error.
    """

    train: Sequence[Path]
    held_out: Sequence[Path] = ()
    field: str = "text"
    unread: Sequence[Path] = ()
    listing: Listing | None = None
    skip: Skip | None = None

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
        try:
            for is_held_out, files in ((True, self.held_out), (False, self.train)):
                for path in files:
                    for number, text in enumerate(texts_of(path, self.field, self.skip), start=1):
                        if text and not text.isspace():
                            yield is_held_out, f"{path.name}, document {number}", text
        except RowError as error:
            raise with_hint(error) from error

    @property
    def num_bytes(self) -> int:
        """The size of the files."""
        if self.listing is not None:
            return self.listing.remembered("bytes", self._bytes_of_listing)  # type: ignore[no-any-return]
        return sum(path.stat().st_size for path in (*self.held_out, *self.train))

    @property
    def suffixes_not_read(self) -> Mapping[str, int]:
        """The numbers of `unread` files by suffix."""
        if self.listing is not None:
            return self.listing.facts[UNREAD]  # type: ignore[no-any-return]
        return Counter(map(suffix_of, self.unread))

    def fingerprint(self, memory: Path, progress: bool = False, verify: Verify = "state") -> str:
        """Hashes the content of the files, once per state of them; their names and paths do not matter.

        Args:
            memory: a directory to cache the result in.
            progress: whether to show a progress bar.
            verify: `full`: files that are in no listing are read again.

        Returns:
            Hexadecimal digits.
        """
        if self.listing is not None:
            return self.listing.remembered(f"fingerprint {self.field}", self._of_listing)  # type: ignore[no-any-return]
        found: list[str] = []

        def write(directory: Path) -> None:
            found.append(self._content(progress))
            (directory / "digest").write_text(found[0])

        files = [path.absolute() for path in (*self.held_out, *self.train)]
        state = hashlib.blake2b(f"{self.field} {len(self.held_out)}".encode(), digest_size=16)
        state.update(state_of(files).encode())
        try:
            known = (cached(memory, f"listing-{state.hexdigest()}", write) / "digest").read_text()
        except CacheError:  # what was built there can be read, though nothing can be added
            return found[0] if found else self._content(progress)
        if verify == "full" and not found and (now := self._content(progress)) != known:
            which = files[0] if len(files) == 1 else f"a file of the {len(files):,}"
            said = f"data.path: {which} changed without a change of size or time; check what wrote it, or the disk"
            logger(__name__).warning(said)
            (memory / f"listing-{state.hexdigest()}" / "digest").write_text(now)
            return now
        return known

    def _content(self, progress: bool) -> str:
        files = [*self.held_out, *self.train]
        contents = in_order(content_of, files)  # hashing releases the interpreter lock
        whole = self._digest()
        for content in track(contents, "comparing text", len(files), progress):
            whole.update(content)
        return whole.hexdigest()

    def _of_listing(self) -> str:
        assert self.listing is not None
        whole = self._digest()
        for group in (HELD_OUT, TRAIN):
            self.listing.group(group).contents.add_to(whole)
        return whole.hexdigest()

    def _bytes_of_listing(self) -> int:
        assert self.listing is not None
        return sum(self.listing.group(group).num_bytes for group in (TRAIN, HELD_OUT))

    def _digest(self) -> Digest:
        return hashlib.blake2b(f"{self.field} {len(self.held_out)}".encode(), digest_size=16)


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
            f"data.path={path} does not exist; set data.path to a folder of {SUPPORTED}, "
            f"or leave it out for the built-in corpus"
        )
    if path.is_file():
        if not is_readable(path) and suffix_of(path) != ".tar":
            raise DataError(f"data.path={path} is a {suffix_of(path) or 'nameless'} file; it takes {SUPPORTED}")
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


def _folder(path: Path, text_field: str) -> Corpus:
    files, found = TextFiles(path), {group: list[Path]() for group in TextFiles.groups}
    for run in scan(path, TextFiles.sorting):
        for name in run.names:
            if (group := files.group_of(path / run.directory, name)) is not None:
                found[group].append(path / run.directory / name)
    _require_text(path, len(found[TRAIN]), Counter(map(suffix_of, found[UNREAD])))
    return Corpus(tuple(found[TRAIN]), tuple(found[HELD_OUT]), text_field, tuple(found[UNREAD]))


def known_corpus(path: Path, field: str, memory: Path, *, verify: Verify = "state", progress: bool = False) -> Corpus:
    """Finds the corpus in a folder as `find_corpus` does, and what of it has changed; see `known_files`.

    Args:
        path: the folder.
        field: the key or column that contains the text, in formats with several.
        memory: a directory that remembers the files.
        verify: `full`: all files are read again.
        progress: whether to show progress bars.

    Returns:
        The corpus. Its paths are made when they are asked for, so that it takes no memory that grows with the files.

    Raises:
        DataError: as by `find_corpus`.
        CacheError: where `memory` cannot be written.
    """
    if (path / INDEX).is_file():  # a data set in a few files, which its index lists
        return find_corpus(path, field)
    listing = known_files(path, memory, TextFiles, verify, progress)
    train, held_out, unread = (listing.group(group) for group in TextFiles.groups)
    _require_text(path, len(train), listing.facts[UNREAD])
    return Corpus(train, held_out, field, unread, listing)


def require_text(path: Path) -> None:
    """Raises DataError unless a folder holds a file that can be read; lists it up to the first one alone."""
    if holds(path, is_readable):
        return
    files, others = TextFiles(path), Counter[str]()
    for run in scan(path, TextFiles.sorting):
        for name in run.names:
            group = files.group_of(path / run.directory, name)
            if group == TRAIN:
                return
            others[suffix_of(name)] += group == UNREAD
    _require_text(path, 0, others)


def _require_text(path: Path, num_files: int, others: Mapping[str, int]) -> None:
    if not num_files and not others:
        raise DataError(f"data.path={path} is empty; put {SUPPORTED} there or set data.path to another folder")
    if not num_files:
        raise DataError(
            f"data.path={path} holds no text that can be read: found {listed_counts(others)}; it takes {SUPPORTED}"
        )
