"""Store: what answers requests for files behind URLs, and the ways in which it may not."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from trainkit.errors import StorageError


@dataclass(frozen=True)
class Info:
    """What a store says of a file.

    Args:
        size: in bytes.
        version: of its content, such as an ETag; empty where the store has none.
    """

    size: int
    version: str = ""


class PassingError(Exception):
    """A request that may succeed when it is made again.

    Args:
        reason: for people.
        wait_s: seconds that the store asks to wait.
        progress_s: of time.monotonic, when a part of a large file had come last; 0: none had.
    """

    def __init__(self, reason: str, wait_s: float = 0.0, progress_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s, self.progress_s = wait_s, progress_s


class Store(ABC):
    """The files behind URLs of one kind. Makes each request once; `persist` makes it again.

    Methods raise FileNotFoundError where there is no file, PassingError where another attempt may succeed, and
    StorageError where none would.
    """

    @abstractmethod
    def info(self, url: str) -> Info:
        """Asks for the size and the version of a file."""

    @abstractmethod
    def is_folder(self, url: str) -> bool:
        """Asks whether there is a folder, or any file whose name begins as one in it would."""

    @abstractmethod
    def files(self, url: str) -> dict[str, Info | None]:
        """Lists the files below a folder, by their names relative to it; None: to be asked for."""

    @abstractmethod
    def fetch(self, url: str, start: int, stop: int, info: Info, timeout_s: float) -> bytes:
        """Reads a range that is not empty; what it returns may have another length.

        Args:
            url: of the file.
            start: the first byte.
            stop: the one after the last.
            info: of the file as it is to be read.
            timeout_s: seconds that it may take.
        """

    @abstractmethod
    def put(self, url: str, content: bytes) -> None:
        """Writes a file, whole or not at all."""

    @abstractmethod
    def put_file(self, url: str, path: Path) -> None:
        """Writes what a file of this machine holds, whole or not at all, in parts where it is large."""

    @abstractmethod
    def remove(self, url: str) -> None:
        """Removes a file; one that is not there is no error."""


def changed(shown: str) -> NoReturn:
    """Raises the error for a file that is not the one that `info` was of."""
    raise StorageError(f"{shown} has changed while it was being read: start again")


def reason_of(error: BaseException) -> str:
    """Returns the reason for an error of a library in one line without URLs, which may hold signatures."""
    words = [word for word in str(error).split() if "://" not in word]
    return " ".join(words)[:300] or type(error).__name__


def size_of(path: Path) -> int:
    """Returns the bytes of a file of this machine that is to be sent.

    Raises:
        StorageError: where it cannot be read, which is not the store's fault.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def blocks_of(path: Path, num_bytes: int, block_bytes: int) -> Iterator[bytes]:
    """Reads a file of this machine, block by block.

    Raises:
        StorageError: where it cannot be read, or its size is not `num_bytes`.
    """
    read = 0
    try:
        with path.open("rb") as file:
            while block := file.read(block_bytes):
                read += len(block)
                yield block
    except OSError as error:
        raise _unreadable(path, error) from error
    if read != num_bytes:
        raise StorageError(f"{path} has changed while it was being copied: type the same command again")


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be read: {error.strerror or error}")
