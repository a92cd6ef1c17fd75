"""RemoteCorpus: the text files behind a URL, of which one at a time lies on this machine while it is read."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from trainkit.data.corpus import SUPPORTED, Corpus
from trainkit.data.files import counted, suffix_of
from trainkit.data.progress import announced
from trainkit.data.readers import reader_of
from trainkit.errors import DataError
from trainkit.storage import Location, copying, locate

_AHEAD_BYTES = 1 << 24  # of the next file, while one is read
_NOT_READ = (".py", ".arrow", "")


@dataclass(frozen=True)
class RemoteCorpus(Corpus):
    """Files of text behind a URL, in the order of their names.

    Args:
        locations: of the files of `train`, by their names.
        cache_dir: where the file that is being read lies; see `copying`.
    """

    locations: Mapping[str, Location] = field(default_factory=dict)
    cache_dir: Path | None = None

    def named(self) -> Iterator[tuple[bool, str, str]]:
        """Reads the documents that are not blank; see `Corpus.named`."""
        following = [*self.locations.values()][1:]
        with copying(self.cache_dir) as copy:
            for number_of_file, (name, location) in enumerate(self.locations.items()):
                path = copy(location)
                if number_of_file < len(following):
                    following[number_of_file].prefetch([(0, _AHEAD_BYTES)])
                read = reader_of(path)
                assert read is not None, f"{name} was found to be readable"
                try:
                    for number, text in enumerate(read(path, self.field), start=1):
                        if text and not text.isspace():
                            yield False, f"{PurePosixPath(name).name}, document {number}", text
                except DataError as error:  # it names the copy
                    raise type(error)(str(error).replace(str(path), location.shown)) from error

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
        whole = hashlib.blake2b(f"{self.field} remote".encode(), digest_size=16)
        with announced("comparing text", progress):
            for name, location in self.locations.items():
                version = location.version() or _digest(location)
                whole.update(f"{suffix_of(name)} {location.size()} {version}\n".encode())
        return whole.hexdigest()


def find_remote_corpus(url: str, text_field: str, cache_dir: Path | None = None) -> RemoteCorpus:
    """Finds the corpus behind a URL; lists a folder, and reads nothing.

    Args:
        url: of a file of a format in `readers`, or of a folder of such files, at any depth.
        text_field: the key or column that contains the text, in formats with several.
        cache_dir: where the file that is being read lies.

    Returns:
        The corpus. Files without a suffix are not read.

    Raises:
        DataError: where nothing can be read there; the message names the key data.path.
    """
    location = _located(url)
    if location.is_file():
        if not _is_readable(url):
            raise DataError(f"data.path={url} is a {suffix_of(url) or 'nameless'} file; it takes {SUPPORTED}")
        name = PurePosixPath(url).name
        return RemoteCorpus((Path(name),), field=text_field, locations={name: location}, cache_dir=cache_dir)
    if not location.is_folder():
        raise DataError(f"data.path={url} does not exist; set data.path to a folder of {SUPPORTED}")
    found = location.files()
    locations = {name: file for name, file in found.items() if _is_readable(name)}
    unread = [name for name in found if name not in locations]
    if not locations:
        what = f"found {counted(unread)}; it takes {SUPPORTED}" if unread else f"it is empty; put {SUPPORTED} there"
        raise DataError(f"data.path={url} holds no text that can be read: {what}")
    settings: dict[str, Any] = {"unread": tuple(map(Path, unread)), "cache_dir": cache_dir}
    return RemoteCorpus(tuple(map(Path, locations)), field=text_field, locations=locations, **settings)


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


def _is_readable(name: str) -> bool:
    return suffix_of(name) not in _NOT_READ and reader_of(Path(PurePosixPath(name).name)) is not None


def _digest(location: Location) -> str:
    whole, size = xxhash.xxh3_128(), location.size()
    for start in range(0, size, _AHEAD_BYTES):
        whole.update(location.read(start, min(start + _AHEAD_BYTES, size)))
    return whole.hexdigest()
