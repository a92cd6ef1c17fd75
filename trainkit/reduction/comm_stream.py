"""CommStream: a CUDA stream, or a thread on the CPU, on which one phase of an all-reduce runs beside the others."""

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue

import torch

Job = Callable[[], None]


class CommStream:
    """Runs jobs one after another: on its own thread for the CPU, on its own CUDA stream for a GPU.

    With CUDA, a job is launched at once, and waits for what the caller's current stream holds at that time.

    Args:
        device: `cpu`: a thread is started; `cuda`: a stream of that GPU is created.
        name: of the phase; part of the thread's name, which the report of a hang shows.
    """

    def __init__(self, device: torch.device, name: str) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if self._stream is None:
            self._thread = threading.Thread(target=self._run, name=f"trainkit comm stream {name}", daemon=True)
            self._thread.start()

    def submit(self, job: Job) -> None:
        """Runs `job` after the jobs that were submitted before it."""
        if self._stream is None:
            self._jobs.put(job)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            job()

    def close(self, timeout_s: float) -> None:
        """Ends the thread after the jobs that were submitted, and waits for it, `timeout_s` seconds at most."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it holds tensors


Phases = Generator[CommStream, None, None]
"""Work in several phases: it yields the stream on which its next phase runs."""


class PhaseRunner:
    """Runs `phases`, each on the stream that was yielded before it.

    Args:
        phases: a generator; its first part, up to the first yield, runs in the caller's thread.
        done: called on the last stream once all phases have run.
        failed: called in place of `done` with what a phase raised.
    """

    def __init__(self, phases: Phases, done: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        self._phases, self._done, self._failed = phases, done, failed
        self._run_next()

    def _run_next(self) -> None:
        try:
            stream = next(self._phases)
        except StopIteration:
            self._done()
        except BaseException as error:
            self._failed(error)
        else:
            stream.submit(self._run_next)
