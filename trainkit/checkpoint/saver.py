"""Saver: copies what a checkpoint is to hold, and writes it while training goes on."""

import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from trainkit.checkpoint import sharded, store
from trainkit.distributed.shard import Shard
from trainkit.errors import CheckpointError

PAUSES_S = (1.0, 5.0)
"""Between the attempts at a save that fails."""


class Saver:
    """Writes one checkpoint at a time. Every rank makes one, and calls the same methods in the same order.

    group: a gloo group of all ranks that nothing else uses; None for one process.
    report: takes a line about a save that has failed or been tried again.
    """

    def __init__(
        self, *, group: dist.ProcessGroup | None, rank: int, report: Callable[[str], None] = lambda text: None
    ) -> None:
        self.group, self.rank, self.report = group, rank, report
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
        """Copies `tensors` to host memory, and returns; the rest is done meanwhile. Waits for the last save first.

        facts: what the manifest says beside the tensors.  from_first: names of tensors that ranks may hold different
        values of; those of the first one count.  then: called on rank 0 once the directory is in place.
        Raises CheckpointError for the last save. Collective: every rank calls.
        """
        self.finish()
        staged = self._stage(self._share(tensors, from_first))
        self._thread = threading.Thread(
            target=self._write, args=(path, staged, facts, then), name="trainkit-save", daemon=True
        )
        self._thread.start()

    def finish(self, timeout_s: float | None = None) -> None:
        """Waits until the last save is whole, or has failed on all ranks: then raises its CheckpointError, once."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise CheckpointError(f"a checkpoint was not written within {timeout_s:.0f} s: given up")
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    # -- inside ------------------------------------------------------------------------------------------------------

    def _share(self, tensors: Mapping[str, Shard], from_first: Collection[str]) -> dict[str, Shard]:
        """What this rank is to write: where several hold the same, they take turns by size.

        By name, so that equal states are equal files: what was loaded comes in another order than what was trained.
        """
        world_size = dist.get_world_size(self.group) if self.group is not None else 1
        loads: dict[int, list[int]] = {}
        mine = {}
        for name, shard in sorted(tensors.items()):
            ranks = dist.get_process_group_ranks(shard.group) if shard.group is not None else [self.rank]
            num_replicas, replica = world_size // len(ranks), ranks[0] // len(ranks)
            load = loads.setdefault(num_replicas, [0] * num_replicas)
            writer = load.index(min(load)) if name not in from_first else 0
            load[writer] += shard.shape.numel() * shard.local.element_size()
            if replica == writer:
                mine[name] = shard
        # Every rank knows every shape, which the first one writes down.
        return {n: mine.get(n, Shard(s.local.new_empty(0), 0, s.shape)) for n, s in sorted(tensors.items())}

    def _stage(self, tensors: Mapping[str, Shard]) -> dict[str, Shard]:
        """Copies in host memory, which is kept for the next time."""
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
                    self._do(then)
                return
            if pause_s is None:
                self._error = error
                return
            self.report(f"{error}; trying again in {pause_s:.0f} s")
            time.sleep(pause_s)

    def _attempt(self, path: Path, staged: Mapping[str, Shard], facts: Mapping[str, Any]) -> CheckpointError | None:
        """Whether it went wrong, the same on all ranks."""
        temporary = store.temporary(path)

        def finish(tensors: dict[str, Any], files: dict[str, Any]) -> None:
            store.complete(temporary, path, {**facts, "tensors": tensors, "files": files})

        try:
            sharded.write(temporary, staged, group=self.group, rank=self.rank, finish=finish)
        except (Exception, CheckpointException) as caught:  # the latter is no Exception
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            return CheckpointError(f"could not write the checkpoint {path}: {sharded.reason_of(caught)}")
        return None

    def _do(self, then: Callable[[], None]) -> None:
        try:
            then()
        except (OSError, CheckpointError) as error:
            self.report(f"a checkpoint was written, and then: {error}")
