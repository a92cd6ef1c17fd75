"""A PostgreSQL server of the machine's own packages, on a socket in a temporary folder."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def binaries() -> Path | None:
    """Where initdb and postgres are; None: they are not installed."""
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *map(Path, os.environ["PATH"].split(os.pathsep))]
    return next((path for path in found if (path / "initdb").is_file() and (path / "postgres").is_file()), None)


@contextmanager
def server() -> Iterator[str]:
    """The URL of a database of a server that runs in the context."""
    bin_ = binaries()
    user: str | None = None  # that of this process
    assert bin_ is not None
    directory = Path(tempfile.mkdtemp(prefix="trainkit_postgres_"))
    try:
        if os.geteuid() == 0:  # it refuses to run as root
            user = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
            shutil.chown(directory, user)
        data = str(directory / "data")
        subprocess.run(
            [bin_ / "initdb", "-D", data, "-A", "trust", "-U", "trainkit", "-N"],
            check=True,
            user=user,
            capture_output=True,
            cwd=directory,
        )
        options = ["-D", data, "-k", str(directory), "-h", "", "-F"]
        process = subprocess.Popen(
            [bin_ / "postgres", *options],
            user=user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
        )
        try:
            end = time.monotonic() + 60
            while not (directory / ".s.PGSQL.5432").exists():
                assert process.poll() is None and time.monotonic() < end, "the server did not start"
                time.sleep(0.05)
            yield f"postgresql+psycopg://trainkit@/postgres?host={directory}"
        finally:
            process.send_signal(signal.SIGINT)  # fast: it does not wait until clients leave
            process.wait(30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
