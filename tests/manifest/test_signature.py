"""Signatures of manifests: those of ssh-keygen, in both directions."""

import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from trainkit.errors import ConfigError, DataError
from trainkit.manifest import signature

needs_ssh = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="needs ssh-keygen: apt-get install openssh-client"
)


def _key(path, private=None):
    private = private or ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public + b" somebody\n")
    return path


@pytest.fixture
def signed(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("{}\n")
    signature.sign(path, _key(tmp_path / "key"))
    return path


def test_what_was_signed_is_valid(signed, tmp_path):
    fingerprint = signature.verify(signed)
    assert fingerprint.startswith("SHA256:")
    others = _key(tmp_path / "other").with_suffix(".pub")
    keys = tmp_path / "keys"
    keys.write_text("# colleagues\n" + others.read_text() + (tmp_path / "key.pub").read_text())
    assert signature.verify(signed, keys) == fingerprint
    with pytest.raises(DataError, match=r"which is not a key of .*other\.pub"):
        signature.verify(signed, others)


def test_a_change_of_either_is_found(signed):
    content, text = signed.read_bytes(), (signed.parent / "manifest.json.sig").read_text()
    signed.write_bytes(content + b" ")
    with pytest.raises(DataError, match="one of the two has changed since"):
        signature.verify(signed)
    signed.write_bytes(content)
    lines = text.splitlines()
    for number in range(1, len(lines) - 1):
        damaged = lines.copy()
        damaged[number] = damaged[number][:5] + ("A" if damaged[number][5] != "A" else "B") + damaged[number][6:]
        (signed.parent / "manifest.json.sig").write_text("\n".join(damaged) + "\n")
        with pytest.raises(DataError):
            signature.verify(signed)
    (signed.parent / "manifest.json.sig").unlink()
    with pytest.raises(DataError, match="is not signed"):
        signature.verify(signed)


@needs_ssh
def test_ssh_keygen_takes_ours(signed):
    command = ["ssh-keygen", "-Y", "check-novalidate", "-n", "file", "-s", f"{signed}.sig"]
    done = subprocess.run(command, input=signed.read_bytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert signature.verify(signed) in done.stdout.decode()


@needs_ssh
def test_we_take_that_of_ssh_keygen(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("{}\n")
    key = _key(tmp_path / "key")
    subprocess.run(["ssh-keygen", "-Y", "sign", "-n", "file", "-f", key, path], check=True, capture_output=True)
    assert signature.verify(path, key.with_suffix(".pub")).startswith("SHA256:")


@needs_ssh
def test_a_key_with_a_passphrase_is_for_ssh_keygen(tmp_path):
    path, key = tmp_path / "manifest.json", tmp_path / "locked"
    path.write_text("{}\n")
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", key]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ConfigError, match="type ssh-keygen -Y sign -n file"):
        signature.sign(path, key)


def test_keys_that_cannot_sign(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="must be an ssh-ed25519 key"):
        signature.sign(path, _key(tmp_path / "rsa", rsa.generate_private_key(65537, 2048)))
    with pytest.raises(ConfigError, match="--key"):
        signature.sign(path, tmp_path / "none")
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(ConfigError, match="--key"):
        signature.sign(path, tmp_path / "junk")
    assert [*tmp_path.glob("manifest*")] == [path], "nothing half-written is left"
