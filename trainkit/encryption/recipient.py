"""Recipient: a public key, for which files are encrypted."""

from dataclasses import dataclass, field

from trainkit.encryption import bech32
from trainkit.encryption.stanza import Kind, Stanza, montgomery, require_cryptography, wrapped

ALLOWED = "a recipient of age (age1..., by age-keygen) or an SSH key (ssh-ed25519 AAAA...)"


@dataclass(frozen=True)
class Recipient:
    """A public key: what it encrypts is read by the identity that belongs to it, and by nothing else.

    Args:
        text: the key as it is written, without a comment.
        kind: of the key.
        public: its X25519 form.
        wire: an SSH key as it is sent.
    """

    text: str
    kind: Kind = field(repr=False)
    public: bytes = field(repr=False)
    wire: bytes = field(default=b"", repr=False)

    @classmethod
    def parse(cls, text: str) -> "Recipient":
        """Reads a key; the comment of an SSH key is left out.

        Args:
            text: `age1...` or `ssh-ed25519 AAAA... comment`.

        Raises:
            ValueError: what is wrong. A secret key, given by mistake, is not repeated.
            ConfigError: the package that encrypts is missing.
        """
        words = text.split()
        if text.upper().lstrip().startswith("AGE-SECRET-KEY-"):
            raise ValueError("that is a secret key, which is for checkpoint.identity, in a file; give its age1...")
        if len(words) == 1 and words[0].startswith("age1"):
            return cls._of_age(words[0])
        if len(words) >= 2 and words[0] == "ssh-ed25519":
            return cls.of_ssh(f"{words[0]} {words[1]}")
        raise ValueError(f"{text[:40]!r} must be {ALLOWED}")

    @classmethod
    def _of_age(cls, text: str) -> "Recipient":
        try:
            prefix, public = bech32.decode(text)
        except ValueError as error:
            raise ValueError(f"{text[:80]!r} is no recipient of age: {error}") from None
        if prefix != "age" or len(public) != 32:
            raise ValueError(f"{text[:80]!r} is a recipient of another kind: must be {ALLOWED}")
        require_cryptography()
        return cls(text, "X25519", public)

    @classmethod
    def of_ssh(cls, text: str) -> "Recipient":
        """Reads `ssh-ed25519 AAAA...`. Raises ValueError where it is none."""
        require_cryptography()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key

        try:
            key = load_ssh_public_key(text.encode())
            if not isinstance(key, Ed25519PublicKey):
                raise ValueError
            edwards = key.public_bytes_raw()
            public = montgomery(edwards)
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError(f"{text[:80]!r} is no ssh-ed25519 key") from None
        wire = b"".join(len(part).to_bytes(4, "big") + part for part in (b"ssh-ed25519", edwards))
        return cls(text, "ssh-ed25519", public, wire)

    def wrap(self, file_key: bytes) -> Stanza:
        """Wraps the key of a file for this recipient."""
        return wrapped(self.kind, self.public, self.wire, file_key)
