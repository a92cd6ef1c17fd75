"""AgeReader: reads ranges of an encrypted file, each byte verified, straight into the memory that is to hold them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainkit.encryption.header import NoKeyError, read_file_key
from trainkit.encryption.identity import Identity
from trainkit.encryption.stanza import aead, derived, require_cryptography
from trainkit.encryption.writer import CHUNK_BYTES, NONCE_BYTES, TAG_BYTES, nonce_of
from trainkit.errors import CheckpointError

_SEALED_BYTES = CHUNK_BYTES + TAG_BYTES
_BATCH = 16  # chunks that are read from disk at a time


class AgeReader:
    """Opens an encrypted file, and verifies its header and its end.

    Nothing is returned that was not verified. No decrypted byte is written anywhere but to the memory that is given.

    Args:
        path: the file.
        identities: of which one must be of a recipient.

    Raises:
        CheckpointError: none of them is, or the file was changed, cut off or appended to.
    """

    def __init__(self, path: Path, identities: Sequence[Identity]) -> None:
        require_cryptography()
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._open(identities)
        except BaseException:
            self._file.close()
            raise

    def _open(self, identities: Sequence[Identity]) -> None:
        try:
            file_key = read_file_key(self._file, identities)
        except NoKeyError:
            given = ", ".join(identity.recipient.text for identity in identities)
            raise CheckpointError(
                f"{self.path} is encrypted for other keys than {given}: give the file of another secret key, "
                f"checkpoint.identity=FILE"
                if identities
                else f"{self.path} is encrypted: give the file of a secret key, checkpoint.identity=FILE"
            ) from None
        except ValueError as error:
            raise CheckpointError(f"{self.path} cannot be decrypted: {error}") from None
        except OSError as error:
            raise self._unreadable(error) from error
        nonce = self._file.read(NONCE_BYTES)
        self._start = self._file.tell()
        sealed = self.path.stat().st_size - self._start
        if sealed < TAG_BYTES:
            raise CheckpointError(f"{self.path} is cut off: it has no contents")
        self._num_chunks = max(1, -(-sealed // _SEALED_BYTES))
        self._aead = aead(derived(file_key, salt=nonce, info=b"payload"))
        self.num_bytes = sealed - TAG_BYTES * self._num_chunks
        """Bytes of its contents."""
        self._kept: tuple[int, bytes] = (-1, b"")
        self._buffer = memoryview(bytearray(_BATCH * _SEALED_BYTES))
        last = self._num_chunks - 1
        # A chunk that is only a tag would hide that the one before it is not marked as the last.
        if self.num_bytes <= last * CHUNK_BYTES and last:
            raise self._end_is_wrong()
        self._chunk(last)

    def read(self, start: int, num_bytes: int) -> bytearray:
        """Reads a range.

        Args:
            start: its first byte.
            num_bytes: its length, which must lie in the file.

        Raises:
            CheckpointError: the file was changed.
        """
        found = bytearray(num_bytes)
        self.read_into(start, found)
        return found

    def read_into(self, start: int, target: Any) -> None:
        """Fills a buffer with a range.

        Args:
            start: its first byte.
            target: a writable buffer; where an error is raised its contents mean nothing.

        Raises:
            CheckpointError: the file was changed, or ends before.
        """
        view = memoryview(target).cast("B")
        end = start + len(view)
        if not 0 <= start <= end <= self.num_bytes:
            raise CheckpointError(f"{self.path} ends at byte {self.num_bytes}, before {end}")
        done = 0
        while done < len(view):
            number, offset = divmod(start + done, CHUNK_BYTES)
            num_whole = (len(view) - done) // CHUNK_BYTES if offset == 0 else 0
            if num_whole:
                num_whole = min(num_whole, _BATCH)
                self._whole_chunks(number, num_whole, view[done:])
                done += num_whole * CHUNK_BYTES
            else:
                piece = self._chunk(number)[offset : offset + len(view) - done]
                view[done : done + len(piece)] = piece
                done += len(piece)

    def authenticate(self) -> None:
        """Verifies every byte.

        Raises:
            CheckpointError: naming the first chunk that was changed.
        """
        scratch = memoryview(bytearray(_BATCH * CHUNK_BYTES))
        for start in range(0, self.num_bytes, len(scratch)):
            self.read_into(start, scratch[: min(len(scratch), self.num_bytes - start)])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "AgeReader":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _chunk(self, number: int) -> bytes:
        """A chunk, the last one of which is kept: small tensors lie side by side."""
        if self._kept[0] != number:
            sealed = self._sealed(number, 1)
            self._kept = number, self._opened(number, lambda nonce: self._aead.decrypt(nonce, sealed, None))
        return self._kept[1]

    def _whole_chunks(self, first: int, num: int, target: memoryview) -> None:
        sealed = self._sealed(first, num)
        for i in range(num):
            piece = sealed[i * _SEALED_BYTES : (i + 1) * _SEALED_BYTES]
            into = target[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]

            def decrypt(nonce: bytes, piece: memoryview = piece, into: memoryview = into) -> int:
                written: int = self._aead.decrypt_into(nonce, piece, None, into)
                return written

            self._opened(first + i, decrypt)

    def _opened(self, number: int, decrypt: Any) -> Any:
        from cryptography.exceptions import InvalidTag

        is_last = number == self._num_chunks - 1
        try:
            return decrypt(nonce_of(number, is_last))
        except (InvalidTag, ValueError):  # the latter where less than a tag is left
            if is_last:
                raise self._end_is_wrong() from None
            raise CheckpointError(
                f"{self.path} was changed: chunk {number + 1} of {self._num_chunks} is damaged, or not in its place"
            ) from None

    def _sealed(self, first: int, num: int) -> memoryview:
        try:
            self._file.seek(self._start + first * _SEALED_BYTES)
            num_read = self._file.readinto(self._buffer[: num * _SEALED_BYTES])
        except OSError as error:
            raise self._unreadable(error) from error
        return self._buffer[:num_read]

    def _end_is_wrong(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path} was changed: its end was cut off, damaged or appended to, or it has another file's header"
        )

    def _unreadable(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self.path} cannot be read: {error.strerror or error}")
