"""Location: a file or a folder that can be read by range, wherever it lies."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from trainkit.errors import StorageError

Range = tuple[int, int]
"""Of bytes: (first, the one after the last)."""

CHECKED_BYTES = 1 << 16
Check = Callable[[int, bytes], None]
"""Called with a multiple of CHECKED_BYTES and the bytes from there to another one, or to the end of the file; raises
StorageError where they are not what they should be."""


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

    def read_ranges(self, ranges: Sequence[Range], check: Check | None = None) -> list[bytes]:
        """Reads several ranges of the file, which a store may be asked for at once.

        Args:
            ranges: of the file.
            check: of what comes from a store; what is kept on this machine was checked when it came.

        Raises:
            StorageError: as by `read`, and what `check` raises.
        """
        if check is None:
            return [self.read(start, stop) for start, stop in ranges]
        return [self._checked(start, stop, check) for start, stop in ranges]

    def _checked(self, start: int, stop: int, check: Check) -> bytes:
        first = start // CHECKED_BYTES * CHECKED_BYTES
        last = min(-(-stop // CHECKED_BYTES) * CHECKED_BYTES, self.size())
        content = self.read(first, last)
        if len(content) != last - first:
            raise StorageError(
                f"{self.shown}: asked for {last - first:,} bytes from {first:,} on, the store gave {len(content):,}: "
                f"copy the file there again, or use a store that answers ranges"
            )
        check(first, content)
        return content[start - first : stop - first]

    def prefetch(self, ranges: Sequence[Range], check: Callable[[], Check] | None = None) -> int:
        """Says which ranges will be read next, in their order; returns at once.

        Args:
            ranges: of the file.
            check: returns that of `read_ranges`; called in another thread, it may read what it needs.

        Returns:
            Bytes that are still to come, for all files of this process: 0 where there is nothing to wait for.
        """
        return 0

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
