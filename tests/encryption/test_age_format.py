"""Files in the format age: read by other programs, read from them, and what happens to changed ones."""

import io
import os
import random
import shutil
import subprocess

import pytest

from tests.encryption.keys import age_key, ssh_key
from trainkit.encryption import AgeReader, AgeWriter, Recipient
from trainkit.encryption.writer import CHUNK_BYTES
from trainkit.errors import CheckpointError

SEALED = CHUNK_BYTES + 16
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 64 * CHUNK_BYTES, 9_000_001)
AGE = shutil.which("age") or ""
needs_age = pytest.mark.skipif(not AGE, reason="needs the command age: apt-get install age")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    directory = tmp_path_factory.mktemp("keys")
    return age_key(directory), ssh_key(directory)


def _encrypted(content, *keys, piece=77_777):
    out = io.BytesIO()
    with AgeWriter(out.write, [Recipient.parse(key.recipient) for key in keys]) as file:
        for start in range(0, len(content), piece):
            file.write(content[start : start + piece])
    return out.getvalue()


def _decrypted(path, key):
    with AgeReader(path, key.identities) as file:
        file.authenticate()
        return bytes(file.read(0, file.num_bytes))


@pytest.mark.parametrize("num_bytes", SIZES)
def test_what_is_written_is_read_by_each_recipient(keys, tmp_path, num_bytes):
    content, path = os.urandom(num_bytes), tmp_path / "file.age"
    path.write_bytes(_encrypted(content, *keys))
    for key in keys:
        assert _decrypted(path, key) == content
    if num_bytes > 1:
        draw = random.Random(num_bytes)
        with AgeReader(path, keys[0].identities) as file:
            for _ in range(20):
                start, end = sorted(draw.sample(range(num_bytes + 1), 2))
                assert file.read(start, end - start) == content[start:end]


def test_the_way_it_is_cut_into_writes_is_not_seen(keys, tmp_path):
    content, path = os.urandom(300_000), tmp_path / "file.age"
    for piece in (1000, CHUNK_BYTES, 2 * CHUNK_BYTES, 300_000):
        path.write_bytes(_encrypted(content, keys[0], piece=piece))
        assert _decrypted(path, keys[0]) == content


@needs_age
@pytest.mark.parametrize("num_bytes", SIZES)
def test_the_command_age_reads_and_is_read(keys, tmp_path, num_bytes):
    content, path = os.urandom(num_bytes), tmp_path / "file.age"
    path.write_bytes(_encrypted(content, *keys))
    for key in keys:
        command = [AGE, "--decrypt", "--identity", key.file, path]
        assert subprocess.run(command, capture_output=True, check=True).stdout == content
    to = [word for key in keys for word in ("--recipient", key.recipient)]
    theirs = subprocess.run([AGE, *to], input=content, capture_output=True, check=True).stdout
    path.write_bytes(theirs)
    for key in keys:
        assert _decrypted(path, key) == content


@pytest.mark.parametrize("num_bytes", SIZES)
def test_pyrage_reads_and_is_read(keys, tmp_path, num_bytes):
    pyrage = pytest.importorskip("pyrage")
    content, path = os.urandom(num_bytes), tmp_path / "file.age"
    of_age = pyrage.x25519.Identity.from_str(keys[0].file.read_text().split()[-1])
    of_ssh = pyrage.ssh.Identity.from_buffer(keys[1].file.read_bytes())
    for identity in (of_age, of_ssh):
        assert pyrage.decrypt(_encrypted(content, *keys), [identity]) == content
    path.write_bytes(pyrage.encrypt(content, [of_age.to_public(), pyrage.ssh.Recipient.from_str(keys[1].recipient)]))
    for key in keys:
        assert _decrypted(path, key) == content


CONTENT = bytes(range(256)) * 1024  # four whole chunks: the end is on a border


def _faults(whole, other):
    start = len(whole) - 4 * SEALED  # of the first chunk
    first, second, third, last = (whole[start + i * SEALED : start + (i + 1) * SEALED] for i in range(4))
    yield "cut to a chunk", whole[:-SEALED]
    yield "cut within a chunk", whole[:-1]
    yield "cut to the header", whole[:start]
    yield "cut in the header", whole[:50]
    yield "empty", b""
    yield "reordered", whole[:start] + second + first + third + last
    yield "removed", whole[:start] + first + third + last
    yield "repeated", whole[:start] + first + second + second + third + last
    yield "appended a byte", whole + b"x"
    yield "appended a tag", whole + bytes(16)
    yield "appended a chunk", whole + last
    yield "another header", other[:start] + whole[start:]
    yield "another end", whole[:-SEALED] + other[-SEALED:]
    yield "a file in front", other + whole
    yield "not encrypted", CONTENT


def test_every_fault_is_one_clear_error(keys, tmp_path):
    whole, other, path = _encrypted(CONTENT, keys[0]), _encrypted(CONTENT, keys[0]), tmp_path / "file.age"
    for what, content in _faults(whole, other):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"file\.age") as error:
            _decrypted(path, keys[0])
        assert "\n" not in str(error.value) and len(str(error.value)) < 300, what
        assert [entry.name for entry in tmp_path.iterdir()] == ["file.age"], what


def test_every_flipped_bit_is_found(keys, tmp_path):
    whole, path = _encrypted(CONTENT[: CHUNK_BYTES + 10], keys[0]), tmp_path / "file.age"
    header = range(8 * (len(whole) - SEALED - 26))
    for bit in [*header, *random.Random(0).sample(range(8 * len(whole)), 100)]:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            _decrypted(path, keys[0])


def test_a_range_of_an_intact_chunk_does_not_hide_a_bad_one(keys, tmp_path):
    whole, path = bytearray(_encrypted(CONTENT, keys[0])), tmp_path / "file.age"
    whole[-2 * SEALED - 5] ^= 1  # in the second chunk
    path.write_bytes(whole)
    with AgeReader(path, keys[0].identities) as file:
        assert file.read(0, 100) == CONTENT[:100]
        with pytest.raises(CheckpointError, match="chunk 2 of 4"):
            file.read(CHUNK_BYTES + 5, 1)


def test_another_key_and_none(keys, tmp_path):
    path = tmp_path / "file.age"
    path.write_bytes(_encrypted(b"weights", keys[0]))
    with pytest.raises(CheckpointError, match=r"encrypted for other keys than ssh-ed25519 .*checkpoint\.identity=FILE"):
        AgeReader(path, keys[1].identities)
    with pytest.raises(CheckpointError, match=r"is encrypted: give .*checkpoint\.identity=FILE"):
        AgeReader(path, [])


def test_a_hostile_header_is_bounded(keys, tmp_path):
    path = tmp_path / "file.age"
    for content in (b"age-encryption.org/v1\n" + b"-> X " + b"a" * 3_000_000, b"\n" * 100, b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            AgeReader(path, keys[0].identities)


def test_an_error_of_the_disk_is_raised(keys):
    def full(block):
        if len(block) > 1000:
            raise OSError(28, "No space left on device")

    with (
        pytest.raises(OSError, match="No space"),
        AgeWriter(full, [Recipient.parse(keys[0].recipient)]) as file,
    ):
        for _ in range(100):
            file.write(bytes(1 << 20))
