"""File changes: what a run does where files of its data were others than it took them for."""

from trainkit.data.comparisons import Comparisons
from trainkit.errors import DataError
from trainkit.runtime import Runtime


def note(runtime: Runtime, comparisons: Comparisons | None) -> None:
    """Adds to the manifest of the run how many files of large folders have been compared with what they were.

    Args:
        runtime: of the run.
        comparisons: of this rank; None: all files were looked at before the run began.
    """
    if comparisons is not None and (facts := comparisons.facts()):
        runtime.manifest.add("data", {"files_compared": facts})


def require_none(runtime: Runtime, comparisons: Comparisons, step: int, *, has_saved: bool) -> None:
    """Raises the error of the first rank that has found a change, on all ranks. Collective: every rank must call.

    Args:
        runtime: of the run.
        comparisons: of this rank.
        step: steps done.
        has_saved: whether there is a checkpoint of this step.

    Raises:
        DataError: what has changed, and what to type next.
    """
    found = comparisons.error()
    if found is not None:
        next_ = "start again to train on the files as they are now"
        if has_saved:
            next_ = (
                f"step {step} is saved in {runtime.run_dir}: start again with data_changed=accept to continue from it "
                f"on the files as they are now, or with another run_dir to begin with them"
            )
        found = DataError(f"{found}; {next_}")
    runtime.ranks.raise_first(found)
