"""StackDump: the stacks of a process that was stopped (SIGSTOP), written when another process of its host wakes it."""

import ctypes
import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path

SIGNAL = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else None
"""Dumps the stacks of the process that receives it, from within the handler, before its threads continue."""


class StackDump:
    """Keeps the stacks that `wake` makes this process dump. Linux only; elsewhere there never are any."""

    def __init__(self) -> None:
        self._file = -1
        if SIGNAL is not None and hasattr(os, "memfd_create"):
            self._file = os.memfd_create("trainkit-stacks")
            faulthandler.register(SIGNAL, self._file, all_threads=True)

    def stacks(self) -> str:
        """The stacks as faulthandler writes them; empty where this process was not woken."""
        return os.pread(self._file, 1 << 20, 0).decode(errors="replace") if self._file >= 0 else ""

    def close(self) -> None:
        """Removes the signal handler and the file."""
        if self._file >= 0 and SIGNAL is not None:
            faulthandler.unregister(SIGNAL)
            os.close(self._file)
            self._file = -1


def wake(pid: int) -> None:
    """Makes a stopped process of this host dump its stacks and continue; leaves any other process alone.

    Args:
        pid: the process.
    """
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        # A process that does not handle the signal would be ended by it, and is not one of the job.
        if SIGNAL is not None and status["State"].startswith("T") and int(status["SigCgt"], 16) >> (SIGNAL - 1) & 1:
            _to_main_thread(pid, SIGNAL)
            os.kill(pid, signal.SIGCONT)


def _to_main_thread(pid: int, number: int) -> None:
    """Sends it to the main thread, which would otherwise continue while another thread dumps."""
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)  # glibc 2.30
    if tgkill is None:
        os.kill(pid, number)
    else:
        tgkill(pid, pid, number)
