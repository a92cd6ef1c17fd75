"""Saver: copies the tensors of a checkpoint, and writes them while training continues."""

import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from trainkit.checkpoint import sharded, store
from trainkit.distributed.shard import Shard
from trainkit.encryption import Recipient
from trainkit.errors import CheckpointError

PAUSES_S: tuple[float, ...] = (1.0, 5.0)
"""Seconds between the attempts at a save that fails."""


class Saver:
    """Writes one checkpoint at a time. Every rank makes one, and calls the same methods in the same order.

    Args:
        group: a gloo group of all ranks that is used for nothing else; None for one process.
        rank: of this process.
        report: called with a message about a save that failed or is tried again.
        recipients: for whom checkpoints are encrypted; empty: they are not.
    """

    def __init__(
        self,
        *,
        group: dist.ProcessGroup | None,
        rank: int,
        report: Callable[[str], None] = lambda text: None,
        recipients: Sequence[Recipient] = (),
    ) -> None:
        self.group, self.rank, self.report, self.recipients = group, rank, report, recipients
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def save(
        self,
        path: Path,
        tensors: Mapping[str, Shard],
        facts: Mapping[str, Any],
        *,
        from_first: Collection[str] = (),
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Copies tensors to host memory, and starts a thread that writes them. Collective: every rank must call.

        Waits for the last save first.

        Args:
            path: the checkpoint directory, which appears whole or not at all.
            tensors: the shards that this rank holds, by name.
            facts: entries of the manifest beside the tensors.
            from_first: names of tensors whose values may differ between ranks; those of the first rank are written.
            then: called on rank 0 once the directory is in place.

        Raises:
            CheckpointError: for the last save.
        """
        self.finish()
        staged = self._stage(self._to_write(tensors, from_first))
        self._thread = threading.Thread(
            target=self._write, args=(path, staged, facts, then), name="trainkit-save", daemon=True
        )
        self._thread.start()

    def finish(self, timeout_s: float | None = None) -> None:
        """Waits until the last save is complete.

        Args:
            timeout_s: seconds to wait; None: no limit.

        Raises:
            CheckpointError: once, where the save failed, which it does on all ranks, or took longer.
        """
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise CheckpointError(f"a checkpoint was not written within {timeout_s:.0f} s: abandoned")
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    # -- inside ------------------------------------------------------------------------------------------------------

    def _to_write(self, tensors: Mapping[str, Shard], from_first: Collection[str]) -> dict[str, Shard]:
        """The shards that this rank writes: where several ranks hold the same one, the one with the least data does.

        Sorted by name, so that equal states are equal files: a loaded state has another order than a trained one.
        """
        world_size = dist.get_world_size(self.group) if self.group is not None else 1
        loads: dict[int, list[int]] = {}
        own = {}
        for name, shard in sorted(tensors.items()):
            ranks = dist.get_process_group_ranks(shard.group) if shard.group is not None else [self.rank]
            num_replicas, replica = world_size // len(ranks), ranks[0] // len(ranks)
            load = loads.setdefault(num_replicas, [0] * num_replicas)
            writer = load.index(min(load)) if name not in from_first else 0
            load[writer] += shard.shape.numel() * shard.local.element_size()
            if replica == writer:
                own[name] = shard
        # Every rank knows every shape; rank 0 writes them to the manifest.
        return {n: own.get(n, Shard(s.local.new_empty(0), 0, s.shape)) for n, s in sorted(tensors.items())}

    def _stage(self, tensors: Mapping[str, Shard]) -> dict[str, Shard]:
        """Copies in host memory, whose buffers are reused by the next save."""
        buffers, sources, targets = {}, [], []
        on_gpu = False
        for name, shard in tensors.items():
            source, buffer = shard.local.detach().flatten(), self._buffers.get(name)
            on_gpu = on_gpu or source.is_cuda
            if buffer is None or buffer.shape != source.shape or buffer.dtype != source.dtype:
                buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            buffers[name] = buffer
            sources.append(source)
            targets.append(buffer)
        with torch.no_grad():
            if targets:  # values can be saved alone
                torch._foreach_copy_(targets, sources, non_blocking=True)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        self._buffers = buffers
        return {name: Shard(buffers[name], shard.start, shard.shape) for name, shard in tensors.items()}

    def _write(
        self, path: Path, staged: Mapping[str, Shard], facts: Mapping[str, Any], then: Callable[[], None]
    ) -> None:
        for pause_s in (*PAUSES_S, None):
            error = self._attempt(path, staged, facts)
            if error is None:
                if self.rank == 0:
                    self._run_callback(then)
                return
            if pause_s is None:
                self._error = error
                return
            self.report(f"{error}; trying again in {pause_s:.0f} s")
            time.sleep(pause_s)

    def _attempt(self, path: Path, staged: Mapping[str, Shard], facts: Mapping[str, Any]) -> CheckpointError | None:
        """The error, which is the same on all ranks; None where there is none."""
        temporary = store.temporary(path)

        def finish(tables: Mapping[str, Any]) -> None:
            store.complete(temporary, path, {**facts, **tables}, self.recipients)

        try:
            sharded.write(
                temporary, staged, group=self.group, rank=self.rank, finish=finish, recipients=self.recipients
            )
        except (Exception, CheckpointException) as caught:  # the latter is no Exception
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            return CheckpointError(f"could not write the checkpoint {path}: {sharded.reason_of(caught)}")
        return None

    def _run_callback(self, then: Callable[[], None]) -> None:
        try:
            then()
        except (OSError, CheckpointError) as error:
            self.report(f"after a checkpoint was written: {error}")
