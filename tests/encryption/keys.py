"""Keys that live as long as a test."""

from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from trainkit.encryption import Identity, bech32


@dataclass(frozen=True)
class Key:
    """A key file, and its public key."""

    file: Path
    recipient: str

    @property
    def identities(self) -> list[Identity]:
        return Identity.read(self.file)


def age_key(directory: Path, name: str = "age") -> Key:
    import secrets

    file = directory / f"{name}.txt"
    file.write_text(f"# a comment\n\n{bech32.encode('age-secret-key-', secrets.token_bytes(32)).upper()}\n")
    return Key(file, Identity.read(file)[0].recipient.text)


def ssh_key(directory: Path, name: str = "id_ed25519") -> Key:
    key, file = Ed25519PrivateKey.generate(), directory / name
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return Key(file, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
