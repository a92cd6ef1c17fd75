"""A job on several hosts: its agents over ssh, their output, and the end of all of them when one ends."""

import asyncio
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from trainkit.errors import ClusterError
from trainkit.launcher.ssh import Connection

SAVED = 75
"""The exit code of an agent whose run has saved and can be started again (EX_TEMPFAIL)."""

LOOK_S = 1.0
SILENT_S = 20.0  # of a host: it counts as lost
END_S = 6.0  # between SIGTERM and SIGKILL, for hosts of a job that has failed
MARGIN_S = 5.0  # in which the remote program ends what it is told to end
_ECHO_S = 1.0  # terminals and schedulers repeat a signal
_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Events = asyncio.Queue[tuple[str, str, Any]]


class RemoteJob:
    """The agents of a job, one a host.

    Args:
        connections: one a host, opened.
        events: that the connections put their events into.
        shutdown_timeout_s: seconds that the run has to save when it is told to end.
        say: called with a line for the user.
    """

    def __init__(
        self, connections: Sequence[Connection], events: Events, shutdown_timeout_s: float, say: Callable[[str], None]
    ) -> None:
        self._connections, self._events, self._say = connections, events, say
        self._shutdown_timeout_s = shutdown_timeout_s
        self._codes: dict[str, int] = {}  # by host, the first to end first
        self._signals: list[tuple[int, float]] = []
        self._deadline = math.inf
        self._is_ending = False

    async def run(self, commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> int:
        """Starts the agents, prints their output, and waits for them. All have ended when it returns or raises.

        Args:
            commands: the agent's of each host.
            environments: variables of each host.

        Returns:
            The exit code: 130 after Ctrl-C; else that of the host that failed first, 128 + n for signal n; 75 where the
            run has saved and should be started again; 0.

        Raises:
            ClusterError: where a host does not end what runs there.
        """
        with self._signals_caught():
            for connection, command, environment in zip(self._connections, commands, environments, strict=True):
                connection.start(command, dict(environment))
            while not all(connection.is_over for connection in self._connections) or not self._events.empty():
                await self._next()
                self._look()
        return self._code()

    async def _next(self) -> None:
        """Handles the events that have come, or that none has for a while."""
        try:
            events = [await asyncio.wait_for(self._events.get(), LOOK_S)]
        except TimeoutError:
            return
        while not self._events.empty():
            events.append(self._events.get_nowait())
        for kind, some in groupby(events, key=lambda event: event[1]):
            if kind in ("stdout", "stderr"):
                text = "".join(f"[{host}] {line}\n" for host, _, line in some)
                # A reader that pauses, such as a pager, must not keep this process from answering the hosts.
                stream = sys.stdout if kind == "stdout" else sys.stderr
                await asyncio.to_thread(print, text, end="", file=stream, flush=True)
            else:
                for host, _, content in some:
                    self._handle_end(host, kind, content)

    def _handle_end(self, host: str, kind: str, content: Any) -> None:
        if kind == "lost":
            self._say(f"error: {host}: lost: {content}")
        code = 1 if kind == "lost" else content
        self._codes[host] = code if code >= 0 else 128 - code
        if self._signals or code == SAVED:
            self._wait_for_others(self._shutdown_timeout_s)
        elif code != 0 and not self._is_ending:
            if kind == "exit":
                self._say(f"{host}: the agent {_ended(code)}: ending the other hosts")
            self._end_all(END_S)

    def _look(self) -> None:
        """Handles that time is up, and hosts that have fallen silent."""
        now = asyncio.get_running_loop().time()
        for connection in self._connections if self._events.empty() else ():  # else they may wait to be heard
            if not connection.is_over and now - connection.heard > SILENT_S:
                connection.is_over = True
                self._handle_end(connection.host.name, "lost", f"silent for {SILENT_S:.0f} s")
        left = [connection.host.name for connection in self._connections if not connection.is_over]
        if now <= self._deadline or not left:
            return
        if self._is_ending:
            raise ClusterError(f"{', '.join(left)}: not ended in time: look for processes that are left there")
        self._say("not all hosts have ended in time: ending them")
        self._end_all(0.0)

    def _code(self) -> int:
        if any(number == signal.SIGINT for number, _ in self._signals):
            return 128 + signal.SIGINT
        failed = [code for code in self._codes.values() if code not in (0, SAVED)]
        return failed[0] if failed else max(self._codes.values(), default=0)

    # -- ending ------------------------------------------------------------------------------------------------------

    def _end_all(self, within_s: float) -> None:
        """Ends every agent that still runs, by SIGTERM, and by SIGKILL after `within_s` seconds."""
        for connection in self._connections:
            if not connection.is_over:
                connection.tell("end", within_s=within_s)
        self._is_ending, self._deadline = True, asyncio.get_running_loop().time() + within_s + MARGIN_S

    def _wait_for_others(self, within_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + within_s + MARGIN_S
        self._deadline = min(self._deadline, deadline)

    def _receive(self, number: int) -> None:
        """Passes a signal on to every agent; a second one ends the job at once."""
        now = asyncio.get_running_loop().time()
        if self._signals and now - self._signals[0][1] < _ECHO_S:
            return
        name = signal.Signals(number).name
        if self._signals:
            self._say(f"{name} again: ending all hosts without saving")
            self._end_all(0.0)
        else:
            self._say(f"{name}: every host ends after the same step and saves; again: without saving")
            for connection in self._connections:
                # A terminal that is gone has to end the run as SIGTERM does.
                connection.tell("signal", number=signal.SIGTERM if number == signal.SIGHUP else number)
            self._wait_for_others(self._shutdown_timeout_s)
        self._signals.append((number, now))

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        # Stopped, this process could not answer the hosts, which would end the run.
        stops = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        for number in _CAUGHT:
            loop.add_signal_handler(number, self._receive, number)
        try:
            yield
        finally:
            for number in _CAUGHT:
                loop.remove_signal_handler(number)
            signal.signal(signal.SIGTSTP, stops)


def _ended(code: int) -> str:
    return f"has ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
