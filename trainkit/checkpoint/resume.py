"""Resume: the one decision which checkpoint a run resumes."""

from pathlib import Path

from trainkit.checkpoint.store import step_directories
from trainkit.distributed.agent import is_restart
from trainkit.errors import ConfigError


def to_resume(resume: str, run_dir: Path | None) -> Path | None:
    """Decides which run or checkpoint a run resumes, as this process sees the directory.

    Args:
        resume: `auto`, `never`, or the path of a run or a checkpoint.
        run_dir: of the run; None: it has none.

    Returns:
        A directory of checkpoints, or `resume` as a path; None: the run starts from scratch.

    Raises:
        ConfigError: for `never` in a run directory that has checkpoints.
    """
    own = run_dir / "checkpoints" if run_dir is not None else None
    has_own = own is not None and bool(step_directories(own))
    if has_own and is_restart():
        return own  # a restarted job resumes its own checkpoints, not those that it started from
    if resume == "never":
        if has_own:
            raise ConfigError(
                f"resume=never, and {own} holds checkpoints: give another run_dir, or resume=auto to resume"
            )
        return None
    if resume == "auto":
        return own if has_own else None
    return Path(resume).expanduser()
