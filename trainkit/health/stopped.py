"""A process that was stopped (SIGSTOP): woken by another of its host, it says where it stood."""

import ctypes
import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path

SIGNAL = signal.SIGRTMIN + 9 if hasattr(signal, "SIGRTMIN") else None
"""Dumps the stacks of the process that gets it, from within the handler: before its threads go on."""


class StoppedAt:
    """Keeps what `wake` makes this process dump. Linux only; elsewhere there is never anything."""

    def __init__(self) -> None:
        self._file = -1
        if SIGNAL is not None and hasattr(os, "memfd_create"):
            self._file = os.memfd_create("trainkit-stacks")
            faulthandler.register(SIGNAL, self._file, all_threads=True)

    def stacks(self) -> str:
        """As faulthandler writes them; empty: this process was not woken."""
        return os.pread(self._file, 1 << 20, 0).decode(errors="replace") if self._file >= 0 else ""

    def close(self) -> None:
        if self._file >= 0 and SIGNAL is not None:
            faulthandler.unregister(SIGNAL)
            os.close(self._file)
            self._file = -1


def wake(pid: int) -> None:
    """Has a process of this host that is stopped dump its stacks and go on; any other is left alone."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        # One that does not handle the signal would be ended by it: it is none of ours.
        if SIGNAL is not None and status["State"].startswith("T") and int(status["SigCgt"], 16) >> (SIGNAL - 1) & 1:
            _to_main_thread(pid, SIGNAL)
            os.kill(pid, signal.SIGCONT)


def _to_main_thread(pid: int, number: int) -> None:
    """Where any thread may take it, the main thread may have gone on by the time it is dumped."""
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)  # glibc 2.30
    if tgkill is None:
        os.kill(pid, number)
    else:
        tgkill(pid, pid, number)
