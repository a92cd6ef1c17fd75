"""The output of commands, and the paths that they take."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.errors import ConfigError, nearest
from trainkit.public_url import is_url, redacted

if TYPE_CHECKING:
    from rich.console import Console

    from trainkit.topology.topology import Topology

PLAIN_WIDTH = 120
PICTURES = (".svg", ".png", ".pdf")


def rank() -> int:
    """The rank of this process, from the environment."""
    return int(os.environ.get("RANK", 0))


def console() -> "Console":
    """A console on stdout; 120 columns wide where that is no terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, highlight=False, markup=False)


def say(text: str) -> None:
    """Prints a line to stderr."""
    print(f"trainkit: {text}", file=sys.stderr, flush=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context that turns an OSError for `path` into a ConfigError about --output."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--output={path} cannot be written: {error.strerror or error}") from error


def check_picture(path: Path | None) -> None:
    """Raises ConfigError for a file of --output that cannot be drawn into; None: there is none."""
    if path is not None and path.suffix not in PICTURES:
        raise ConfigError(f"--output={path}: must end in {', '.join(PICTURES)}")


def check_format(wire_dtype: str) -> None:
    """Raises ConfigError for an unknown --wire-dtype."""
    from trainkit.planning.reduce_plan import WIRE_DTYPES

    if wire_dtype not in WIRE_DTYPES:
        raise ConfigError(
            f"--wire-dtype={wire_dtype}: must be one of {', '.join(WIRE_DTYPES)}.{nearest(wire_dtype, WIRE_DTYPES)}"
        )


def in_time(time_us: float) -> str:
    """A time as text, such as `12.3 ms`."""
    if time_us < 1000:
        return f"{time_us:.0f} us"
    return f"{time_us / 1e3:.3g} ms" if time_us < 1e6 else f"{time_us / 1e6:.3g} s"


def count(topology: "Topology") -> str:
    """The numbers of ranks and hosts as text, such as `4 ranks on 2 hosts`."""
    hosts, ranks = len(topology.hosts), topology.world_size
    return f"{ranks} rank{'s' if ranks > 1 else ''} on {hosts} host{'s' if hosts > 1 else ''}"


def path_here(text: str) -> Path:
    """Returns a path of this machine, for argparse; a URL is an error that says so."""
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{redacted(text)}: what lies behind a URL is not read here; copy it to a disk"
        )
    return Path(text)
