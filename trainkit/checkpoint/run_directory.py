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
from typing import Any, Literal

from trainkit.distributed import agent
from trainkit.distributed.ranks import Ranks
from trainkit.errors import ConfigError
from trainkit.public_url import is_url, redacted

LOCK_FILE = ".lock"
_NAME = "run_dir"  # of the values that outlive a restart
HEARTBEAT_S = 5.0
MAX_SILENCE_S = 4 * HEARTBEAT_S
"""Seconds for which another host's heartbeat is watched before its run counts as dead: clocks of hosts may differ."""


def make(run_dir: str | Path) -> Path:
    """Makes a run directory, and checks that it can be written to.

    Args:
        run_dir: its path; %Y, %m, %d, %H, %M and %S are replaced by the time. A path with one of these is for this run
            alone: where it exists already, `-2`, `-3` ... is appended.

    Returns:
        The path of the directory.

    Raises:
        ConfigError: where it cannot be written to.
    """
    path = Path(datetime.now().strftime(str(run_dir))).expanduser()
    try:
        path = _made_for_one(path) if "%" in str(run_dir) else _made(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as caught:
        raise ConfigError(
            f"run_dir={run_dir}: cannot write there: {caught.strerror or caught}; set another"
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


def claim(
    run_dir: str | Path | None, ranks: Ranks, *, report: Callable[[str], None]
) -> tuple[Path | None, "RunLock | None"]:
    """Makes a run directory and locks it for this job. Collective: every rank must call.

    Args:
        run_dir: as for `make`; a path with a date is that of the job's first start where torchrun starts it again;
            None: the run has none.
        ranks: the processes of the job. They leave the process group where the directory cannot be used.
        report: as for `RunLock`.

    Returns:
        The path, the same on all ranks, and on rank 0 the lock.

    Raises:
        ConfigError: on all ranks, where it cannot be written to, or another job uses it.
    """
    if run_dir is None:
        return None, None
    if is_url(str(run_dir)):
        ranks.leave()
        raise ConfigError(
            f"run_dir={redacted(str(run_dir))}: must be a directory, on a disk that all hosts see; with "
            f"copy_to={redacted(str(run_dir))} beside it, its checkpoints are copied there"
        )
    made = ranks.same_as_before(_NAME, lambda: str(make(run_dir))) if "%" in str(run_dir) else None
    path, lock, error = Path(made or run_dir).expanduser(), None, None
    if ranks.is_main:
        try:
            path = make(path)
            lock = RunLock(path, report=report)
        except ConfigError as caught:
            error = caught
        except OSError as caught:
            error = ConfigError(f"run_dir={path}: cannot be locked: {caught.strerror or caught}; set another")
    try:
        ranks.raise_first(error)
    except ConfigError:
        ranks.leave()
        raise
    return path, lock


def known(run_dir: str | Path | None) -> Path | None:
    """The directory that the next `claim` of this process returns, where it can be told before the processes meet.

    Args:
        run_dir: as for `claim`.

    Returns:
        Its path; None where there is none, or none yet: a path with a date in the first start of a job.
    """
    if run_dir is None:
        return None
    path = agent.recall(agent.upcoming(_NAME)) if "%" in str(run_dir) else run_dir
    return Path(path).expanduser() if path is not None else None


class RunLock:
    """Holds a run directory for this process, until `release`.

    The file `.lock` names host, process and job, and is written again every few seconds. The lock of a process of this
    host that has ended, of an earlier start of the same job, or of another host whose heartbeat has stopped is ignored.

    Args:
        directory: the run directory.
        report: called with a message before a lock of another host is watched.

    Raises:
        ConfigError: where another run is using the directory.
        OSError: where the lock cannot be written.
    """

    def __init__(self, directory: Path, *, report: Callable[[str], None] = lambda text: None) -> None:
        self.path = directory / LOCK_FILE
        # Not inherited by forked children, unlike flock: a loader process that outlives this one must hold no lock.
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
        """Releases the directory for other runs."""
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
            # A file system without locks: only the heartbeat counts.
        owner = self._read()
        if not _is_of_this_job(owner) and (alive := _alive(directory, self._read, report)):
            raise _used(directory, alive)

    def _read(self) -> dict[str, Any]:
        return _owner(os.pread(self._descriptor, 4096, 0))

    def _write(self) -> None:
        self._beat += 1
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "job": _job()}
        text = json.dumps({**owner, "beat": self._beat}).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def _keep_beating(self) -> None:
        while not self._is_released.wait(HEARTBEAT_S):
            with suppress(OSError):  # a disk that is full or unreachable for a while; the file stays as it was
                self._write()


def user_of(directory: Path, *, report: Callable[[str], None] = lambda text: None) -> str | None:
    """Names the process that holds a run directory; None where there is none.

    Args:
        directory: of a run.
        report: called with a message before a lock of another host is watched.
    """

    def read() -> dict[str, Any]:
        try:
            return _owner((directory / LOCK_FILE).read_bytes())
        except OSError:  # none has been written, or it is not ours to read
            return {}

    owner = _alive(directory, read, report)
    return _named(owner) if owner else None


def state_of(directory: Path) -> Literal["held", "left", "free"]:
    """Tells whether a process holds a run directory, without waiting for a heartbeat.

    Args:
        directory: of a run, which may be anybody's.

    Returns:
        `held`; `left`: by a process that is gone, and did not release it; `free`. A process of another host counts as
        gone where its heartbeat is old.
    """
    path = directory / LOCK_FILE
    if not path.is_file() or path.is_symlink():
        return "free"
    try:
        with path.open("rb") as file:
            owner = _owner(file.read(4096))
        silence_s = time.time() - path.stat().st_mtime
    except OSError:  # it is not ours to read
        return "free"
    if not owner or not isinstance(owner["pid"], int):
        return "free"
    if owner["host"] == socket.gethostname():
        started = _started(owner["pid"])
        return "held" if started is not None and started == owner["started"] else "left"
    return "held" if silence_s < MAX_SILENCE_S else "left"


def _alive(directory: Path, read: Callable[[], dict[str, Any]], report: Callable[[str], None]) -> dict[str, Any]:
    """The owner that `read` returns, if its process runs; empty where none does."""
    owner = read()
    if not owner:
        return {}
    if owner["host"] == socket.gethostname():
        started = _started(owner["pid"])
        return owner if started is not None and started == owner["started"] else {}
    report(f"{directory} was last used by {_named(owner)}: waiting up to {MAX_SILENCE_S:.0f} s for its heartbeat")
    deadline = time.monotonic() + MAX_SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_S / 5)
        if (now := read()) and now != owner:
            return now
    return {}


