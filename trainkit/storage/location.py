"""Location: a file or a folder that can be read by range, wherever it lies."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

Range = tuple[int, int]
"""Of bytes: (first, the one after the last)."""


class Location(ABC):
    """A file or a folder; picklable, and nothing is opened or asked for before it is needed."""

    @property
    @abstractmethod
    def shown(self) -> str:
        """How it is named to people: a path or a URL, without credentials."""

    @abstractmethod
    def child(self, name: str) -> "Location":
        """Returns the file or folder `name`, with / between its parts, below this folder."""

    @abstractmethod
    def is_file(self) -> bool:
        """Whether there is a file."""

    @abstractmethod
    def is_folder(self) -> bool:
        """Whether there is a folder. A store without folders has one wherever names of files begin with it."""

    @abstractmethod
    def names(self) -> list[str]:
        """Returns the files below this folder, at any depth, sorted, relative to it; hidden ones are left out."""

    def files(self) -> "dict[str, Location]":
        """Returns the files that `names` lists, by their names, with what the listing said of them."""
        return {name: self.child(name) for name in self.names()}

    @abstractmethod
    def version(self) -> str:
        """Returns what changes with the content of the file, such as an ETag; empty where the store has no such thing.

        Raises:
            StorageError: as by `size`.
        """

    @abstractmethod
    def size(self) -> int:
        """Returns the bytes of the file.

        Raises:
            StorageError: where there is no file, or the store does not answer.
        """

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Reads a range of the file.

        Args:
            start: the first byte.
            stop: the one after the last; None: the end of the file.

        Raises:
            StorageError: where there is no file, it ends before `stop`, or the store does not answer.
        """

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Reads several ranges of the file, which a store may be asked for at once.

        Raises:
            StorageError: as by `read`.
        """
        return [self.read(start, stop) for start, stop in ranges]

    def prefetch(self, ranges: Sequence[Range]) -> None:  # noqa: B027  # where there is nothing to wait for, nothing is done
        """Says which ranges will be read next, in their order; returns at once."""

    def forget(self, ranges: Sequence[Range]) -> None:  # noqa: B027  # what lies here is not kept a second time
        """Says that what was read there is damaged: the next read asks the store, and not a cache."""

    @abstractmethod
    def write(self, content: bytes) -> None:
        """Writes the file, whole or not at all, and the folders that it is in.

        Raises:
            StorageError: where it cannot be written.
        """

    @abstractmethod
    def upload(self, path: Path) -> None:
        """Copies a file of this machine here, whole or not at all, without holding it in memory.

        Args:
            path: of the file, which must not change meanwhile.

        Raises:
            StorageError: where it cannot be written.
        """

    @abstractmethod
    def download(self, path: Path) -> None:
        """Copies the file to this machine, without holding it in memory or keeping it in the cache.

        Args:
            path: of the copy, which is whole when this returns; where it fails, nothing is left there.

        Raises:
            StorageError: as by `read`, and where `path` cannot be written.
        """

    @abstractmethod
    def remove(self) -> None:
        """Removes the file; one that is not there is no error.

        Raises:
            StorageError: where it cannot be removed.
        """

    @abstractmethod
    def local_path(self) -> Path | None:
        """Returns where it lies on this machine, to be mapped into memory; None: only `read` reads it."""
