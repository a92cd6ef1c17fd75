"""Cache directories: named by their content, built once, and there whole or not at all."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from trainkit.errors import DataError
from trainkit.logger import logger

ENVIRONMENT_VARIABLE = "TRAINKIT_CACHE"
ABANDONED_AFTER_S = 600.0
"""Time without a write after which another machine's partial build, whose lock may not be visible, is abandoned."""
REMOVED_AFTER_S = 86_400.0
"""Time for which an abandoned build that can be continued is kept."""
PART = "part."
"""How the names of files begin that only the build needs: they are removed once it is whole."""
_BUILDER = "builder"
_BUILT = "built"
_LOCK = ".lock"
_SAID_AFTER_S = 2.0
_LONGEST_PAUSE_S = 0.5
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
_asked: ContextVar[float] = ContextVar("asked")
_held: set[tuple[int, Path]] = set()  # (process, its lock file): one must not wait for itself


class CacheError(DataError):
    """A cache that nothing can be added to; what was built there can still be read."""


def cache_root(cache_dir: Path | None = None) -> Path:
    """Returns `cache_dir`, else $TRAINKIT_CACHE, else ~/.cache/trainkit."""
    return Path(cache_dir or os.environ.get(ENVIRONMENT_VARIABLE) or Path.home() / ".cache" / "trainkit").expanduser()


def cached(root: Path, name: str, build: Callable[[Path], object], *, resumes: bool = False) -> Path:
    """Returns the directory `root/name`, which is built if it does not exist.

    A build fills a temporary directory, which is then renamed. Of several processes one builds, and the others wait for
    it (see `alone`); where the file system has no locks each builds its own, one is kept, and all return the same path.
    What a killed process left is removed by the next build. Files and directories get the permissions of the umask.

    Args:
        root: the cache.
        name: contains everything that the content depends on: a hash of the inputs, the settings and the version of the
            format.
        build: called with the directory to fill.
        resumes: whether `build` continues from what is in the directory: it is then given what a killed or interrupted
            process left under this `name`, which is removed only after a day. Files named `part.*` are for this alone.

    Returns:
        The path of the directory.

    Raises:
        CacheError: where the directory cannot be written, or the disk is full.
    """
    target = root / name
    if target.is_dir():
        return target
    with alone(root / f".{name}{_LOCK}", str(target), lambda: _last_write(root, name)):
        return target if target.is_dir() else _built(root, name, build, resumes)


def _built(root: Path, name: str, build: Callable[[Path], object], resumes: bool) -> Path:
    target = root / name
    try:
        aside, descriptor = _claim(root, name, resumes)
        _remove_abandoned(root, name, REMOVED_AFTER_S if resumes else ABANDONED_AFTER_S)
    except OSError as error:
        raise cannot_write(root, error) from error
    is_left = False
    try:
        if not (aside / _BUILT).exists():
            build(aside)
            (aside / _BUILT).touch()  # one that is killed from here on is not built again
        for path in (*aside.glob(f"{PART}*"), *aside.glob(f".{PART}*")):
            path.unlink()
        _move(aside, target)
        for name in (_BUILT, _BUILDER):
            (target / name).unlink(missing_ok=True)
    except OSError as error:
        if not _is_of_the_disk(error):
            raise
        raise cannot_write(root, error) from error
    except KeyboardInterrupt:
        is_left = resumes
        raise
    finally:
        if not is_left:
            shutil.rmtree(aside, ignore_errors=True)
        os.close(descriptor)
    return target


@contextmanager
def alone(path: Path, what: str, last_sign: Callable[[], float] | None = None) -> Iterator[Callable[[], None]]:
    """Context manager that one process is in at a time, of all that name the same lock file.

    The others wait; a process that ends, however it does, lets go. One that gives no sign for `ABANDONED_AFTER_S` is no
    longer waited for: what is done inside must be whole where two do it at once, too.

    Args:
        path: of the lock file, which is there while a process is inside.
        what: it does, for the line that a process which waits logs.
        last_sign: returns the time, of `time.time`, at which the process inside last wrote; None: when it last called
            what is yielded.

    Yields:
        A function that gives a sign.

    Raises:
        CacheError: where the lock file cannot be written.
    """
    if (os.getpid(), path) in _held:
        yield lambda: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _wait(path, what, last_sign or (lambda: path.stat().st_mtime))
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    if descriptor is None:
        yield lambda: None
        return
    own = (os.getpid(), path)
    _held.add(own)
    try:
        yield lambda: os.utime(descriptor)
    finally:
        _held.discard(own)
        path.unlink(missing_ok=True)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor, too
        os.close(descriptor)