def _owner(content: bytes) -> dict[str, Any]:
    """The owner that a lock file names; empty where it names none."""
    try:
        owner = json.loads(content or b"{}")
    except ValueError:  # cut short by a full disk or a crash
        return {}
    return owner if isinstance(owner, dict) and owner.keys() >= {"host", "pid", "started", "job"} else {}


def _named(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}"


def _used(directory: Path, owner: dict[str, Any]) -> ConfigError:
    if owner and (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid()):
        return ConfigError(f"run_dir={directory} is being used by a Runtime of this process: close() it first")
    by = _named(owner) if owner else "another process"
    return ConfigError(
        f"run_dir={directory} is being used by {by}: wait until that run has ended, or set another run_dir"
    )


def _job() -> str | None:
    """A unique name of this job, which stays the same when its processes are restarted."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id and run_id != "none":
        return f"torchrun {run_id}"
    return f"slurm {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else None


def _is_of_this_job(owner: dict[str, Any]) -> bool:
    """Whether an earlier start of this job holds the directory; its launcher has ended those processes."""
    if not owner:
        return False
    restarted = any(int(os.environ.get(n) or 0) > 0 for n in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return restarted and owner["job"] is not None and owner["job"] == _job()


def _started(pid: int) -> str | None:
    """When process `pid` was started, in the kernel's ticks, since its number may be reused; None if it has ended."""
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
    except PermissionError:  # it exists, and belongs to another user
        return "unknown"
    return "unknown"
