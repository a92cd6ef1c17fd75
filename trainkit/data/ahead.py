"""Batches that workers fetch ahead, on the device where they are needed."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch

from trainkit.data.batch import Batch
from trainkit.data.workers import Workers

_ON_THE_WAY = 2
"""Batches that are copied to a GPU at a time: one is trained on while the next arrives."""


def fetched_ahead(
    start: Callable[[], Workers],
    positions: Sequence[int],
    *,
    ahead: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Batch]:
    """Yields batches on a device, in order, and asks workers for later ones.

    Args:
        start: starts the workers, once the first batch is wanted; they are ended with the iterator.
        positions: of the global batches.
        ahead: batches that are asked for at a time.
        device: where the data is needed. To a GPU a batch is copied from page-locked memory, on a stream of its own,
            while the one before is trained on.
        dtype: of floating-point data, see `Batch.to`.
    """
    workers, left = start(), iter(positions)
    copies = GpuCopies(device, dtype) if device.type == "cuda" else CpuCopies(dtype)
    num_asked = 0
    try:
        for position in islice(left, ahead):
            workers.ask(position)
            num_asked += 1
        while num_asked or copies.num_begun:
            while num_asked and copies.num_begun < copies.most and (not copies.num_begun or workers.is_ready()):
                batch = workers.receive()
                if batch is None:
                    num_asked = 0
                    break
                if (position := next(left, -1)) >= 0:
                    workers.ask(position)
                else:
                    num_asked -= 1
                copies.begin(batch)
            if copies.num_begun:
                yield copies.end()
    finally:
        workers.close()


class CpuCopies:
    """Batches that stay where they are.

    Args:
        dtype: of floating-point data, see `Batch.to`.
    """

    most = 1
    """Batches that can be begun at a time."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._begun: deque[Batch] = deque()

    @property
    def num_begun(self) -> int:
        """Batches that were begun and not ended."""
        return len(self._begun)

    def begin(self, batch: Batch) -> None:
        """Begins to copy a batch."""
        self._begun.append(batch.to(torch.device("cpu"), self._dtype))

    def end(self) -> Batch:
        """Returns the batch that was begun first; what is computed from here on waits for its copy."""
        return self._begun.popleft()


class GpuCopies:
    """Copies of batches to a GPU, beside what is computed there.

    Args:
        device: the GPU.
        dtype: of floating-point data, see `Batch.to`.
    """

    most = _ON_THE_WAY
    """Batches that can be begun at a time."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._stream = torch.cuda.Stream(device)
        self._begun: deque[tuple[Batch, torch.cuda.Event]] = deque()

    @property
    def num_begun(self) -> int:
        """Batches that were begun and not ended."""
        return len(self._begun)

    def begin(self, batch: Batch) -> None:
        """Begins to copy a batch."""
        with torch.cuda.stream(self._stream):
            copied = batch.pin_memory().to(self._device, self._dtype)
        self._begun.append((copied, self._stream.record_event()))

    def end(self) -> Batch:
        """Returns the batch that was begun first; what is computed from here on waits for its copy."""
        batch, copied = self._begun.popleft()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        batch.used_on(current)
        return batch
