"""Lane: one of several ways on which work goes on at the same time, each in the order in which it was given."""

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue

import torch

Job = Callable[[], None]


class Lane:
    """Runs jobs one after another: on a thread of its own for the CPU, on a stream of its own for CUDA.

    A stream's jobs are put in line at once, behind what the giver's stream has been given by then.
    """

    def __init__(self, device: torch.device, name: str) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if self._stream is None:
            self._thread = threading.Thread(target=self._run, name=f"trainkit lane {name}", daemon=True)
            self._thread.start()

    def put(self, job: Job) -> None:
        if self._stream is None:
            self._jobs.put(job)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            job()

    def end(self, timeout_s: float) -> None:
        """Lets the thread go once it has done what it was given, and waits that long for it."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # and the tensors that it knows


Steps = Generator[Lane, None, None]
"""Work that names the lane on which it goes on: `yield lane`."""


class Walk:
    """Has `steps` run from lane to lane, then `done`, on the last one; `failed` in place of it, if they raise."""

    def __init__(self, steps: Steps, done: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        self._steps, self._done, self._failed = steps, done, failed
        self._go_on()

    def _go_on(self) -> None:
        try:
            lane = next(self._steps)
        except StopIteration:
            self._done()
        except BaseException as error:
            self._failed(error)
        else:
            lane.put(self._go_on)