def _wait(path: Path, what: str, last_sign: Callable[[], float]) -> int | None:
    """Returns the descriptor of the locked file; None: there are no locks, or who holds this one gives no sign."""
    began, pause, is_said = time.time(), 0.02, False
    while True:
        try:
            if (descriptor := _locked_file(path)) is not None:
                return descriptor
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            return None  # a file system without locks
        with suppress(FileNotFoundError):
            if time.time() - max(began, last_sign()) > ABANDONED_AFTER_S:
                silent = f"{path} gave no sign for {ABANDONED_AFTER_S:.0f} s"
                logger(__name__).warning(f"the process that holds {silent}, and is not waited for")
                return None
        if not is_said and time.time() - began > _SAID_AFTER_S:
            is_said = True
            logger(__name__).info(f"waiting for another process that makes {what} ...")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _locked_file(path: Path) -> int | None:
    """Makes and locks a file; returns its descriptor, or None where another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # or who held it has just removed it
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _last_write(root: Path, name: str) -> float:
    """The time of the last write of any build of `name`."""
    newest = 0.0
    for aside in root.glob(f".{name}-*"):
        with suppress(OSError):  # it may be moved meanwhile
            newest = max(newest, *(entry.stat().st_mtime for entry in (aside, *aside.iterdir())))
    return newest


@contextmanager
def asked_since(moment: float) -> Iterator[None]:
    """Context manager in which what another process of the machine looked at after `moment` is not looked at again.

    Args:
        moment: of `time.monotonic`, which is the same for all processes of a machine.
    """
    token = _asked.set(min(moment, _asked.get(moment)))
    try:
        yield
    finally:
        _asked.reset(token)


def asked_at() -> float:
    """Returns the moment of the outermost `asked_since`; now, where there is none."""
    return _asked.get(time.monotonic())


def _is_of_the_disk(error: OSError) -> bool:
    """Whether nothing more can be written, and not what a build reads is at fault."""
    # numpy 2.4: `tofile`, and so `np.save`, says that a disk is full without a number.
    is_of_numpy = error.errno is None and _CUT_SHORT.fullmatch(str(error)) is not None
    return is_of_numpy or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def cannot_write(root: Path, error: OSError) -> "CacheError":
    """Returns the error for a cache that nothing can be added to."""
    why = error.strerror or "no space left"
    return CacheError(
        f"the cache directory {root} cannot be written ({why}); free some space there, or set "
        f"data.cache_dir=DIRECTORY or {ENVIRONMENT_VARIABLE}=DIRECTORY to one that can"
    )


def _claim(root: Path, name: str, resumes: bool) -> tuple[Path, int]:
    """Returns a directory to build in, and the descriptor of its lock, which the process releases however it ends.

    An abandoned build is renamed, so only one of several processes gets it.
    """
    aside = root / f".{name}-{secrets.token_hex(4)}"
    for path in root.glob(f".{name}-*") if resumes else ():
        descriptor = _locked(path, lambda path, age: _is_of_this_machine(path) or age > ABANDONED_AFTER_S)
        if descriptor is not None:
            try:
                path.rename(aside)
            except OSError:  # another machine has it
                os.close(descriptor)
                continue
            if not _is_of_this_machine(aside):
                _sign(aside)
            return aside, descriptor
    aside.mkdir()
    descriptor = os.open(aside, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks: then no build counts as abandoned
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    _sign(aside)
    return aside, descriptor


def _sign(aside: Path) -> None:
    """Writes whose build it is, whole or not at all: one that a killed process had half written would be nobody's."""
    unnamed = aside / f".{_BUILDER}"
    unnamed.write_text(socket.gethostname())
    unnamed.replace(aside / _BUILDER)


def _is_of_this_machine(path: Path) -> bool:
    """Whether it was built on this machine, where locks are visible."""
    return (path / _BUILDER).is_file() and (path / _BUILDER).read_text() == socket.gethostname()


def _locked(path: Path, is_abandoned: Callable[[Path, float], bool]) -> int | None:
    """Locks `path` if no process builds it and `is_abandoned(path, seconds since a change)`; returns the descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # removed meanwhile, another user's, or no directory
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
        is_free = is_abandoned(path, time.time() - newest)
    except OSError:  # a process builds it, or has just removed it
        is_free = False
    if not is_free:
        os.close(descriptor)
    return descriptor if is_free else None


def _remove_abandoned(root: Path, name: str, patience_s: float) -> None:
    """Removes the partial builds and the lock files of processes that have ended, of the kind of `name`.

    A build holds a lock while it runs; another machine's lock may not be visible, so recent changes are kept.
    """
    kind = re.compile(rf"\.{re.escape(name.split('-')[0])}-[\w.-]*[0-9a-f]{{8}}(-[a-z0-9_]{{8}}|{re.escape(_LOCK)})")
    for path in [path for path in root.iterdir() if kind.fullmatch(path.name)]:
        if path.suffix == _LOCK:
            if (held := _locked_file(path)) is not None:
                path.unlink(missing_ok=True)
                os.close(held)
        elif (descriptor := _locked(path, lambda _, age: age > patience_s)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)


def _move(aside: Path, target: Path) -> None:
    try:
        aside.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same content
            raise
