"""Seekable: a location as an open file, for libraries that take one."""

import io

from typing_extensions import Buffer

from trainkit.storage.location import Location

_AHEAD_BYTES = 1 << 22


class Seekable(io.RawIOBase):
    """A file of any location, opened for reading; wrap it into io.BufferedReader.

    Args:
        location: of the file.
    """

    def __init__(self, location: Location) -> None:
        super().__init__()
        self._location, self._size, self._at = location, location.size(), 0
        self._block = -1

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the place that is read next."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"{self._location.shown}: byte {base + offset} does not exist")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Returns the place that is read next."""
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        """Reads into a buffer; returns the number of bytes, 0 at the end."""
        into = memoryview(buffer).cast("B")
        num_bytes = max(min(len(into), self._size - self._at), 0)
        if num_bytes:
            if self._at // _AHEAD_BYTES != self._block:
                self._block = self._at // _AHEAD_BYTES
                self._location.prefetch([(self._at, min(self._at + 2 * _AHEAD_BYTES, self._size))])
            into[:num_bytes] = self._location.read(self._at, self._at + num_bytes)
            self._at += num_bytes
        return num_bytes
