"""Runner: one measurement in processes of its own, whatever becomes of them."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainkit.benchmark.task import ANSWER
from trainkit.errors import TrainkitError
from trainkit.json_text import read_json, write_json

GRACE_S = 15.0
_OF_PEERS = ("PeerError", "DistBackendError", "Connection closed by peer", "Connection reset by peer")


class FailedError(TrainkitError, RuntimeError):
    """A measurement that failed: its message says why."""


class Runner:
    """Makes measurements, each in processes of its own.

    Args:
        command: starts a measurement, followed by the directory of its task and the number of processes.
        threads: of each process; None: as PyTorch chooses.
        timeout_s: after which a measurement has failed.
    """

    def __init__(self, command: Sequence[str], *, threads: int | None, timeout_s: float) -> None:
        self._command, self._timeout_s = list(command), timeout_s
        self._environment = {**os.environ} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})

    def run(self, task: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
        """Makes one measurement.

        Args:
            task: as `trainkit.benchmark.task` reads it.
            processes: of the job.

        Returns:
            Its answer.

        Raises:
            FailedError: with the reason in one line.
        """
        with tempfile.TemporaryDirectory(prefix="trainkit_benchmark_") as name:
            directory = Path(name)
            write_json(directory / "task.json", task)
            with (directory / "output").open("wb") as output:
                code = self._wait_for([*self._command, name, str(processes)], output)
            if code == 0 and (directory / ANSWER).is_file():
                answer: dict[str, Any] = read_json(directory / ANSWER)
                return answer
            raise FailedError(_reason(directory, code, self._timeout_s))

    def _wait_for(self, command: Sequence[str], output: Any) -> int | None:
        """The exit code; None: it took too long."""
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self._environment)
        try:
            return process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a job that has not ended; its agent ends the other processes."""
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(directory: Path, code: int | None, timeout_s: float) -> str:
    if code is None:
        return f"took longer than {timeout_s / 60:.3g} minutes (--timeout)"
    reasons = [str(read_json(path)["reason"]) for path in sorted(directory.glob("failure_*.json"))]
    own = [reason for reason in reasons if not any(sign in reason for sign in _OF_PEERS)]
    if own or reasons:  # a rank that lost another knows less than that one
        return (own or reasons)[0]
    said = (directory / "output").read_text(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    return f"{_ended(code)}{f': {last[:300]}' if last else ''}"


def _ended(code: int) -> str:
    number = -code if code < 0 else code - 128
    if code < 0 or 0 < number < signal.NSIG:
        why = " (Linux does that when memory runs out)" if number == signal.SIGKILL else ""
        with suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}{why}"
    return f"ended with exit code {code}"
