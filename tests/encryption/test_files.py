"""Files that other programs write: plain in memory only, and gone with the process."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.encryption.keys import age_key
from trainkit.encryption import AgeReader, Recipient, encrypt_files, plain_in_memory
from trainkit.encryption.files import _IN_MEMORY, _is_in_memory
from trainkit.errors import ConfigError

needs_memory = pytest.mark.skipif(not _is_in_memory(_IN_MEMORY), reason="needs a tmpfs at /dev/shm")


def test_a_directory_is_encrypted_file_by_file(tmp_path):
    key, source = age_key(tmp_path), tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    contents = {"config.json": b"{}", "sub/model.safetensors": os.urandom(3_000_000), "empty": b""}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    written = encrypt_files(source, tmp_path / "target", [Recipient.parse(key.recipient)])
    assert {str(path.relative_to(tmp_path / "target")) for path in written} == {f"{name}.age" for name in contents}
    for name, content in contents.items():
        with AgeReader(tmp_path / "target" / f"{name}.age", key.identities) as file:
            assert file.read(0, file.num_bytes) == content


@needs_memory
def test_temporary_files_of_libraries_are_in_memory_too():
    before = tempfile.gettempdir()
    with plain_in_memory() as directory:
        assert directory.is_relative_to(_IN_MEMORY)
        assert Path(tempfile.mkdtemp()).is_relative_to(directory.parent)
        assert Path(os.environ["TMPDIR"]).is_relative_to(directory.parent)
        assert not list(directory.iterdir())
    assert not directory.exists() and tempfile.gettempdir() == before and "TMPDIR" not in os.environ


KILLED = """
import sys, time
from trainkit.encryption import plain_in_memory
with plain_in_memory() as directory:
    (directory / "plain").write_text("weights")
    print(directory, flush=True)
    time.sleep(60)
"""


@needs_memory
def test_a_killed_process_leaves_nothing_plain():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert (directory / "plain").read_text() == "weights"
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while directory.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not directory.exists()


def test_without_memory_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr("trainkit.encryption.files._IN_MEMORY", tmp_path)
    with pytest.raises(ConfigError, match="--shm-size"), plain_in_memory():
        pass
    assert not list(tmp_path.iterdir())
