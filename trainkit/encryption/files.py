"""Files: what other programs have written, encrypted one by one; until then it lies in memory only."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainkit.encryption.recipient import Recipient
from trainkit.encryption.writer import AgeWriter
from trainkit.errors import ConfigError

SUFFIX = ".age"
_READ_BYTES = 1 << 20
_IN_MEMORY = Path("/dev/shm")


def encrypt_files(source: Path, target: Path, recipients: Sequence[Recipient]) -> list[Path]:
    """Encrypts the files of a directory, each into one with `.age` after its name, flushed to disk.

    Args:
        source: the directory.
        target: another one, which is made.
        recipients: at least one.

    Returns:
        The encrypted files.

    Raises:
        OSError: where one cannot be read or written.
    """
    written = []
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            continue
        own = target / path.relative_to(source).parent / f"{path.name}{SUFFIX}"
        own.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as plain, own.open("xb") as file:
            with AgeWriter(file.write, recipients) as sealed:
                while block := plain.read(_READ_BYTES):
                    sealed.write(block)
            file.flush()
            os.fsync(file.fileno())
        written.append(own)
    return written


@contextmanager
def plain_in_memory() -> Iterator[Path]:
    """Context manager for a directory in memory, for programs that can only write files. Its end deletes them.

    A process of its own deletes them where this one is killed. Temporary files of libraries go there, too.

    Yields:
        The directory.

    Raises:
        ConfigError: there is no file system in memory.
    """
    if not _is_in_memory(_IN_MEMORY):
        raise ConfigError(
            f"--encrypt keeps what is not encrypted yet in memory, at {_IN_MEMORY}, which is none here: mount a tmpfs "
            f"there, in a container by docker run --shm-size 8g"
        )
    directory, before, variable = tempfile.mkdtemp(dir=_IN_MEMORY), tempfile.tempdir, os.environ.get("TMPDIR")
    # It reads until this process has ended, in whatever way.
    command = ["sh", "-c", 'cat >/dev/null; rm -rf -- "$1"', "sh", directory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as cleaner:
        try:
            files, aside = Path(directory, "files"), Path(directory, "tmp")  # what libraries leave is no part of it
            files.mkdir()
            aside.mkdir()
            tempfile.tempdir = os.environ["TMPDIR"] = str(aside)
            yield files
        finally:
            tempfile.tempdir = before
            os.environ.pop("TMPDIR")
            if variable is not None:
                os.environ["TMPDIR"] = variable
            shutil.rmtree(directory, ignore_errors=True)
            assert cleaner.stdin is not None
            with suppress(OSError):
                cleaner.stdin.close()


@contextmanager
def room_in_memory() -> Iterator[None]:
    """Context manager for what writes to `plain_in_memory()`. Raises ConfigError where there is no room for it."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigError(
            f"{_IN_MEMORY} cannot hold what is not encrypted yet: {error.strerror or error}; make room there"
        ) from error


def _is_in_memory(path: Path) -> bool:
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:  # not Linux
        return False
    return any(line.split()[1:3] in ([str(path), "tmpfs"], [str(path), "ramfs"]) for line in mounts)
