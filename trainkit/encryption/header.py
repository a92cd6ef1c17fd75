"""Header: the wrapped keys at the beginning of an encrypted file, and the code that shows that none was changed."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from trainkit.encryption.identity import Identity
from trainkit.encryption.recipient import Recipient
from trainkit.encryption.stanza import Stanza, derived, from_base64, to_base64

VERSION = "age-encryption.org/v1"
MAX_HEADER_BYTES = 1 << 20
_MAC = "---"


class NoKeyError(ValueError):
    """None of the identities can read the file."""


def header_of(file_key: bytes, recipients: Iterable[Recipient]) -> bytes:
    """The header of a file.

    Args:
        file_key: 16 bytes.
        recipients: at least one.
    """
    stanzas = "".join(recipient.wrap(file_key).lines() for recipient in recipients)
    covered = f"{VERSION}\n{stanzas}{_MAC}".encode()
    return covered + f" {to_base64(_code(file_key, covered))}\n".encode()


def read_file_key(file: BinaryIO, identities: Sequence[Identity]) -> bytes:
    """The key of a file, which is read up to the end of its header.

    Args:
        file: at its beginning.
        identities: of which one must be of a recipient.

    Raises:
        NoKeyError: none of them is.
        ValueError: the file is not in this format, or its header was changed.
    """
    stanzas, covered, code = _parsed(file)
    keys = (identity.unwrap(stanza) for identity in identities for stanza in stanzas)
    file_key = next((key for key in keys if key is not None), None)
    if file_key is None:
        raise NoKeyError
    if not hmac.compare_digest(_code(file_key, covered), code):
        raise ValueError("its header was changed")
    return file_key


def _code(file_key: bytes, covered: bytes) -> bytes:
    return hmac.digest(derived(file_key, salt=b"", info=b"header"), covered, hashlib.sha256)


def _parsed(file: BinaryIO) -> tuple[list[Stanza], bytes, bytes]:
    """The stanzas, the bytes that the code at the end covers, and the code."""
    covered = b""

    def line() -> str:
        nonlocal covered
        found = file.readline(MAX_HEADER_BYTES - len(covered))
        if not found.endswith(b"\n"):
            raise ValueError("its header is cut off, or larger than 1 MiB")
        covered += found
        return found[:-1].decode("ascii")

    try:
        if line() != VERSION:
            raise ValueError("it is not encrypted with age")
        stanzas = []
        while not (text := line()).startswith(_MAC):
            mark, kind, *arguments = text.split(" ")
            if mark != "->" or not kind:
                raise ValueError("its header is damaged")
            body = ""
            while len(row := line()) == 64:
                body += row
            stanzas.append(Stanza(kind, tuple(arguments), from_base64(body + row)))
        mark, code = text.split(" ")
        return stanzas, covered[: covered.rindex(b" ")], from_base64(code)
    except UnicodeDecodeError:
        raise ValueError("it is not encrypted with age") from None
    except ValueError as error:
        is_ours = str(error).startswith("it")
        raise ValueError(str(error) if is_ours else "its header is damaged") from None
