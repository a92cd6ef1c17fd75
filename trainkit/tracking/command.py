"""Command: a line to type in a shell, such that it works where the user stands."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def as_typed(words: Sequence[str]) -> str:
    """`words` as one line for a shell; the first one, such as `python` or `trainkit`, becomes what starts it from here.

    Of programs with that name, the one beside the running interpreter is meant: after `make train` it is in .venv/bin,
    which is not on the PATH.
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
