"""Stanza: the key of a file, wrapped for one recipient (age v1, "Recipient stanza")."""

import base64
import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

Kind = Literal["X25519", "ssh-ed25519"]
FILE_KEY_BYTES = 16
_COLUMNS = 64
_PRIME = 2**255 - 19


@dataclass(frozen=True)
class Stanza:
    """The lines of a header that hold a wrapped key."""

    kind: str
    arguments: tuple[str, ...]
    body: bytes

    def lines(self) -> str:
        """The stanza as it is written."""
        body = to_base64(self.body)
        rows = [body[i : i + _COLUMNS] for i in range(0, len(body) + 1, _COLUMNS)]  # the last one is shorter, or empty
        return "\n".join([" ".join(["->", self.kind, *self.arguments]), *rows]) + "\n"


def wrapped(kind: Kind, public: bytes, wire: bytes, file_key: bytes) -> Stanza:
    """Wraps a file's key.

    Args:
        kind: of the recipient.
        public: its X25519 key.
        wire: an SSH key as it is sent; empty for X25519.
        file_key: 16 bytes.
    """
    ephemeral = secrets.token_bytes(32)
    share = public_of(ephemeral)
    key = _wrapping_key(kind, _shared(kind, ephemeral, public, wire), share, public)
    head = (tag_of(wire),) if kind == "ssh-ed25519" else ()
    return Stanza(kind, (*head, to_base64(share)), aead(key).encrypt(bytes(12), file_key, None))


def unwrapped(kind: Kind, secret: bytes, public: bytes, wire: bytes, stanza: Stanza) -> bytes | None:
    """The file's key; None where the stanza is of another recipient.

    Args:
        kind: of the identity.
        secret: its X25519 key.
        public: that of its recipient.
        wire: as for `wrapped`.
        stanza: of a header.
    """
    from cryptography.exceptions import InvalidTag

    head = (tag_of(wire),) if kind == "ssh-ed25519" else ()
    if stanza.kind != kind or stanza.arguments[:-1] != head or len(stanza.body) != FILE_KEY_BYTES + 16:
        return None
    try:
        share = from_base64(stanza.arguments[-1])
        key = _wrapping_key(kind, _shared(kind, secret, share, wire), share, public)
        return aead(key).decrypt(bytes(12), stanza.body, None)
    except (ValueError, InvalidTag):
        return None


def tag_of(wire: bytes) -> str:
    """The four bytes by which a stanza names an SSH key."""
    return to_base64(hashlib.sha256(wire).digest()[:4])


def montgomery(edwards: bytes) -> bytes:
    """The X25519 key that belongs to an Ed25519 key.

    Args:
        edwards: 32 bytes.

    Raises:
        ValueError: it is not a key.
    """
    y = int.from_bytes(edwards, "little") & (1 << 255) - 1
    return ((1 + y) * pow(1 - y, -1, _PRIME) % _PRIME).to_bytes(32, "little")


def _shared(kind: Kind, secret: bytes, public: bytes, wire: bytes) -> bytes:
    shared = _exchange(secret, public)
    if kind == "ssh-ed25519":
        shared = _exchange(derived(b"", salt=wire, info=b"age-encryption.org/v1/ssh-ed25519"), shared)
    return shared


def _wrapping_key(kind: Kind, shared: bytes, share: bytes, public: bytes) -> bytes:
    return derived(shared, salt=share + public, info=f"age-encryption.org/v1/{kind}".encode())


# -- cryptography ------------------------------------------------------------------------------------------------------


def require_cryptography() -> None:
    """Raises ConfigError where the package that encrypts is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError("encrypted files need cryptography: pip install 'trainkit[encryption]'") from error


def aead(key: bytes) -> "ChaCha20Poly1305":
    """ChaCha20-Poly1305 with this key."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key)


def derived(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    """A key made of another (HKDF with SHA-256), for one purpose."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, salt, info).derive(key)


def public_of(secret: bytes) -> bytes:
    """The public key of an X25519 key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _exchange(secret: bytes, public: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    # It raises ValueError for a public key of low order, whose result an attacker would know.
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))


def to_base64(content: bytes) -> str:
    """Base64 without padding."""
    return base64.b64encode(content).decode().rstrip("=")


def from_base64(text: str) -> bytes:
    """The bytes of base64 without padding. Raises ValueError for text that `to_base64` would not write."""
    content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if to_base64(content) != text:
        raise ValueError("not canonical base64")
    return content
