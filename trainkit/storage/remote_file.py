"""File: a file of a store at one time, and the names of its pieces."""

import hashlib
from dataclasses import dataclass, field

from trainkit.errors import StorageError
from trainkit.storage.location import Range
from trainkit.storage.piece_file import PIECE_BYTES
from trainkit.storage.store import Info

_MOST_KEYS = 1 << 10
"""Names of pieces that are kept of a file, because they take longer to make than a piece to read."""


@dataclass(frozen=True)
class File:
    """A file as a store has it at one time.

    Args:
        url: with no credentials in it.
        info: its size and version.
        is_checked: whether its pieces were checked by more than their length when they came: they are kept apart.
    """

    url: str
    info: Info
    is_checked: bool = False
    _keys: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    def key(self, number: int) -> str:
        """Names a piece: of another version of the file it is another."""
        found = self._keys.get(number)
        if found is None:
            if len(self._keys) >= _MOST_KEYS:
                self._keys.clear()
            version = f"{self.info.version}\n{'checked' if self.is_checked else ''}"
            text = f"{self.url}\n{self.info.size}\n{version}\n{PIECE_BYTES}\n{number}"
            found = self._keys[number] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return found

    def pieces(self, start: int, stop: int) -> range:
        """Returns the numbers of the pieces that a range is in."""
        return range(start // PIECE_BYTES, -(-stop // PIECE_BYTES)) if stop > start else range(0)

    def bounds(self, number: int) -> Range:
        """Returns the range that a piece is."""
        return number * PIECE_BYTES, min((number + 1) * PIECE_BYTES, self.info.size)


def require_within(file: File, start: int, stop: int) -> None:
    """Checks a range.

    Raises:
        StorageError: where the file ends before.
    """
    if not 0 <= start <= stop:
        raise ValueError(f"bytes {start} to {stop} are no range")
    if stop > file.info.size:
        raise StorageError(f"{file.url} ends at byte {file.info.size:,}, before {stop:,}: copy it there again")
