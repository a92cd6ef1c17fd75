"""HostAgent: torchrun's agent of one host, which stops with the other hosts, and says by its exit code how it ended."""

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousTimeoutError

from trainkit.distributed.agent import FAILED, STOPPED
from trainkit.distributed.elastic_log import silenced
from trainkit.distributed.host import LOST, MEETING_S, Host, first_line, own_address, port_of, rendezvous_handler
from trainkit.distributed.silence import SILENT_S, Beats
from trainkit.errors import ClusterError
from trainkit.logger import logger

_TOLD = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_ENDED, _LEFT, _GIVEN_UP = "trainkit/ended", "trainkit/left", "trainkit/given_up"
_ENDING_S = 3600.0  # rank 0 may export at the end, while the processes of other hosts have ended
_LEAVING_S, _STOPPING_S = 10.0, 5


def run(host: Host, arguments: Sequence[str]) -> int:
    """Runs `python` with `arguments` in the processes of this host, and waits for those of all hosts.

    SIGTERM, SIGUSR1, SIGHUP (as SIGTERM) and SIGINT to this process reach the processes of this host, whose ranks end
    after the same step as all others.

    Args:
        host: what this host has to know.
        arguments: of each `python` process.

    Returns:
        The exit code, the same on every host: 0; 75: the run was stopped, has saved, and would go on; 130: it was
        interrupted; 2: it failed, and would again; else that of a process that failed, 128 + n for signal n.

    Raises:
        ClusterError: where the hosts cannot meet.
    """
    with tempfile.TemporaryDirectory(prefix="trainkit_") as logs, silenced():
        with _told_to(_stop_before_the_start):
            try:
                handler = rendezvous_handler(host)
            except _ToldError as told:
                return 128 + told.number
        spec = WorkerSpec(
            role="default_role",
            local_world_size=host.processes,
            entrypoint=sys.executable,
            args=("-u", *arguments),
            rdzv_handler=handler,
            max_restarts=host.max_restarts,
            monitor_interval=0.1,
            local_addr=own_address(host),
        )
        agent = HostAgent(spec, Path(logs), port=port_of(host), shutdown_timeout_s=host.shutdown_timeout_s)
        with _told_to(agent.tell):
            return agent.exit_code()


