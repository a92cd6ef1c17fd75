"""Copier: copies checkpoints to a store while training goes on, the newest first."""

import threading
from collections.abc import Callable
from pathlib import Path

from trainkit.checkpoint.copies import Copies, ReplacedError
from trainkit.errors import CheckpointError, StorageError


class Copier:
    """A thread that copies one checkpoint at a time. Of those that wait, the newest is next.

    Args:
        copies: where they go.
        report: called with a message about a copy that failed.
    """

    def __init__(self, copies: Copies, report: Callable[[str], None]) -> None:
        self.copies, self._report = copies, report
        self.after: Callable[[Copies], None] = lambda copies: None
        """Called after each copy, in the thread: removes those that are not to be kept."""
        self.in_use: Path | None = None
        """The checkpoint that is being copied, which must stay until it is."""
        self._waiting: dict[Path, str] = {}
        self._error: CheckpointError | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, directory: Path, name: str) -> None:
        """Copies a checkpoint soon; returns at once.

        Args:
            directory: of the checkpoint, which is complete.
            name: of the copy, relative to the folder.
        """
        with self._changed:
            self._waiting.pop(directory, None)
            self._waiting[directory] = name
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trainkit-copies", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Waits until all is copied, or has failed.

        Returns:
            Whether it is.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and self.in_use is None, timeout_s)

    def take_error(self) -> CheckpointError | None:
        """Returns why the last copy failed, once; None where it did not."""
        error, self._error = self._error, None
        return error

    def describe(self) -> str:
        """What is waited for, for people."""
        directory = self.in_use
        return (
            f"waiting for the copy of {directory.name if directory else 'a checkpoint'} to {self.copies.folder.shown}"
        )

    # -- inside ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                self.in_use, name = self._waiting.popitem()
            try:
                self._copy(self.in_use, name)
            finally:
                with self._changed:
                    self.in_use = None
                    self._changed.notify_all()

    def _copy(self, directory: Path, name: str) -> None:
        try:
            self.copies.put(directory, name)
            self._error = None
        except ReplacedError:  # pruned while it waited, or written again, and added again then
            return
        except (CheckpointError, StorageError, OSError) as error:
            where = f"{self.copies.folder.shown}: {error}"
            self._error = CheckpointError(f"{directory} was not copied to {where}; the same command copies it later")
            self._report(f"{directory} was not copied to {where}; training continues")
            return
        try:
            self.after(self.copies)
        except (CheckpointError, StorageError, OSError) as error:
            self._report(f"old copies in {self.copies.folder.shown} could not be removed: {error}")
