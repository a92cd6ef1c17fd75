"""CheckpointIO: the checkpoints that one run writes and reads."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainkit import checkpoint
from trainkit.checkpoint.copier import Copier
from trainkit.checkpoint.copies import Copies
from trainkit.checkpoint.fetching import fetch_newest, found_at
from trainkit.distributed.agent import is_restart
from trainkit.distributed.ranks import BESIDE, Ranks
from trainkit.encryption import Recipient
from trainkit.engine.engine import Engine
from trainkit.errors import CheckpointError, ConfigError, TrainkitError
from trainkit.public_url import is_url, redacted

_FETCHED = "fetched"
"""The folder of a run directory with what was copied from a store to start from."""
_WAIT_S = 5.0


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
        run_dir: of the run; None: it has none.
        copies: where checkpoints are copied to; None: nowhere.
    """

    def __init__(
        self,
        ranks: Ranks,
        report: Callable[[str], None],
        *,
        recipients: Sequence[Recipient] = (),
        run_dir: Path | None = None,
        copies: Copies | None = None,
    ) -> None:
        self._ranks, self._report, self._recipients = ranks, report, recipients
        self._run_dir, self._has_copies = run_dir, copies is not None
        self.copier = Copier(copies, report) if copies is not None and ranks.is_main else None
        """Of rank 0; None: there are no copies."""
        self._fetched: dict[str, Path] = {}
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
            CheckpointError: also for an earlier save that has not been waited for, and a URL in the place of a path.
        """
        if is_url(str(path)):
            raise CheckpointError(f"{path} is in a store: save to a directory, and give Runtime(copy_to={path})")
        if self._saver is None:
            group = self._ranks.new_group(BESIDE)
            self._saver = checkpoint.Saver(
                group=group, rank=self._ranks.rank, report=self._report, recipients=self._recipients
            )
        engines = {name: item for name, item in items.items() if isinstance(item, Engine)}
        values = {name: item for name, item in items.items() if name not in engines}
        whole, copier = Path(path), self.copier

        def written() -> None:
            if copier is not None:
                copier.add(whole, self._name_of_copy(whole))
            then()

        checkpoint.save(whole, engines, position=position, values=values, saver=self._saver, then=written)

    def _name_of_copy(self, path: Path) -> str:
        """The path in the run directory; of a checkpoint elsewhere, its last part."""
        if self._run_dir is not None and path.resolve().is_relative_to(self._run_dir.resolve()):
            return path.resolve().relative_to(self._run_dir.resolve()).as_posix()
        return path.name

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

    def finish_copies(self, during: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Waits until all that was saved is copied to the store, if to any. Collective: every rank must call.

        Args:
            during: entered every few seconds while it waits.

        Raises:
            CheckpointError: on all ranks, where the newest could not be copied.
        """
        if not self._has_copies:
            return
        is_done, is_said, copier = False, False, self.copier
        while not is_done:
            with during():  # the others wait as short, so that nothing takes this for a hang
                is_done = self._ranks.broadcast_object(copier.wait(_WAIT_S) if copier is not None else True)
            if copier is not None and not (is_done or is_said):
                self._report(copier.describe())
                is_said = True
        self._ranks.raise_first(copier.take_error() if copier is not None else None)

    def to_resume(self, resume: str) -> Path | None:
        """The run or checkpoint that `resume` means, fetched where it is in a store. Rank 0 alone.

        Args:
            resume: `auto`, `never`, or the path or URL of a run or a checkpoint.

        Returns:
            Its path; None: the run starts from scratch.

        Raises:
            CheckpointError: where it cannot be fetched.
            ConfigError: for `never` where there are checkpoints, and a URL without a run directory.
            StorageError: where the store does not answer.
        """
        copies = self.copier.copies if self.copier is not None else None
        if not is_url(resume):
            return checkpoint.to_resume(resume, self._run_dir, copies, self._report)
        restarted = checkpoint.to_resume("auto", self._run_dir, copies, self._report) if is_restart() else None
        return restarted or self._fetch(resume)

    def _fetch(self, url: str) -> Path:
        """Copies the newest checkpoint of a URL into the run directory, once."""
        if url not in self._fetched:
            if self._run_dir is None:
                raise ConfigError(
                    f"{redacted(url)} needs a run_dir, into which it is copied; or type: trainkit checkpoint fetch "
                    f"{redacted(url)} --to DIRECTORY"
                )
            self._fetched[url] = fetch_newest(found_at(url), self._run_dir / _FETCHED, self._report)
        return self._fetched[url]

    def find(self, path: str | Path) -> Path:
        """The checkpoint that `path` means, every byte of it verified. Collective: every rank must call.

        Args:
            path: a checkpoint, or a run, of which the newest whole one is meant; those passed over are reported. One
                in a store is copied into the run directory.

        Raises:
            CheckpointError: on all ranks.
            StorageError: on all ranks, where the store does not answer.
        """
        if is_url(str(path)):
            path = self._on_first(partial(self._fetch, str(path)))
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

    def close(self, timeout_s: float | None = None) -> None:
        """Waits for copies, on the rank that makes them, and forgets the thread that writes.

        Args:
            timeout_s: seconds to wait; None: no limit.

        Raises:
            CheckpointError: where the newest could not be copied.
        """
        self._saver = None
        if self.copier is None:
            return
        if not self.copier.wait(_WAIT_S if timeout_s is None else timeout_s) and timeout_s is None:
            self._report(self.copier.describe())
            while not self.copier.wait(_WAIT_S):
                pass
        if (error := self.copier.take_error()) is not None:
            raise error

    def _on_first(self, look: Callable[[], Path]) -> Path:
        found, error = Path(), None
        if self._ranks.is_main:
            try:
                found = look()
            except TrainkitError as caught:
                error = caught
        self._ranks.raise_first(error)
        return self._ranks.broadcast_object(found)
