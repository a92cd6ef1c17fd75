"""Signature: a manifest signed by an SSH key, in the format that `ssh-keygen -Y` writes and verifies."""

import base64
import hashlib
import textwrap
from pathlib import Path

from trainkit.errors import ConfigError, DataError
from trainkit.json_text import read_bounded
from trainkit.whole_file import write_text

SUFFIX = ".sig"
NAMESPACE = "file"
"""What the signature is for, as `ssh-keygen -Y sign -n file` says it."""
_MAGIC, _HASH = b"SSHSIG", b"sha512"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_MAX_KEY_BYTES = 1 << 16
_NEEDED = "pip install trainkit[signing]"


def sign(path: Path, key: Path) -> Path:
    """Signs a file. See PROTOCOL.sshsig of OpenSSH.

    Args:
        path: the file.
        key: a private ssh-ed25519 key in a file, without a passphrase.

    Returns:
        The file of the signature, `path` with `.sig` after its name.

    Raises:
        ConfigError: for a key that cannot be used, and where the signature cannot be written.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
    except ImportError as error:
        raise ConfigError(f"signing needs cryptography: {_NEEDED}") from error
    try:
        private = load_ssh_private_key(read_bounded(key, _MAX_KEY_BYTES), password=None)
    except (OSError, ValueError, TypeError) as error:  # TypeError: it has a passphrase
        raise ConfigError(
            f"--key {key}: must be a private ssh-ed25519 key without a passphrase ({type(error).__name__}); with one, "
            f"or an agent, type ssh-keygen -Y sign -n {NAMESPACE} -f {key} {path}"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"--key {key}: must be an ssh-ed25519 key: ssh-keygen -t ed25519 makes one")
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    wire = _string(b"ssh-ed25519") + _string(public)
    head = _string(NAMESPACE.encode()) + _string(b"") + _string(_HASH)
    signed = _MAGIC + head + _string(hashlib.sha512(path.read_bytes()).digest())
    signature = _string(b"ssh-ed25519") + _string(private.sign(signed))
    blob = _MAGIC + (1).to_bytes(4, "big") + _string(wire) + head + _string(signature)
    target = path.with_name(path.name + SUFFIX)
    text = "\n".join([_BEGIN, *textwrap.wrap(base64.b64encode(blob).decode(), 70), _END, ""])
    try:
        write_text(target, text)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def verify(path: Path, keys: Path | None = None) -> str:
    """Verifies the signature beside a file.

    Args:
        path: the file.
        keys: public keys, one a line, any of which may have signed; None: whoever signed.

    Returns:
        The fingerprint of the key that signed, such as `SHA256:...`.

    Raises:
        ConfigError: for keys that cannot be read.
        DataError: there is no signature, it is not of this content, or of another key.
    """
    try:
        import sshsig
    except ImportError as error:
        raise ConfigError(f"verifying needs sshsig: {_NEEDED}") from error
    signature = path.with_name(path.name + SUFFIX)
    if not signature.is_file():
        raise DataError(f"{path} is not signed: there is no {signature.name} beside it")
    try:
        armored = read_bounded(signature, _MAX_KEY_BYTES)
        found = sshsig.check_signature(path.read_bytes(), armored, namespace=NAMESPACE)
    except (sshsig.InvalidSignature, ValueError, NotImplementedError) as error:
        why = f" ({error})" if str(error) else ""
        raise DataError(
            f"{signature} is no valid signature of {path.name} as it is: one of the two has changed since{why}"
        ) from error
    if keys is not None and found not in _public_keys(keys, sshsig.PublicKey):
        raise DataError(f"{path} is signed by {found.sha256_str()}, which is not a key of {keys}")
    return str(found.sha256_str())


def _public_keys(path: Path, kind: type) -> list[object]:
    try:
        lines = read_bounded(path, _MAX_KEY_BYTES).decode().splitlines()
        return [kind.from_openssh_str(line) for line in lines if line.strip() and not line.startswith("#")]  # type: ignore[attr-defined]
    except (OSError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"--key {path}: must hold public ssh-ed25519 keys, one a line: {error}") from error


def _string(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content
