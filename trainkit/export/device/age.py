"""Decrypts a file of age v1 (https://age-encryption.org/v1) into memory, with a key of age or of ssh-ed25519."""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

_CHUNK, _TAG = 64 << 10, 16
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def decrypt(content: bytes, key_file: bytes) -> bytearray:
    """Returns the plain content. Raises ValueError where the key is of nobody it is for, or a byte was changed."""
    head, mark, rest = content.partition(b"\n---")
    if not head.startswith(b"age-encryption.org/v1\n") or not mark:
        raise ValueError("it is not encrypted with age")
    code, _, body = rest.partition(b"\n")
    file_key = _file_key(head.decode(), _identities(key_file))
    expected = hmac.new(_derived(file_key, b"", b"header"), head + mark, hashlib.sha256).digest()
    if not hmac.compare_digest(expected, _from_base64(code.decode().strip())):
        raise ValueError("its header was changed")
    cipher = ChaCha20Poly1305(_derived(file_key, body[:16], b"payload"))
    sealed, plain = memoryview(body)[16:], bytearray()
    last = max(0, (len(sealed) - 1) // (_CHUNK + _TAG))
    for number in range(last + 1):
        piece = sealed[number * (_CHUNK + _TAG) : (number + 1) * (_CHUNK + _TAG)]
        try:
            plain += cipher.decrypt(number.to_bytes(11, "big") + bytes([number == last]), bytes(piece), None)
        except (InvalidTag, ValueError):
            raise ValueError("it was changed or cut off") from None
    return plain


def _identities(key_file: bytes) -> list[tuple[bytes, bytes]]:
    """Pairs of an X25519 key and, of an SSH key, its public key as it is sent."""
    if b"BEGIN OPENSSH PRIVATE KEY" in key_file:
        key = load_ssh_private_key(key_file, None)
        wire = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
        seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return [(hashlib.sha512(seed).digest()[:32], base64.b64decode(wire))]
    lines = [line.strip() for line in key_file.decode("utf-8", "replace").splitlines()]
    secrets = [line.lower() for line in lines if line.upper().startswith("AGE-SECRET-KEY-1")]
    if not secrets:
        raise ValueError("that file holds no secret key")
    return [(_bech32(line.rpartition("1")[2]), b"") for line in secrets]


def _file_key(head: str, identities: list[tuple[bytes, bytes]]) -> bytes:
    for stanza in head.split("\n-> ")[1:]:
        words, _, body = stanza.partition("\n")
        kind, *arguments = words.split(" ")
        for secret, wire in identities:
            tag = [_to_base64(hashlib.sha256(wire).digest()[:4])] if wire else []
            if kind != ("ssh-ed25519" if wire else "X25519") or arguments[:-1] != tag:
                continue
            share, own = _from_base64(arguments[-1]), X25519PrivateKey.from_private_bytes(secret)
            shared = own.exchange(X25519PublicKey.from_public_bytes(share))
            if wire:
                tweak = X25519PrivateKey.from_private_bytes(_derived(b"", wire, b"age-encryption.org/v1/ssh-ed25519"))
                shared = tweak.exchange(X25519PublicKey.from_public_bytes(shared))
            public = own.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            key = _derived(shared, share + public, b"age-encryption.org/v1/" + kind.encode())
            try:
                return ChaCha20Poly1305(key).decrypt(bytes(12), _from_base64(body.replace("\n", "")), None)
            except InvalidTag:
                continue
    raise ValueError("it is encrypted for another key")


def _derived(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(key)


def _bech32(text: str) -> bytes:
    number = 0
    for char in text[:-6]:  # the rest is a checksum: with a wrong key nothing is decrypted
        number = number << 5 | _BECH32.find(char)
    if len(text) != 58 or number < 0:
        raise ValueError("that file holds no secret key")
    return (number >> 4).to_bytes(32, "big")


def _to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode().rstrip("=")


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
