"""Ops written by users: compiled with the builder, the cache and the lock of trainkit's own."""

from pathlib import Path

import torch

from trainkit.errors import ConfigError
from trainkit.ops import build, library


def load_extension(directory: str | Path) -> library.Library:
    """Compiles every .cpp in `directory`, and for a CUDA build of torch every .cu, into one library, and loads it.

    What its STABLE_TORCH_LIBRARY_FRAGMENT defines is in `torch.ops` then. `#include "common/..."` finds trainkit's own
    headers; TRAINKIT_CUDA is defined in .cpp files when the .cu files are compiled too. What was compiled before is
    taken from the cache; of ranks that start at once, one compiles.
    Returns what was loaded: its `path`, and its `archs`, none where there was no nvcc. Raises ConfigError without a
    source or a compiler, and with the compiler's first lines when it fails.
    """
    place = Path(directory).expanduser().resolve()
    if not list(place.rglob("*.cpp")):
        raise ConfigError(f"load_extension({str(directory)!r}): there is no .cpp in {place}")
    try:
        plan = build.plan(place)
    except build.BuildError as error:
        raise ConfigError(f"load_extension({str(directory)!r}): {error}") from error
    return load(plan)


def load(plan: build.Plan) -> library.Library:
    """Builds what `plan` says unless the cache has it, and loads it. Raises ConfigError."""
    built = library.ensure(plan)
    torch.ops.load_library(built)
    return library.Library(built, plan.description)
