"""Interruption: what is written and logged where a signal ends a run that is to be resumed."""

import signal
from collections.abc import Mapping
from typing import Any

from trainkit.health.signals import REQUEUE_FILE, write_requeue
from trainkit.runtime import Runtime


def message_of(
    number: int, runtime: Runtime, step: int, config: Mapping[str, Any], resume: str, *, has_saved: bool
) -> str:
    """A line that names the signal, the last step, and the command that resumes the run.

    Args:
        number: of the signal.
        runtime: of the run.
        step: steps done.
        config: of the run.
        resume: as configured.
        has_saved: whether there is a checkpoint that is newer than what the job began with.
    """
    run_dir = runtime.run_dir
    is_dated = "%" in str(config.get("run_dir"))  # the same command would start another run
    stopped = f"{signal.Signals(number).name}: stopped after step {step}"
    if run_dir is None:
        return f"{stopped}; nothing was saved: there is no run_dir"
    if not has_saved and number != signal.SIGINT:
        return (
            f"{stopped}, with no checkpoint that is newer than what this job began with: started again, it would come "
            f"no further; give it more time between its start and the signal, or a smaller save_every"
        )
    command = "the same command" + (f" with run_dir={run_dir}" if is_dated or resume != "auto" else "")
    command += " resume=auto" if resume != "auto" else ""
    return f"{stopped}, saved in {run_dir}; {command} resumes it"


def mark_requeue(runtime: Runtime, number: int | None, step: int) -> None:
    """Writes the file REQUEUE in the run directory after a signal, and removes it otherwise.

    Args:
        runtime: of the run.
        number: of the signal; None removes the file.
        step: steps done.
    """
    run_dir = runtime.run_dir
    if not runtime.ranks.is_main or run_dir is None:
        return
    if number is None:
        (run_dir / REQUEUE_FILE).unlink(missing_ok=True)
        return
    try:
        write_requeue(run_dir, number=number, step=step)
    except OSError as error:  # the checkpoint was written, which matters more
        runtime.tracker.message(f"{REQUEUE_FILE} could not be written: {error.strerror or error}")
