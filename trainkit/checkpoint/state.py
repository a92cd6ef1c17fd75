"""What a run is: its engines, where it stands, and whatever else its loop wants to remember."""

import json
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from trainkit.checkpoint import sharded, store
from trainkit.checkpoint.saver import Saver
from trainkit.distributed.ranks import Ranks
from trainkit.distributed.shard import DTYPES, Shard
from trainkit.engine.engine import Engine
from trainkit.errors import CheckpointError, ConfigError, UsageError

PARTS = ("module", "optimizer", "average", "feedback")


def save(
    path: Path,
    engines: Mapping[str, Engine],
    *,
    position: int,
    values: Mapping[str, Any],
    saver: Saver,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Starts to write the engines, the position and JSON-able `values` as one checkpoint directory; see Saver.

    Collective: every rank calls.
    """
    shards = {
        f"{name}.{part}/{key}": shard
        for name, engine in engines.items()
        for part, by_key in engine.state.shards().items()
        for key, shard in by_key.items()
    }
    facts = {
        "torch": torch.__version__,
        "position": position,
        "engines": {name: engine.state.scalars() for name, engine in engines.items()},
        "values": {item: _as_json(item, value) for item, value in values.items()},
    }
    buffers = {
        f"{name}.{part}/{key}"
        for name, engine in engines.items()
        for part in ("module", "average")
        for key, _ in engine.module.named_buffers()
    }
    saver.save(path, shards, facts, from_first=buffers, then=then)


def _as_json(item: str, value: Any) -> Any:
    """`value` as a manifest gives it back, which a later change of the value does not reach. Raises UsageError."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{item!r} cannot be saved beside engines, because it is not JSON-able: {error}") from error


def find_whole(path: Path, ranks: Ranks, report: Callable[[str], None]) -> Path:
    """The checkpoint that `path` means: itself, or the newest whole one of a run's; each file is verified by one rank.

    Those passed over are told to `report`. Raises CheckpointError on all ranks. Collective: every rank calls.
    """
    for directory in _on_first(ranks, lambda: store.candidates(path, report)):
        error = None
        try:
            files = store.read_manifest(directory)["files"]
            store.verify(directory, dict(list(files.items())[ranks.rank :: ranks.world_size]))
        except CheckpointError as caught:
            error = caught
        try:
            ranks.raise_first(error)
        except CheckpointError as caught:
            if directory == path:
                raise
            report(f"passed over: {caught}")
            continue
        return directory
    raise store.none_is_whole(path)


def _on_first(ranks: Ranks, look: Callable[[], list[Path]]) -> list[Path]:
    """What rank 0 sees, so that all see the same."""
    found: list[Path] = []
    error = None
    if ranks.is_main:
        try:
            found = look()
        except CheckpointError as caught:
            error = caught
    ranks.raise_first(error)
    return ranks.broadcast_object(found)


def load(
    directory: Path, engines: Mapping[str, Engine], *, manifest: Mapping[str, Any], group: dist.ProcessGroup | None
) -> list[str]:
    """Fills `engines` from the checkpoint at `directory`, whose files were verified, and of which `manifest` tells.

    Returns lines about hyper-parameters that stay what this run was given, though the checkpoint has others.
    Raises CheckpointError naming the engine or tensor that does not fit; nothing is changed then. Collective.
    """
    saved = manifest["engines"]
    if set(saved) != set(engines):
        raise CheckpointError(
            f"{directory} holds the engines {', '.join(sorted(saved))}; this run has {', '.join(sorted(engines))}"
        )
    shapes = shapes_of(manifest)
    into: dict[str, Shard] = {}
    places: dict[str, dict[str, dict[str, Shard]]] = {}
    try:
        for name, engine in engines.items():
            engine.state.choose_plan(saved[name])
            places[name] = engine.state.empty({part: shapes.get(f"{name}.{part}", {}) for part in PARTS})
            for part, by_path in places[name].items():
                into.update({f"{name}.{part}/{path}": shard for path, shard in by_path.items()})
    except ConfigError as error:
        raise CheckpointError(f"{directory} does not fit this run: {error}") from error
    try:
        sharded.read(directory, manifest, into, group)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise CheckpointError(f"{directory} could not be read: {sharded.reason_of(error)}") from error
    try:
        return [f"{name}: {line}" for name, e in engines.items() for line in e.state.loaded(places[name], saved[name])]
    except ConfigError as error:
        raise CheckpointError(f"{directory} does not fit this run: {error}") from error


def shapes_of(manifest: Mapping[str, Any]) -> dict[str, dict[str, tuple[torch.Size, torch.dtype]]]:
    """`engine.part` -> path -> shape and dtype of what a checkpoint holds."""
    found: dict[str, dict[str, tuple[torch.Size, torch.dtype]]] = {}
    for name, entry in manifest["tensors"].items():
        part, _, path = name.partition("/")
        found.setdefault(part, {})[path] = torch.Size(entry["shape"]), DTYPES[entry["dtype"]]
    return found


def read_whole(
    directory: Path, wanted: Container[str] | None = None, manifest: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Whole tensors of the checkpoint at `directory` by name (`network.module/weight`): those `wanted`, or all.

    Raises CheckpointError when a file cannot be read; `verify` finds one that was changed.
    """
    manifest = manifest or store.read_manifest(directory)
    whole = {
        name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        for name, entry in manifest["tensors"].items()
        if wanted is None or name in wanted
    }
    try:
        sharded.read(directory, manifest, {name: Shard.whole(tensor) for name, tensor in whole.items()}, None)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise CheckpointError(f"{directory} could not be read: {sharded.reason_of(error)}") from error
    return whole


def write_one_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes one safetensors file, whole or not at all. Raises CheckpointError: it is there already; no space."""
    if path.exists():
        raise CheckpointError(f"{path} is there already: give another --output")
    half = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sharded.write_safetensors(half, tensors, {"format": "pt"})
        half.rename(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise CheckpointError(f"could not write {path}: {error.strerror or error}") from error
