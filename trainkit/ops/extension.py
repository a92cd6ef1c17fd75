"""Ops written by users, compiled and cached like trainkit's own."""

from pathlib import Path

import torch

from trainkit.errors import ConfigError
from trainkit.ops import build, library


def load_extension(directory: str | Path) -> library.Library:
    """Compiles every .cpp in a directory, and for a CUDA build of torch every .cu, into one library, and loads it.

    The ops that its STABLE_TORCH_LIBRARY_FRAGMENT defines are then in `torch.ops`. `#include "common/..."` finds
    trainkit's own headers; TRAINKIT_CUDA is defined in .cpp files where the .cu files are compiled too. A library that
    was compiled before is taken from the cache; of ranks that start at the same time, one compiles.

    Args:
        directory: of the sources.

    Returns:
        The library: its `path`, and its `archs`, which are empty without nvcc.

    Raises:
        ConfigError: without a source or a compiler, and where compilation fails, with the first lines of its output.
    """
    folder = Path(directory).expanduser().resolve()
    if not list(folder.rglob("*.cpp")):
        raise ConfigError(f"load_extension({str(directory)!r}): there is no .cpp in {folder}")
    try:
        plan = build.plan(folder)
    except build.BuildError as error:
        raise ConfigError(f"load_extension({str(directory)!r}): {error}") from error
    return load(plan)


def load(plan: build.Plan) -> library.Library:
    """Builds the library of a plan, unless the cache has it, and loads it. Raises ConfigError."""
    built = library.ensure(plan)
    torch.ops.load_library(built)
    return library.Library(built, plan.description)
