"""AgeWriter: encrypts what is written to it, in constant memory."""

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from trainkit.encryption.header import header_of
from trainkit.encryption.recipient import Recipient
from trainkit.encryption.stanza import FILE_KEY_BYTES, aead, derived

CHUNK_BYTES = 64 << 10
TAG_BYTES = 16
NONCE_BYTES = 16
_SEALED_BYTES = CHUNK_BYTES + TAG_BYTES
# Many chunks at a time: after each write, the writing thread waits for the interpreter's lock, for milliseconds.
_BLOCK_BYTES = 64 * _SEALED_BYTES
_NUM_BLOCKS = 4


class AgeWriter:
    """Encrypts a stream: what is written to it, up to `close`, can be read by each of the recipients.

    Blocks are written by a thread, in order, while the next ones are encrypted.

    Args:
        write: takes the encrypted blocks, such as the `write` of a file.
        recipients: at least one.

    Example:
        >>> import io
        >>> from trainkit.encryption import Recipient
        >>> out = io.BytesIO()
        >>> key = Recipient.parse("age1xmwwc06ly3ee5rytxm9mflaz2u56jjj36s0mypdrwsvlul66mv4q47ryef")
        >>> with AgeWriter(out.write, [key]) as file:
        ...     file.write(b"weights")
        >>> out.getvalue()[:21]
        b'age-encryption.org/v1'
    """

    def __init__(self, write: Callable[[Any], Any], recipients: Sequence[Recipient]) -> None:
        assert recipients, "a file for nobody"
        self._write = write
        file_key, nonce = secrets.token_bytes(FILE_KEY_BYTES), secrets.token_bytes(NONCE_BYTES)
        self._aead = aead(derived(file_key, salt=nonce, info=b"payload"))
        self._number = 0
        self._rest = bytearray()
        self._block, self._filled = memoryview(bytearray(_BLOCK_BYTES)), 0
        self._num_blocks = 1
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="trainkit-encrypted")
        self._writing: deque[tuple[Future[Any], memoryview]] = deque()
        write(header_of(file_key, recipients) + nonce)

    def write(self, content: Any) -> None:
        """Encrypts bytes.

        Args:
            content: bytes, or another buffer, which may be changed afterwards.

        Raises:
            OSError: of an earlier write.
        """
        view = memoryview(content).cast("B")
        # What may be the last chunk waits, since that one is marked.
        if len(self._rest) + len(view) <= CHUNK_BYTES:
            self._rest += view
            return
        start = 0
        if self._rest:
            start = CHUNK_BYTES - len(self._rest)
            self._rest += view[:start]
            self._add(self._rest, is_last=False)
            self._rest = bytearray()
        while len(view) - start > CHUNK_BYTES:
            self._add(view[start : start + CHUNK_BYTES], is_last=False)
            start += CHUNK_BYTES
        self._rest += view[start:]

    def close(self) -> None:
        """Writes the end, without which the file is not taken for whole, and waits until all is written.

        Raises:
            OSError: where something could not be written.
        """
        try:
            self._add(self._rest, is_last=True)
            self._hand_over()
            while self._writing:
                self._writing.popleft()[0].result()
        finally:
            self._executor.shutdown()

    def __enter__(self) -> "AgeWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._executor.shutdown(cancel_futures=True)

    def _add(self, plain: Any, *, is_last: bool) -> None:
        if self._filled == _BLOCK_BYTES:
            self._hand_over()
            self._block, self._filled = self._free_block(), 0
        end = self._filled + len(plain) + TAG_BYTES
        self._aead.encrypt_into(nonce_of(self._number, is_last), plain, None, self._block[self._filled : end])
        self._number, self._filled = self._number + 1, end

    def _hand_over(self) -> None:
        self._writing.append((self._executor.submit(self._write, self._block[: self._filled]), self._block))

    def _free_block(self) -> memoryview:
        if self._num_blocks < _NUM_BLOCKS:
            self._num_blocks += 1
            return memoryview(bytearray(_BLOCK_BYTES))
        written, block = self._writing.popleft()
        written.result()
        return block


def nonce_of(number: int, is_last: bool) -> bytes:
    """The nonce of a chunk: its number, and whether it is the last one, so that none can be moved or left out."""
    return number.to_bytes(11, "big") + bytes([is_last])
