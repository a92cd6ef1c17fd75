"""A connection to one host, by the system's ssh client, with the remote program at its other end.

The client of OpenSSH and not a library (paramiko, asyncssh): users have hosts, keys, agents, jump hosts and two-factor
set-ups in ~/.ssh/config that work there, and no library understands all of them.
"""

import asyncio
import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

from trainkit.errors import ClusterError
from trainkit.launcher.hosts import Host

OPTIONS = (
    *("-T", "-o", "BatchMode=yes"),  # a question would wait forever in one of many sessions
    *("-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
BEAT_S = 2.0  # between words to a host, which ends what it runs when it hears nothing for SILENT_S of remote.py
_LONGEST_MESSAGE = 1 << 20
_REASON_LINES = 20


class HostError(ClusterError):
    """A host that cannot be reached, or is lost.

    Args:
        host: its name.
        reason: why, in one line.
    """

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host, self.reason = host, reason


def ssh_command(host: Host, python: str, ssh: Sequence[str] = ("ssh",)) -> list[str]:
    """The command that starts the remote program on a host; nothing secret is in it.

    Args:
        host: the host.
        python: the path of Python there.
        ssh: the client, with options that come before those of this module, so that they win.
    """
    # One expression without newlines, which any login shell passes on unchanged.
    program = 'import sys;exec(eval(open(0,"rb",0,closefd=False).readline()))'
    return [*ssh, *OPTIONS, "--", host.target, f"exec {shlex.quote(python)} -u -c {shlex.quote(program)}"]


def remote_program() -> str:
    """The source of the program that runs on hosts."""
    return files("trainkit.launcher").joinpath("remote.py").read_text()


class Connection:
    """A host with the remote program. Its methods are called in one asyncio loop.

    Args:
        host: the host.
        python: the path of Python there.
        ssh: the client, with its options.
        events: receives (host's name, kind, content) once the agent runs: `stdout` and `stderr` with a line, `exit`
            with the agent's exit code, negative for a signal, and `lost` with the reason.
    """

    def __init__(
        self, host: Host, python: str, ssh: Sequence[str], events: "asyncio.Queue[tuple[str, str, Any]]"
    ) -> None:
        self.host = host
        self.address = ""
        """Its own address at which it was reached."""
        self.heard = 0.0
        """The time of the loop at which the last message came."""
        self.is_over = False
        """Whether the agent's exit code, or the loss of the host, is among the events."""
        self._command, self._events = ssh_command(host, python, ssh), events
        self._process: asyncio.subprocess.Process | None = None
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._said: list[str] = []
        self._is_started = False

    async def open(self) -> None:
        """Connects, and starts the remote program.

        Raises:
            HostError: where that is not possible.
        """
        pipe = asyncio.subprocess.PIPE
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                limit=_LONGEST_MESSAGE,
                start_new_session=True,  # Ctrl-C would end it before the run can save
            )
        except OSError as error:
            raise HostError(self.host.name, f"{self._command[0]} cannot be run: {error.strerror}") from error
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._listen())]
        self._write((repr(remote_program()) + "\n").encode())
        self.address = str((await self._answer("start Python", 60.0))["address"])
        self._tasks.append(asyncio.create_task(self._beat()))

    async def ask(self, do: str, timeout_s: float = 60.0, **values: Any) -> dict[str, Any]:
        """Sends a request, and waits for its answer.

        Args:
            do: the request, a `_do_` method of the remote program.
            timeout_s: seconds that the answer may take.
            **values: its arguments.

        Returns:
            The answer, with `error` where the host has refused.

        Raises:
            HostError: where the connection is lost, or no answer comes in time.
        """
        self.tell(do, **values)
        return await self._answer(do, timeout_s)

    def tell(self, do: str, **values: Any) -> None:
        """Sends a request that has no answer; does nothing where the connection is lost."""
        self._write(json.dumps({"do": do, **values}).encode() + b"\n")

    def start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        """Starts the agent; `events` tell of it from now on.

        Args:
            command: of the agent.
            environment: variables for this host only.
        """
        self._is_started, self.heard = True, asyncio.get_running_loop().time()
        self.tell("start", command=list(command), environment=environment)

    async def close(self, within_s: float) -> None:
        """Closes the connection, which ends whatever still runs on the host.

        Args:
            within_s: seconds after which the ssh client is killed.
        """
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.is_over = True
        try:
            await asyncio.wait_for(self._process.wait(), within_s)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            self.tell("beat")
            await asyncio.sleep(BEAT_S)

    def _write(self, content: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        if not self._process.stdin.is_closing():
            with suppress(ConnectionError):  # the reading task tells why
                self._process.stdin.write(content)

    async def _answer(self, what: str, timeout_s: float) -> dict[str, Any]:
        try:
            answer = await asyncio.wait_for(self._answers.get(), timeout_s)
        except TimeoutError as error:
            raise HostError(self.host.name, f"did not {what} within {timeout_s:.0f} s") from error
        if answer is None:
            self._answers.put_nowait(None)
            raise HostError(self.host.name, await self._why())
        return answer

    async def _read(self) -> None:
        """Handles the messages of the remote program until the connection ends."""
        assert self._process is not None and self._process.stdout is not None
        async for line in self._process.stdout:
            self.heard = asyncio.get_running_loop().time()
            message = _message(line)
            if "answer" in message:
                self._answers.put_nowait(message["answer"])
            elif "hello" in message:
                self._answers.put_nowait(message)
            elif "line" in message:
                await self._events.put((self.host.name, message["stream"], message["line"]))
                self.heard = asyncio.get_running_loop().time()  # it may have waited
            elif "exit" in message:
                await self._end("exit", message["exit"])
        self._answers.put_nowait(None)
        if self._is_started and not self.is_over:
            await self._end("lost", await self._why())

    async def _end(self, kind: str, content: Any) -> None:
        if not self.is_over:
            self.is_over = True
            await self._events.put((self.host.name, kind, content))

    async def _listen(self) -> None:
        """Keeps what ssh says, or passes it on once the agent runs."""
        assert self._process is not None and self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._said = [*self._said[1 - _REASON_LINES :], text]
            if self._is_started:
                await self._events.put((self.host.name, "stderr", text))

    async def _why(self) -> str:
        """Why the connection ended, once ssh has."""
        assert self._process is not None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 5.0)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._tasks[1]), 1.0)
        said = [line for line in self._said if line]
        text = said[-1].removeprefix("ssh: ") if said else "the connection was closed"
        if self._process.returncode == 127 and not self._is_started:
            return f"{text} (--python names Python's path there)"
        if "verification failed" in text:
            return f"{text} Type `ssh {self.host.target} true` once, and accept its key"
        if "Permission denied" in text:
            return f"{text} It must let you in without a password: `ssh-copy-id {self.host.target}`"
        return text


def _message(line: bytes) -> dict[str, Any]:
    """A message of the remote program; a line of something else, such as a login script's, is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
