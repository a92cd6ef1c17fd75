"""The state of a run in checkpoints: its engines, its position, and values of the loop."""

import json
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from trainkit.checkpoint import of_a_run, sharded, store
from trainkit.checkpoint.encrypted import EncryptedTensors
from trainkit.checkpoint.saver import Saver
from trainkit.distributed.ranks import Ranks
from trainkit.distributed.shard import DTYPES, Shard
from trainkit.encryption import Recipient, identities_in_use
from trainkit.engine.engine import Engine
from trainkit.errors import CheckpointError, ConfigError, UsageError

PARTS = ("module", "optimizer", "average", "error_feedback")


def save(
    path: Path,
    engines: Mapping[str, Engine],
    *,
    position: int,
    values: Mapping[str, Any],
    saver: Saver,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Starts to write one checkpoint directory. Collective: every rank must call.

    Args:
        path: the directory, which appears whole or not at all.
        engines: by name.
        position: samples in the steps done.
        values: JSON-able, by name.
        saver: copies and writes.
        then: called on rank 0 once the directory is in place.

    Raises:
        CheckpointError: for an earlier save of `saver`.
        UsageError: for a value that is not JSON-able.
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
    """A copy of `value`, as it is read from a manifest. Raises UsageError where it is not JSON-able."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{item!r} cannot be saved beside engines, because it is not JSON-able: {error}") from error


def find_whole(path: Path, ranks: Ranks, report: Callable[[str], None]) -> Path:
    """Finds and verifies a checkpoint; each file is read by one rank. Collective: every rank must call.

    Args:
        path: a checkpoint, or a run, whose newest complete checkpoint is returned.
        ranks: the processes of the job.
        report: called with a message about each checkpoint that is passed over.

    Returns:
        Its directory.

    Raises:
        CheckpointError: on all ranks; also where the key of an encrypted checkpoint is missing.
    """
    passed_over: list[CheckpointError] = []
    for directory in _on_first(ranks, lambda: of_a_run.candidates(path, report)):
        error: CheckpointError | ConfigError | None = None
        try:
            manifest = store.read_outside(directory)
            share = list(manifest["files"].items())[ranks.rank :: ranks.world_size]
            store.verify(directory, dict(share))
            if "encrypted_for" in manifest:  # before anything is changed by what it holds
                authenticate(directory, [name for name, _ in share])
        except (CheckpointError, ConfigError) as caught:
            error = caught
        try:
            ranks.raise_first(error)
        except CheckpointError as caught:
            if directory == path or isinstance(caught, store.MissingKeyError):
                raise
            report(f"passed over: {caught}")
            passed_over.append(caught)
            continue
        return directory
    raise of_a_run.no_complete_checkpoint(path, passed_over)


def _on_first(ranks: Ranks, look: Callable[[], list[Path]]) -> list[Path]:
    """The result of `look` on rank 0, on all ranks."""
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
    """Fills engines from a verified checkpoint. Collective: every rank must call.

    Args:
        directory: of the checkpoint.
        engines: by name.
        manifest: of the checkpoint.
        group: of all ranks; None for one process.

    Returns:
        Lines about hyper-parameters of this run that differ from the checkpoint's and stay in effect.

    Raises:
        CheckpointError: naming the engine or tensor that does not fit; nothing is changed then.
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
    """Shapes and dtypes of a checkpoint's tensors.

    Args:
        manifest: of the checkpoint.

    Returns:
        Shape and dtype by `engine.part` and path.
    """
    found: dict[str, dict[str, tuple[torch.Size, torch.dtype]]] = {}
    for name, entry in manifest["tensors"].items():
        part, _, path = name.partition("/")
        found.setdefault(part, {})[path] = torch.Size(entry["shape"]), DTYPES[entry["dtype"]]
    return found


def read_whole(
    directory: Path, wanted: Container[str] | None = None, manifest: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Reads whole tensors of a checkpoint, in one process.

    Args:
        directory: of the checkpoint.
        wanted: names of tensors, such as `network.module/weight`; None: all.
        manifest: of the checkpoint; None: it is read.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: when a file cannot be read; `verify` finds one that was changed.
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


def authenticate(directory: Path, names: Container[str] | None = None) -> None:
    """Verifies by the key in use that each byte of an encrypted checkpoint is what its writer wrote.

    Checksums are compared without a key, and whoever changes a file can change them, too.

    Args:
        directory: of the checkpoint.
        names: of its files; None: all.

    Raises:
        CheckpointError: naming a file that was changed, or is of another checkpoint.
    """
    manifest = store.read_manifest(directory)
    for name in manifest["files"]:
        if name != store.SECRET_MANIFEST and (names is None or name in names):  # that one was just read
            with EncryptedTensors(directory / name, identities_in_use(), seal=manifest["seal"]) as file:
                file.authenticate()


def write_one_file(path: Path, tensors: Mapping[str, Tensor], recipients: Sequence[Recipient] = ()) -> None:
    """Writes one safetensors file, completely or not at all.

    Args:
        path: the file.
        tensors: by name, on the CPU.
        recipients: for whom it is encrypted; empty: it is not.

    Raises:
        CheckpointError: where it exists already, or cannot be written.
    """
    if path.exists():
        raise CheckpointError(f"{path} exists already: set another --output")
    half = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sharded.write_safetensors(half, tensors, {"format": "pt"}, recipients)
        half.rename(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise CheckpointError(f"could not write {path}: {error.strerror or error}") from error
