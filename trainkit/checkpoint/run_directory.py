"""Run directories: made for one run, and written by one run at a time."""

import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from trainkit.errors import ConfigError

LOCK_FILE = ".lock"
HEARTBEAT_S = 5.0
MOST_SILENCE_S = 4 * HEARTBEAT_S
"""How long the heartbeat of another host is watched before its run counts as dead: clocks of hosts need not agree."""


def make(run_dir: str | Path) -> Path:
    """The directory that `run_dir` means, made and writable, with %Y, %m, %d, %H, %M and %S filled in by the clock.

    One with a date in its name belongs to this run alone: where it exists already, `-2`, `-3` ... is appended.
    Raises ConfigError.
    """
    path = Path(datetime.now().strftime(str(run_dir))).expanduser()
    try:
        path = _made_for_one(path) if "%" in str(run_dir) else _made(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as caught:
        raise ConfigError(
            f"run_dir={run_dir}: cannot write there: {caught.strerror or caught}; give another"
        ) from caught
    return path


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _made_for_one(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            candidate.mkdir()
            return candidate
    raise AssertionError


class RunLock:
    """Holds a run directory for this process, from its making to `release`.

    The file `.lock` names host, process and job, and is written again every few seconds. A process of this host that is
    gone, an earlier start of the same job, and another host whose heartbeat has stopped hold nothing.

    Raises ConfigError where another run is using the directory; an OSError where the lock cannot be written.
    """

    def __init__(self, directory: Path, *, report: Callable[[str], None] = lambda text: None) -> None:
        self.path = directory / LOCK_FILE
        # Not inherited by forked children, unlike flock: a loader process that outlives this one must hold nothing.
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._acquire(directory, report)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._beat = 0
        self._write()
        self._is_released = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="trainkit-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets another run have the directory."""
        if self._is_released.is_set():
            return
        self._is_released.set()
        self._thread.join()
        with suppress(OSError):  # a disk that is gone holds no lock either
            os.ftruncate(self._descriptor, 0)
            if [path.name for path in self.path.parent.iterdir()] == [LOCK_FILE]:
                self.path.unlink()
        os.close(self._descriptor)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _acquire(self, directory: Path, report: Callable[[str], None]) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _used(directory, self._read()) from error
            # A file system without locks: the heartbeat alone tells.
        owner = self._read()
        if not owner or _is_of_this_job(owner):
            return
        if owner["host"] == socket.gethostname():
            if (started := _started(owner["pid"])) is not None and started == owner["started"]:
                raise _used(directory, owner)
            return
        report(f"{directory} was last used by {_named(owner)}: waiting up to {MOST_SILENCE_S:.0f} s for a sign of life")
        deadline = time.monotonic() + MOST_SILENCE_S
        while time.monotonic() < deadline:
            time.sleep(HEARTBEAT_S / 5)
            if (now := self._read()) and now != owner:
                raise _used(directory, now)

    def _read(self) -> dict[str, Any]:
        """Who holds the directory; nothing where nobody does."""
        try:
            owner = json.loads(os.pread(self._descriptor, 4096, 0) or b"{}")
        except ValueError:  # cut short by a full disk or a crash
            return {}
        return owner if isinstance(owner, dict) and owner.keys() >= {"host", "pid", "started", "job"} else {}

    def _write(self) -> None:
        self._beat += 1
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "job": _job()}
        text = json.dumps({**owner, "beat": self._beat}).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def _keep_beating(self) -> None:
        while not self._is_released.wait(HEARTBEAT_S):
            with suppress(OSError):  # a disk that is full or away for a while; what was written stays
                self._write()


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}"


def _used(directory: Path, owner: dict[str, Any]) -> ConfigError:
    if owner and (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid()):
        return ConfigError(f"run_dir={directory} is being used by a Runtime of this process: close() that one first")
    by = _named(owner) if owner else "another process"
    return ConfigError(
        f"run_dir={directory} is being used by {by}: wait until that run has ended, or give another run_dir"
    )


def _job() -> str | None:
    """What names this job among all, and stays when its processes are started again."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id and run_id != "none":
        return f"torchrun {run_id}"
    return f"slurm {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else None


def _is_of_this_job(owner: dict[str, Any]) -> bool:
    """Whether an earlier start of this very job holds the directory: its launcher has ended those processes."""
    restarted = any(int(os.environ.get(n) or 0) > 0 for n in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return restarted and owner["job"] is not None and owner["job"] == _job()


def _started(pid: int) -> str | None:
    """When process `pid` began, in the kernel's ticks: its number alone may be another's by now; None if it is gone."""
    if not Path("/proc/self/stat").is_file():  # not Linux
        return _started_without_proc(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie writes nothing


def _started_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # there, and another user's
        return "unknown"
    return "unknown"
