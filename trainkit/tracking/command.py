"""Command: a line that can be typed in a shell from where the user stands."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def as_typed(words: Sequence[str]) -> str:
    """Joins `words` to one line for a shell, with the first word replaced by a program that starts from here.

    Of several programs with that name, the one beside the running interpreter is used: after `make train` it is in
    .venv/bin, which is not on the PATH.

    Args:
        words: the program, such as `python` or `trainkit`, and its arguments, unquoted.

    Returns:
        The line, quoted for a POSIX shell.

    Example:
        >>> as_typed(["ls", "my run"])
        "ls 'my run'"
    """
    program, *rest = words
    return shlex.join([*_program(program), *rest])


def _program(name: str) -> list[str]:
    beside = Path(sys.executable).parent
    found = shutil.which(name)
    if found is not None and Path(found).parent.samefile(beside):
        return [name]
    path = Path(sys.executable) if name == "python" else beside / name
    if path.is_file():
        here = Path.cwd()
        return [str(path.relative_to(here) if path.is_relative_to(here) else path)]
    return [*_program("python"), "-m", "trainkit.cli"] if name == "trainkit" else [name]
