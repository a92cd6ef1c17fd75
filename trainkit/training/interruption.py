"""Interruption: what is left behind, and said, where a signal ends a run that is to go on."""

import signal
from collections.abc import Mapping
from typing import Any

from trainkit.health.signals import REQUEUE_FILE, write_requeue
from trainkit.runtime import Runtime


def said_of(number: int, runtime: Runtime, step: int, config: Mapping[str, Any], resume: str) -> str:
    """After which step a signal has ended the run, and what goes on with it."""
    run_dir = runtime.run_dir
    is_dated = "%" in str(config.get("run_dir"))  # the same command would begin another
    told = f"{signal.Signals(number).name}: stopped after step {step}"
    if run_dir is None:
        return f"{told}; nothing was saved, for there is no run_dir"
    command = "the same command" + (f" with run_dir={run_dir}" if is_dated or resume != "auto" else "")
    command += " resume=auto" if resume != "auto" else ""
    return f"{told}, saved in {run_dir}; {command} goes on from there"


def leave_word(runtime: Runtime, number: int | None, step: int) -> None:
    """The file REQUEUE in the run directory: there after a signal `number`, and at no other time."""
    run_dir = runtime.run_dir
    if not runtime.ranks.is_main or run_dir is None:
        return
    if number is None:
        (run_dir / REQUEUE_FILE).unlink(missing_ok=True)
        return
    try:
        write_requeue(run_dir, number=number, step=step)
    except OSError as error:  # the checkpoint is there, and counts more
        runtime.tracker.message(f"{REQUEUE_FILE} could not be written: {error.strerror or error}")
