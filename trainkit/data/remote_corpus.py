"""RemoteCorpus: the text files behind a URL, of which one at a time lies on this machine while it is read."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path, PurePosixPath

import xxhash

from trainkit.data.corpus import SUPPORTED, Corpus
from trainkit.data.files import counted, suffix_of
from trainkit.data.formats.sharded import ShardedDataset
from trainkit.data.progress import announced
from trainkit.data.readers import texts_of, with_hint
from trainkit.data.remote_files import RemoteFiles, is_readable_name
from trainkit.errors import DataError
from trainkit.storage import Location, copying, locate

_AHEAD_BYTES = 1 << 24  # of the next file, while one is read


@dataclass(frozen=True)
class RemoteCorpus(Corpus):
    """Files of text behind a URL, in the order of their names.

    Args:
        locations: of the files of `held_out` and `train`, by their names, in the order in which they are read.
        shards: of those files that are shards of other tools, the data set and the number of the shard there.
        cache_dir: where the file that is being read lies; see `copying`.
    """

    locations: Mapping[str, Location] = field(default_factory=dict)
    shards: Mapping[str, tuple[ShardedDataset, int]] = field(default_factory=dict)
    cache_dir: Path | None = None

    def named(self) -> Iterator[tuple[bool, str, str]]:
        """Reads the documents that are not blank; see `Corpus.named`."""
        names, held_out = [*self.locations], {str(path) for path in self.held_out}
        with copying(self.cache_dir) as copy:
            for name, following in zip_longest(names, names[1:]):
                texts = self._of_shard(name) if name in self.shards else self._of_file(name, following, copy)
                for number, text in enumerate(texts, start=1):
                    if text and not text.isspace():
                        yield name in held_out, f"{PurePosixPath(name).name}, document {number}", text

    def _of_shard(self, name: str) -> Iterator[str]:
        dataset, number = self.shards[name]
        return dataset.documents(number, self.field)

    def _of_file(self, name: str, following: str | None, copy: Callable[[Location], Path]) -> Iterator[str]:
        location = self.locations[name]
        path = copy(location)
        if following is not None and following not in self.shards:
            self.locations[following].prefetch([(0, _AHEAD_BYTES)])

        def named(error: DataError) -> DataError:  # it names the copy
            return type(error)(str(error).replace(str(path), location.shown))

        skip = self.skip
        try:
            yield from texts_of(path, self.field, None if skip is None else lambda error: skip(named(error)))
        except DataError as error:
            raise with_hint(named(error)) from error

    @property
    def num_bytes(self) -> int:
        """The size of the files."""
        return sum(location.size() for location in self.locations.values())

    def fingerprint(self, memory: Path, progress: bool = False, verify: str = "state") -> str:
        """Hashes what the store says of the files: their sizes and versions, such as ETags; their names do not matter.

        The content of a file is read where the store knows no version of it.

        Args:
            memory: not used: nothing is read that would have to be remembered.
            progress: whether to say what takes long.
            verify: not used.

        Returns:
            Hexadecimal digits.
        """
        whole = hashlib.blake2b(f"{self.field} remote {len(self.held_out)}".encode(), digest_size=16)
        with announced("comparing text", progress):
            for name, location in self.locations.items():
                version = location.version() or _digest(location)
                whole.update(f"{suffix_of(name)} {location.size()} {version}\n".encode())
        return whole.hexdigest()


def find_remote_corpus(url: str, text_field: str, cache_dir: Path | None = None) -> RemoteCorpus:
    """Finds the corpus behind a URL; lists a folder, and reads nothing but the indices of shards.

    Args:
        url: of a file of a format in `readers`, of shards of another tool, or of a folder with any of these, at any
            depth.
        text_field: the key or column that contains the text, in formats with several.
        cache_dir: where the file that is being read lies.

    Returns:
        The corpus. Files without a suffix are not read.

    Raises:
        DataError: where nothing can be read there; the message names the key data.path.
    """
    location = _located(url)
    name = PurePosixPath(url).name
    found = RemoteFiles(text_field, cache_dir)
    if location.is_file():
        if suffix_of(url) == ".tar":
            found.add_tar(_located(url.rpartition("/")[0]), name)
        elif not is_readable_name(url):
            raise DataError(f"data.path={url} is a {suffix_of(url) or 'nameless'} file; it takes {SUPPORTED}")
        else:
            found.train[name] = location
    elif not location.is_folder():
        raise DataError(f"data.path={url} does not exist; set data.path to a folder of {SUPPORTED}")
    else:
        found.add_folder(location)
    if not found.train:
        unread = found.unread
        what = f"found {counted(unread)}; it takes {SUPPORTED}" if unread else f"it is empty; put {SUPPORTED} there"
        raise DataError(f"data.path={url} holds no text that can be read: {what}")
    return RemoteCorpus(
        tuple(map(Path, found.train)),
        tuple(map(Path, found.held_out)),
        text_field,
        unread=tuple(map(Path, found.unread)),
        locations={**found.held_out, **found.train},
        shards=found.shards,
        cache_dir=cache_dir,
    )


def require_found(url: str) -> None:
    """Checks that there is a file or a folder behind a URL; lists nothing.

    Raises:
        DataError: where there is none, or the store does not answer; the message names the key data.path.
    """
    location = _located(url)
    if not location.is_file() and not location.is_folder():
        raise DataError(f"data.path={url} does not exist; check its name, and what reads it lists")


def _located(url: str) -> Location:
    try:
        return locate(url)
    except DataError as error:
        raise type(error)(f"data.path={error}") from error


def _digest(location: Location) -> str:
    whole, size = xxhash.xxh3_128(), location.size()
    for start in range(0, size, _AHEAD_BYTES):
        whole.update(location.read(start, min(start + _AHEAD_BYTES, size)))
    return whole.hexdigest()
