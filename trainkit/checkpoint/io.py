"""CheckpointIO: the checkpoints that one run writes and reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit import checkpoint
from trainkit.distributed.ranks import BESIDE, Ranks
from trainkit.encryption import Recipient
from trainkit.engine.engine import Engine


@dataclass(frozen=True)
class Loaded:
    """The contents of a checkpoint beside its engines."""

    position: int
    """Samples in the steps done: where `batches(..., start=position)` continues."""
    values: dict[str, Any]
    """What was saved beside the engines, by name."""


class CheckpointIO:
    """Saves and loads the checkpoints of a run; at most one save is being written at a time.

    Args:
        ranks: the processes that each write and read their own part.
        report: called with lines about saves that failed or were tried again, and checkpoints that were passed over.
        recipients: for whom checkpoints are encrypted; empty: they are not.
    """

    def __init__(self, ranks: Ranks, report: Callable[[str], None], *, recipients: Sequence[Recipient] = ()) -> None:
        self._ranks, self._report, self._recipients = ranks, report, recipients
        self._saver: checkpoint.Saver | None = None
        self.found: Path | None = None
        """The checkpoint that `find` has found last."""

    def save(
        self, path: str | Path, items: Mapping[str, Any], *, position: int, then: Callable[[], None] = lambda: None
    ) -> None:
        """Copies engines and values, and starts to write them. Collective: every rank must call.

        Args:
            path: the directory, which appears whole or not at all.
            items: engines and JSON-able values by name.
            position: samples in the steps done.
            then: called on rank 0 once the directory is in place.

        Raises:
            CheckpointError: also for an earlier save that has not been waited for.
        """
        if self._saver is None:
            group = self._ranks.new_group(BESIDE)
            self._saver = checkpoint.Saver(
                group=group, rank=self._ranks.rank, report=self._report, recipients=self._recipients
            )
        engines = {name: item for name, item in items.items() if isinstance(item, Engine)}
        values = {name: item for name, item in items.items() if name not in engines}
        checkpoint.save(Path(path), engines, position=position, values=values, saver=self._saver, then=then)

    @property
    def has_saved(self) -> bool:
        """Whether `save` was called."""
        return self._saver is not None

    def finish(self, timeout_s: float | None = None) -> None:
        """Waits for the save that is being written, if any, for at most `timeout_s`. Collective.

        Raises:
            CheckpointError: if it failed.
        """
        if self._saver is not None:
            self._saver.finish(timeout_s=timeout_s)

    def find(self, path: str | Path) -> Path:
        """The checkpoint that `path` means, every byte of it verified. Collective: every rank must call.

        Args:
            path: a checkpoint, or a run, of which the newest whole one is meant; those passed over are reported.

        Raises:
            CheckpointError: on all ranks.
        """
        if self.found is None or self.found != Path(path):
            self.found = checkpoint.find_whole(Path(path), self._ranks, report=self._report)
        return self.found

    def load(self, path: str | Path, engines: Mapping[str, Engine]) -> Loaded:
        """Fills `engines` from the checkpoint that `path` means. Collective: every rank must call.

        Raises:
            CheckpointError: naming what does not fit.
        """
        directory = self.find(path)
        manifest = checkpoint.read_manifest(directory)
        for line in checkpoint.load(directory, engines, manifest=manifest, group=self._ranks.group):
            self._report(line)
        return Loaded(manifest["position"], manifest["values"])

    def close(self) -> None:
        """Forgets the thread that writes, which has ended or will not be waited for."""
        self._saver = None