class HostAgent(LocalElasticAgent):
    """Starts the processes of one host, and starts them again with those of other hosts after a failure.

    Args:
        spec: what to start, and where the hosts meet.
        logs: a new directory, where processes leave a word (see `trainkit.distributed.agent`).
        port: of the store where the hosts meet.
        shutdown_timeout_s: as for `Host`.
    """

    def __init__(self, spec: WorkerSpec, logs: Path, *, port: int, shutdown_timeout_s: int) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(logs)), shutdown_timeout=shutdown_timeout_s)
        self._logs, self._port = logs, port
        self._meeting: dist.Store | None = None
        self._beats: Beats | None = None
        self._told: int | None = None
        self._is_meeting = False
        self._kill_at = self._wait_until = float("inf")
        self._ended: RunResult | None = None
        self._given_up: int | None = None

    def tell(self, number: int, frame: FrameType | None = None) -> None:
        """Passes a signal on to the processes of this host, and lets them end. A signal handler."""
        number = signal.SIGTERM if number == signal.SIGHUP else number
        self._remaining_restarts = 0
        if self._told is None:
            self._told, self._kill_at = number, time.monotonic() + self._shutdown_timeout
        if self._is_meeting:
            raise _ToldError(number)
        for pid in self._pcontext.pids().values() if self._pcontext is not None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, number)  # not its group: processes that fetch data are in it

    def exit_code(self) -> int:
        """Runs to the end; returns the exit code of the job, see `run`.

        Raises:
            ClusterError: where the hosts do not meet, or lose the one where they have met.
        """
        code: int | None = None
        try:
            result = self.run()
            code = self._code_of(result)
        except _ToldError as told:
            code = 128 + told.number
        except RendezvousClosedError as error:
            raise ClusterError("another host has ended this job: its output says why") from error
        except RendezvousTimeoutError as error:
            raise ClusterError(
                f"not all hosts came within {MEETING_S:.0f} s: start the same command on each, with the same "
                f"--nnodes, --rdzv-id and --rdzv-endpoint"
            ) from error
        except LOST as error:
            raise ClusterError(f"lost the first host of the job (--rdzv-endpoint): {first_line(error)}") from error
        finally:
            self._leave(1 if code is None else code)
        return code

    # -- called by torch's agent -----------------------------------------------------------------------------------

    def _invoke_run(self, role: str = "default_role") -> RunResult:
        try:
            return super()._invoke_run(role)
        except LOST:
            self._shutdown(timeout=_STOPPING_S)  # torch would wait for them: they hear nothing of the other hosts
            raise

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if self._told is not None:
            raise _ToldError(self._told)
        self._is_meeting = True
        try:
            super()._rendezvous(worker_group)
            self._meeting = store = worker_group.store
            assert store is not None and worker_group.group_rank is not None
            self._beats = Beats(store, worker_group.group_rank, worker_group.group_world_size or 1, self._port)
        finally:
            self._is_meeting = False

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._told is not None:
            raise _ToldError(self._told)
        self._ended, self._wait_until = None, float("inf")
        started: dict[int, Any] = super()._start_workers(worker_group)
        if self._told is not None:  # while they were started
            self.tell(self._told)
        return started

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown(timeout=_STOPPING_S)  # those of other hosts have failed: there is nothing to save

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """What to do next: go on (HEALTHY), restart (FAILED), or end (SUCCEEDED, once all hosts have)."""
        assert self._beats is not None
        silent = self._beats.silent()  # also while this host waits for the end of others
        result = self._ended or super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED and self._word(STOPPED) is not None:
            result = RunResult(state=WorkerState.SUCCEEDED)  # all ranks have saved: what came after is no matter
        if result.state is WorkerState.FAILED:
            return self._failed(result)
        if silent is not None:
            logger(__name__).error(f"{silent} has said nothing for {SILENT_S} s: it or its link is lost{self._then()}")
            return RunResult(state=WorkerState.FAILED)
        if result.state is WorkerState.SUCCEEDED:
            return self._all_have_ended(result)
        if (code := self._given_up_elsewhere()) is not None:
            self._given_up, self._remaining_restarts = code, 0
            return RunResult(state=WorkerState.FAILED)
        if time.monotonic() > self._kill_at:
            logger(__name__).error(
                f"the processes of this host did not end within {self._shutdown_timeout} s of the signal: killed "
                f"(--shutdown-timeout)"
            )
            self._shutdown(signal.SIGKILL)
            return RunResult(state=WorkerState.FAILED)
        return result

    def _exit_barrier(self) -> None:
        """Nothing: `_monitor_workers` has waited. torch's waits 300 s for a host that was told to end."""

    # -- inside ------------------------------------------------------------------------------------------------------

    def _failed(self, result: RunResult) -> RunResult:
        if self._word(FAILED) is not None:  # it would fail again
            self._remaining_restarts = 0
        elif result.failures:
            rank, failure = min(result.failures.items(), key=lambda entry: entry[1].timestamp)
            logger(__name__).error(f"rank {rank} on {socket.gethostname()} {how_ended(failure.exitcode)}{self._then()}")
        return result

    def _then(self) -> str:
        left = self._remaining_restarts
        return f"; all processes are restarted ({left - 1} left)" if left else ""

    def _all_have_ended(self, result: RunResult) -> RunResult:
        """`result` once the processes of all hosts have ended; until then, that of processes which run."""
        store, size = self._meeting, self._worker_group.group_world_size or 1
        assert store is not None
        if self._ended is None:
            self._ended, self._wait_until = result, time.monotonic() + _ENDING_S
            store.add(_ENDED, 1)
        if store.add(_ENDED, 0) >= size or time.monotonic() > self._wait_until:
            return result
        if (code := self._given_up_elsewhere()) is not None:
            self._given_up = code
            return result
        return RunResult(state=WorkerState.HEALTHY)

    def _given_up_elsewhere(self) -> int | None:
        """The exit code of a host that has given up; None: none has."""
        assert self._meeting is not None
        return int(self._meeting.get(_GIVEN_UP)) if self._meeting.check([_GIVEN_UP]) else None

    def _code_of(self, result: RunResult | None) -> int:
        if self._given_up is not None:
            return self._given_up
        if result is not None and not result.is_failed():
            return int(self._word(STOPPED) or 0)
        if self._word(FAILED) is not None:
            return 2
        if self._told is not None:
            return 128 + self._told
        failures = sorted(result.failures.values(), key=lambda one: one.timestamp) if result is not None else []
        code = failures[0].exitcode if failures else 1
        # What would recur has left its word; argparse and others end with 2, too.
        return 128 - code if code <= 0 else 1 if code == 2 else code

    def _leave(self, code: int) -> None:
        """Tells the other hosts how this one has ended; the one that holds the store waits until they have heard it."""
        store = self._meeting
        try:
            if store is not None:
                if code not in (0, os.EX_TEMPFAIL) and self._given_up is None:
                    store.set(_GIVEN_UP, str(code))
                num_left, deadline = store.add(_LEFT, 1), time.monotonic() + _LEAVING_S
                while num_left < (self._worker_group.group_world_size or 1) and time.monotonic() < deadline:
                    time.sleep(0.02)
                    num_left = store.add(_LEFT, 0)
            self._worker_group.spec.rdzv_handler.shutdown()
        except LOST:  # the one that held it has heard all
            return

    def _word(self, name: str) -> str | None:
        """What a process of this host has left with `trainkit.distributed.agent.remember`."""
        found = next(self._logs.glob(f"*/trainkit.{name}"), None)
        return found.read_text() if found is not None else None


class _ToldError(Exception):
    """A signal came where no process was running that could save.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def how_ended(code: int) -> str:
    """How a process ended, as a part of a sentence.

    Args:
        code: its exit code; -n for signal n.

    Example:
        >>> how_ended(-9)
        'was killed by SIGKILL (Linux does that when memory runs out)'
    """
    if code >= 0:
        return f"ended with exit code {code}"
    why = " (Linux does that when memory runs out)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{why}"


def _stop_before_the_start(number: int, frame: FrameType | None) -> None:
    raise _ToldError(number)


@contextmanager
def _told_to(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _TOLD}
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"  # torch's agent would install its own
    try:
        yield
    finally:
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
        for number, own in before.items():
            signal.signal(number, own)
