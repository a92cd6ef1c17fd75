"""Result: how a run has ended, as a file in its directory, which exists only while nothing is left to train."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from trainkit import checkpoint
from trainkit.runtime import Runtime

RESULT_FILE = "result.json"


def write(runtime: Runtime, result: Mapping[str, Any]) -> None:
    """Writes result.json: `step`, `metrics`, `intervals`, `baselines`, `verdict`, `reason`, `budget`, `audit` of a run.

    `held_out`, `better`, `ideals` and `decisive` are what the verdict is computed from; see `Assessment.facts`.
    """
    if not runtime.ranks.is_main or runtime.run_dir is None:
        return
    try:
        checkpoint.write_text(runtime.run_dir / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    except OSError as error:  # without it a restarted run evaluates and reports again, which does no harm
        runtime.tracker.message(f"{RESULT_FILE} could not be written: {error.strerror or error}")


def read(runtime: Runtime, step: int) -> dict[str, Any] | None:
    """The result that was written after `step`; None where there is none. Collective: every rank must call."""
    found = None
    if runtime.ranks.is_main and runtime.run_dir is not None:
        with suppress(OSError, ValueError):
            found = json.loads((runtime.run_dir / RESULT_FILE).read_text())
    found = runtime.ranks.broadcast_object(found)
    return found if isinstance(found, dict) and found.get("step") == step else None


def forget(runtime: Runtime) -> None:
    """Removes result.json."""
    if runtime.ranks.is_main and runtime.run_dir is not None:
        (runtime.run_dir / RESULT_FILE).unlink(missing_ok=True)
