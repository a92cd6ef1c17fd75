"""Job: what a job file starts on each host, whatever the scheduler."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from trainkit.errors import ConfigError

CPUS_PER_PROCESS = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run, or the elements of an array of runs, by what is typed after `trainkit agent`.

    Args:
        words: `key=value` of the run, without `run_dir`.
        run_dir: of the run; of an array that of all of them. None: named after the job.
        lines: `key=value` of each element of an array, in addition; empty: no array.
        config_dir: a directory laid out like `conf/`.
    """

    words: tuple[str, ...] = ()
    run_dir: str | None = None
    lines: tuple[tuple[str, ...], ...] = ()
    config_dir: str | None = None

    @property
    def options(self) -> list[str]:
        """What stands before the configuration."""
        return [f"--config-dir={self.config_dir}"] if self.config_dir else []


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker of a sweep on each element of an array: all share one study.

    Args:
        words: a file of settings, and `key=values`, as of `trainkit sweep`.
        directory: of the sweep; on a file system that all hosts see.
        count: elements of the array.
        trials: of the whole sweep; None: as the settings say.
        config_dir: a directory laid out like `conf/`.
    """

    words: tuple[str, ...]
    directory: str
    count: int
    trials: int | None = None
    config_dir: str | None = None

    @property
    def arguments(self) -> list[str]:
        """What is typed after `trainkit`."""
        trials = [] if self.trials is None else ["--trials", str(self.trials)]
        options = [f"--config-dir={self.config_dir}"] if self.config_dir else []
        return ["sweep", *options, "--to", self.directory, *trials, *self.words]


def read_lines(text: str, name: str) -> tuple[tuple[str, ...], ...]:
    r"""Reads the elements of an array: a line of `key=value` for each; empty lines and comments are left out.

    Args:
        text: of the file.
        name: of the file, for messages.

    Raises:
        ConfigError: a line cannot be read, or there is none.

    Example:
        >>> read_lines("seed=0\nseed=1 optimizer.lr=1e-3  # higher\n", "seeds.txt")
        (('seed=0',), ('seed=1', 'optimizer.lr=1e-3'))
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ConfigError(f"{name}, line {number}: {line!r} cannot be read: {error}") from error
        if words:
            found.append(tuple(words))
    if not found:
        raise ConfigError(f"{name}: has no line with key=value; each line is an element of the array")
    return tuple(found)


def limited(text: str) -> tuple[str, int | None]:
    """Splits `--array` into what it names and how many elements run at the same time.

    Raises:
        ConfigError: the limit is below 1.

    Example:
        >>> limited("lines.txt%4"), limited("8")
        (('lines.txt', 4), ('8', None))
    """
    match = re.fullmatch(r"(.+?)%(\d+)", text)
    if match is None:
        return text, None
    if int(match[2]) < 1:
        raise ConfigError(f"--array={text}: after % must stand how many run at the same time, 1 or more")
    return match[1], int(match[2])


def split_run_dir(words: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Takes the last `run_dir=` out of `key=value`.

    Example:
        >>> split_run_dir(["recipe=bert", "run_dir=runs/a"])
        (('recipe=bert',), 'runs/a')
    """
    given = [word.partition("=")[2] for word in words if word.startswith("run_dir=")]
    return tuple(word for word in words if not word.startswith("run_dir=")), given[-1] if given else None


def processes(wanted: int | str, gpus: int) -> int:
    """How many processes run on a host: `auto` is one for each GPU, and one without GPUs.

    Example:
        >>> processes("auto", 8), processes("auto", 0), processes(4, 0)
        (8, 1, 4)
    """
    return int(wanted) if wanted != "auto" else max(gpus, 1)
