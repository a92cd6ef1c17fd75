"""Public and secret keys: what is accepted, and that a secret never appears in a message."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import trainkit
from tests.encryption.keys import age_key, ssh_key
from trainkit.encryption import (
    IDENTITY_VARIABLE,
    Encryption,
    Identity,
    Recipient,
    bech32,
    hide_identity,
    identities_in_use,
)
from trainkit.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_identity(monkeypatch):
    monkeypatch.delenv(IDENTITY_VARIABLE, raising=False)


def test_a_published_bech32_key():
    """From the specification of age: the recipient of its example."""
    text = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
    prefix, content = bech32.decode(text)
    assert prefix == "age" and len(content) == 32 and bech32.encode(prefix, content) == text
    for wrong in (text[:-1] + "q", text[:10] + "q" + text[11:], text[:-1], text.capitalize(), "", "1", "age1"):
        with pytest.raises(ValueError):
            bech32.decode(wrong)


def test_comments_and_repetitions_are_left_out(tmp_path):
    key, other = ssh_key(tmp_path), age_key(tmp_path)
    given = Encryption(recipients=[f"{key.recipient} somebody@somewhere", other.recipient, key.recipient])
    assert [one.text for one in given.public_keys()] == [key.recipient, other.recipient]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("age1qqqq", r"checkpoint\.recipients\[0\]: 'age1qqqq' is no recipient"),
        ("ssh-ed25519 AAAA", "no ssh-ed25519 key"),
        ("ssh-rsa AAAA", "must be a recipient of age"),
        ("", "must be a recipient of age"),
    ],
)
def test_what_is_no_public_key(given, message):
    with pytest.raises(ConfigError, match=message):
        Encryption(recipients=[given])


def test_one_key_in_place_of_a_list(tmp_path):
    with pytest.raises(ConfigError, match=r"must be a list: \[age1"):
        Encryption(recipients=age_key(tmp_path).recipient)


def test_a_secret_is_never_repeated(tmp_path):
    key = age_key(tmp_path)
    secret = key.file.read_text().split()[-1]
    for wrong in (lambda: Encryption(recipients=[secret]), lambda: Encryption(identity=Path(secret))):
        with pytest.raises(ConfigError) as error:
            wrong()
        assert secret[16:30] not in str(error.value)
    key.file.write_text(secret[:-1])
    with pytest.raises(ConfigError, match="line 1 is no secret key") as error:
        Identity.read(key.file)
    assert secret[16:30] not in str(error.value)


def test_an_identity_shows_its_recipient_and_stays_here(tmp_path):
    key = age_key(tmp_path)
    (identity,) = key.identities
    secret = key.file.read_text().split()[-1]
    assert key.recipient in repr(identity) and secret not in repr(identity)
    for leave in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not copied"):
            leave(identity)


@pytest.mark.parametrize("typed", ["checkpoint.identity=FILE_OF_KEY", "++checkpoint={identity: FILE_OF_KEY}"])
def test_the_path_of_a_key_is_hidden_in_arguments(monkeypatch, typed):
    kept = ["train.py", "recipe=bert", "checkpoint.recipients=[age1]", "run_dir=identity"]
    monkeypatch.setattr(sys, "argv", [*kept, typed])
    hide_identity()
    assert sys.argv == [*kept, "checkpoint.identity=FILE"]


def test_files_that_hold_no_key(tmp_path):
    for content in (b"", b"# only a comment\n", b"\x00\xff\xfe" * 1000, b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"):
        path = tmp_path / "key"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="must be a key file of age"):
            Identity.read(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Encryption(identity=tmp_path / "nowhere")


def test_a_key_with_a_passphrase_is_refused(tmp_path):
    path = tmp_path / "id"
    made = (
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", path], capture_output=True, check=False
        )
        if _has_ssh_keygen()
        else None
    )
    if made is None:
        pytest.skip("needs ssh-keygen: apt-get install openssh-client")
    with pytest.raises(ConfigError, match="has a passphrase"):
        Identity.read(path)


def _has_ssh_keygen():
    import shutil

    return shutil.which("ssh-keygen") is not None


def test_a_key_of_ssh_keygen(tmp_path):
    if not _has_ssh_keygen():
        pytest.skip("needs ssh-keygen: apt-get install openssh-client")
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", path], check=True)
    public = Recipient.parse((tmp_path / "id.pub").read_text())
    assert Identity.read(path)[0].recipient == public and "me@here" not in public.text


def test_the_environment_names_a_file(tmp_path, monkeypatch):
    key, other = age_key(tmp_path), ssh_key(tmp_path)
    assert identities_in_use() == []
    monkeypatch.setenv(IDENTITY_VARIABLE, str(key.file))
    assert [one.recipient.text for one in identities_in_use()] == [key.recipient]
    Encryption(identity=other.file)
    assert [one.recipient.text for one in identities_in_use()] == [other.recipient]


def test_a_run_says_what_a_resume_will_need(tmp_path):
    key = age_key(tmp_path)
    assert Encryption().describe() is None
    assert "to resume from them, give checkpoint.identity=FILE" in str(
        Encryption(recipients=[key.recipient]).describe()
    )
    said = str(Encryption(recipients=[key.recipient], identity=key.file).describe())
    assert said == f"checkpoints are encrypted for {key.recipient}"


def test_a_run_that_rewinds_needs_the_key_at_once(tmp_path):
    key = age_key(tmp_path)
    with pytest.raises(ConfigError, match=r"nonfinite=rewind .* give checkpoint\.identity=FILE"):
        trainkit.Runtime(nonfinite="rewind", checkpoint=Encryption(recipients=[key.recipient]), device="cpu")
    Encryption(recipients=[key.recipient], identity=key.file).check(rewinds=True)
    Encryption().check(rewinds=True)
