"""Account: what a run says of itself at its start and at its end."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainkit.command import as_typed
from trainkit.data.batch import Batch
from trainkit.engine import Engine
from trainkit.errors import UntrustedError
from trainkit.runtime import Runtime
from trainkit.tracking.console import number
from trainkit.trust import require_ours


def of_engine(runtime: Runtime, name: str, engine: Engine, first: Batch | None) -> Iterator[str]:
    """Its size, and how the global batch `first` is split; without a batch only the size."""
    ranks = runtime.world_size
    yield f"{name}: {sum(map(sum, engine.parameter_sizes())):,} parameters"
    yield f"{name}: on each rank, predicted: {runtime.predict(engine)}"
    if first is not None:
        samples = -(-first.size // (ranks * engine.accumulation))
        is_even = first.size == ranks * samples * engine.accumulation
        yield (
            f"{name}: global batch {first.size} = {ranks} ranks x {'' if is_even else 'up to '}{samples} samples "
            f"x {engine.accumulation} micro-batches"
        )


def of_end(
    step: int, metrics: Mapping[str, float], run_dir: Path | None, kept: str | None, commands: Sequence[Sequence[str]]
) -> Iterator[str]:
    """What was measured last, where what was trained is, and what to type to use it.

    kept: the checkpoint to use, as a sentence.  commands: as `Recipe.next_commands` returns them.
    """
    measured = ", ".join(f"{name} {number(value)}" for name, value in metrics.items())
    yield f"ended after step {step}: {measured or 'nothing was measured'}"
    if run_dir is None:
        yield "nothing was saved, for there is no run_dir"
        return
    if kept is not None:
        yield kept
    yield f"run directory: {run_dir}"
    for words in commands:
        yield f"next: {as_typed(words)}"


def commands_of(run_dir: Path, config: Mapping[str, Any]) -> list[list[str]]:
    """What every run can be used for, that of a user's own recipe included.

    config: as checkpoints hold it; empty for a Trainer that was made without.
    """
    if "recipe" not in config:
        return [["trainkit", "checkpoint", "ls", str(run_dir)]]
    try:
        require_ours({key: node for key, node in config.items() if key not in ("tracking", "comm")})
    except UntrustedError:
        return [["trainkit", "evaluate", str(run_dir), "--trust"]]
    return [["trainkit", "evaluate", str(run_dir)]]
