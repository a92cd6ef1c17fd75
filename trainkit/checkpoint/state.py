"""What a run is: its engines, where it stands, and whatever else its loop wants to remember."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainkit.checkpoint import store
from trainkit.engine import Engine
from trainkit.errors import CheckpointError, ConfigError

PARTS = ("module", "optimizer", "average")


def save(
    path: Path, engines: Mapping[str, Engine], *, position: int, values: Mapping[str, Any], is_writer: bool
) -> None:
    """Writes the engines, the position and JSON-able `values` as one checkpoint directory.

    Collective: every rank calls, and the one that `is_writer` writes.
    """
    tensors, scalars = {}, {}
    for name, engine in engines.items():
        state = engine.state()
        scalars[name] = state["scalars"]
        for part in PARTS:
            if state[part]:
                tensors[f"{name}.{part}"] = state[part]
    if not is_writer:
        return
    manifest = {"torch": torch.__version__, "position": position, "engines": scalars, "values": dict(values)}
    store.write(path, tensors, manifest)


def load(directory: Path, engines: Mapping[str, Engine]) -> dict[str, Any]:
    """Fills `engines` from the checkpoint at `directory`; its manifest. Nothing is changed unless every file is whole.

    Raises CheckpointError naming the file, engine or tensor that does not fit.
    """
    manifest = store.read_manifest(directory)
    store.verify(directory, manifest["files"])
    saved = manifest["engines"]
    if set(saved) != set(engines):
        raise CheckpointError(
            f"{directory} holds the engines {', '.join(sorted(saved))}; this run has {', '.join(sorted(engines))}"
        )
    for name, engine in engines.items():
        state: dict[str, Any] = {"scalars": saved[name]}
        for part in PARTS:
            file = f"{name}.{part}"
            state[part] = store.read_tensors(directory, file) if f"{file}.safetensors" in manifest["files"] else {}
        try:
            engine.load_state(state)
        except ConfigError as error:
            raise CheckpointError(f"{directory} does not fit this run: {error}") from error
    return manifest
