"""Identity: the secret key that reads what was encrypted for its recipient. It comes from a file, and stays in memory.

The file holds for the process, and for those that it starts: its path is in an environment variable, the key is not.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit.encryption import bech32
from trainkit.encryption.recipient import Recipient
from trainkit.encryption.stanza import Stanza, public_of, require_cryptography, unwrapped
from trainkit.errors import ConfigError

IDENTITY_VARIABLE = "TRAINKIT_IDENTITY"
_HIDDEN = "checkpoint.identity=FILE"
_MAX_FILE_BYTES = 1 << 20
_ALLOWED = "a key file of age (by age-keygen), or a private ssh-ed25519 key without a passphrase"


class Identity:
    """A secret key. What is printed of it is its recipient.

    Args:
        secret: an X25519 key, 32 bytes.
        recipient: what belongs to it.
    """

    __slots__ = ("_secret", "recipient")

    def __init__(self, secret: bytes, recipient: Recipient) -> None:
        self._secret, self.recipient = secret, recipient

    def __repr__(self) -> str:
        return f"Identity(of {self.recipient.text})"

    def __reduce__(self) -> Any:
        raise TypeError("an identity is not copied to other processes or files: give them the path of its file")

    @classmethod
    def read(cls, path: str | Path) -> list["Identity"]:
        """Reads the secret keys of a file.

        Args:
            path: a key file of age, with a key in a line and comments, or an SSH key.

        Raises:
            ConfigError: there is no such file, or it holds something else; nothing of its contents is repeated.
        """
        if str(path).upper().lstrip().startswith("AGE-SECRET-KEY-"):
            raise ConfigError(
                "checkpoint.identity: must be the path of a file with the key, and not the key: commands are seen by "
                "other users and kept in histories"
            )
        path = Path(path).expanduser()
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                f"checkpoint.identity={path}: cannot be read: {error.strerror or error}; give {_ALLOWED}"
            ) from None
        require_cryptography()
        try:
            if len(content) > _MAX_FILE_BYTES:
                raise ValueError("is too large")
            found = cls._of_ssh(content) if b"BEGIN OPENSSH PRIVATE KEY" in content else cls._of_age(content)
        except ValueError as error:
            raise ConfigError(f"checkpoint.identity={path}: {error}: must be {_ALLOWED}") from None
        return found

    @classmethod
    def _of_age(cls, content: bytes) -> list["Identity"]:
        found = []
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            try:
                prefix, secret = bech32.decode(text)
            except ValueError:
                raise ValueError(f"line {number} is no secret key") from None
            if prefix != "age-secret-key-" or len(secret) != 32:
                raise ValueError(f"line {number} is no secret key of the kind that is known")
            found.append(cls(secret, Recipient.parse(bech32.encode("age", public_of(secret)))))
        if not found:
            raise ValueError("holds no key")
        return found

    @classmethod
    def _of_ssh(cls, content: bytes) -> list["Identity"]:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

        try:
            key = load_ssh_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # the middle one for a passphrase
            raise ValueError("has a passphrase, or is damaged") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("is an SSH key of another kind")
        recipient = Recipient.of_ssh(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
        return [cls(hashlib.sha512(key.private_bytes_raw()).digest()[:32], recipient)]

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """The key of a file; None where the stanza is of another recipient."""
        return unwrapped(self.recipient.kind, self._secret, self.recipient.public, self.recipient.wire, stanza)


def use_identity(path: str | Path | None) -> None:
    """Reads encrypted checkpoints with the keys of a file from here on, in this process and those that it starts.

    Args:
        path: the file; None: nothing changes.

    Raises:
        ConfigError: as `Identity.read`.
    """
    if path is not None:
        Identity.read(path)
        os.environ[IDENTITY_VARIABLE] = str(Path(path).expanduser().resolve())


def use_identity_of(config: Mapping[str, Any]) -> None:
    """Uses the identity that a configuration names, if it does. Raises ConfigError as `use_identity`."""
    node = config.get("checkpoint")
    use_identity(node.get("identity") if isinstance(node, Mapping) else None)


def hide_identity() -> None:
    """Takes the path of the key out of the arguments of this process, which manifests and trackers store."""
    sys.argv[1:] = [_HIDDEN if _names_identity(word) else word for word in sys.argv[1:]]


def _names_identity(word: str) -> bool:
    return word.lstrip("+").startswith(("checkpoint.", "checkpoint=")) and "identity" in word


def without_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration that does not say where the key lies, as it is stored."""
    node = config.get("checkpoint")
    return {**config, "checkpoint": {**node, "identity": None}} if isinstance(node, Mapping) else dict(config)


def identities_in_use() -> list[Identity]:
    """The keys of the file that is in use; empty where there is none.

    Raises:
        ConfigError: as `Identity.read`.
    """
    path = os.environ.get(IDENTITY_VARIABLE)
    return Identity.read(path) if path else []
