"""Encryption: files in the format age v1 (https://age-encryption.org/v1), written and read as a stream or by ranges."""

from typing import TYPE_CHECKING

from trainkit.encryption.encryption import Encryption, recipients_of
from trainkit.encryption.identity import (
    IDENTITY_VARIABLE,
    Identity,
    hide_identity,
    identities_in_use,
    use_identity,
    use_identity_of,
    without_identity,
)
from trainkit.encryption.recipient import Recipient
from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.encryption.files import encrypt_files, plain_in_memory, room_in_memory
    from trainkit.encryption.reader import AgeReader
    from trainkit.encryption.writer import AgeWriter

__all__ = [
    "IDENTITY_VARIABLE",
    "AgeReader",
    "AgeWriter",
    "Encryption",
    "Identity",
    "Recipient",
    "encrypt_files",
    "hide_identity",
    "identities_in_use",
    "plain_in_memory",
    "recipients_of",
    "room_in_memory",
    "use_identity",
    "use_identity_of",
    "without_identity",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    # Most runs encrypt nothing, and cryptography is an extra.
    __getattr__, __dir__ = exports(
        __name__,
        {
            "AgeReader": "trainkit.encryption.reader",
            "AgeWriter": "trainkit.encryption.writer",
            **dict.fromkeys(("encrypt_files", "plain_in_memory", "room_in_memory"), "trainkit.encryption.files"),
        },
    )
