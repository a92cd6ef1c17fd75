"""Config file: the configuration of a run, in its directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit import checkpoint
from trainkit.config import to_yaml
from trainkit.errors import CheckpointError
from trainkit.runtime import Runtime


def write_config(runtime: Runtime, config: Mapping[str, Any], step: int) -> None:
    """Writes config.yaml; a different one of an earlier start is kept beside it. Collective: every rank must call.

    Args:
        runtime: of the run.
        config: its configuration.
        step: steps done so far.

    Raises:
        CheckpointError: on all ranks, where it cannot be written.
    """
    error = None
    if runtime.ranks.is_main and runtime.run_dir is not None:
        error = _written(runtime.run_dir, config, step)
    runtime.ranks.raise_first(error)


def _written(run_dir: Path, config: Mapping[str, Any], step: int) -> CheckpointError | None:
    path, text = run_dir / "config.yaml", to_yaml(config)
    try:
        if step and path.exists() and (before := path.read_text()) != text:
            checkpoint.write_text(path.with_name(f"config.until_step_{step:08d}.yaml"), before)
        checkpoint.write_text(path, text)
    except OSError as caught:
        return CheckpointError(
            f"run_dir={run_dir}: {path.name} cannot be written: {caught.strerror or caught}; make room there, or give "
            f"another run_dir"
        )
    return None
