"""Status: whether a run is going on, has finished or was killed, by what is in its directory."""

from pathlib import Path

from trainkit.checkpoint import run_directory
from trainkit.training.result import RESULT_FILE


def status_of(run_dir: Path) -> str:
    """Tells how a run stands, without waiting.

    Args:
        run_dir: its directory.

    Returns:
        `running`, `finished`, `killed` (its process is gone and has not said so), or `ended`: interrupted, or a loop
        of one's own, which writes no result.json.
    """
    holder = run_directory.state_of(run_dir)
    if holder == "held":
        return "running"
    if (run_dir / RESULT_FILE).is_file():
        return "finished"
    return "killed" if holder == "left" else "ended"
