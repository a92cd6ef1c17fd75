"""The program that runs on each host of a job, over ssh: it answers checks, and starts, watches and ends the agent.

Its source is sent to `python -c` over stdin, and so are requests, one JSON object a line; answers and the output of the
agent go to stdout in the same form. Only Python's own library is used, since this runs before anything is checked.

Nothing is left on the host whatever dies: processes that lose their parent become children of this program (a
subreaper of Linux), so that it finds them all. When its input ends, or nothing comes for a while, it ends them. A
second process of it, the guard, does that when this one is killed.
"""

from __future__ import annotations  # for a Python that is older than ours, which is then named

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

BEAT_S = 2.0
SILENT_S = 20.0  # without a word from the client: it counts as lost
END_S = 6.0  # between SIGTERM and SIGKILL, for processes whose job is lost
SEEN_S = 10.0  # a file of another host; NFS may keep what it knows of a folder for a while
CHUNK = LONGEST_LINE = 65536
MOST_PENDING = 1 << 20
_SUBREAPER, _PARENT_DEATH_SIGNAL = 36, 1  # of prctl


class Remote:
    """The requests of the client, the agent and its output, in one loop without threads."""

    def __init__(self) -> None:
        self.agent: subprocess.Popen[bytes] | None = None
        self.partial: dict[int, bytes] = {}  # of the last line, by the descriptor of the agent's output
        self.names: dict[int, str] = {}
        self.incoming, self.outgoing = b"", bytearray()
        self.listener: socket.socket | None = None
        self.left: Path | None = None  # a file for other hosts to see
        self.environment: dict[str, str] = dict(os.environ)
        self.directory = "."
        self.heard = self.beaten = self.drained = time.monotonic()
        self.ends_at: float | None = None  # when SIGKILL comes
        self.code: int | None = None  # of the agent
        self.is_connected, self.is_told = True, False
        self.woken, wakes = os.pipe()
        for end in (self.woken, wakes, 0, 1):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: self._lose())
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serves the client until it is gone, or the agent has ended; then ends every process below this one."""
        self._send(
            hello=1, address=(os.environ.get("SSH_CONNECTION", "").split() + [""] * 3)[2], host=socket.gethostname()
        )
        try:
            while not self._is_over():
                self._wait()
        finally:
            self._forget()
            end_descendants()
        if self.agent is not None:
            self._send(exit=-signal.SIGKILL if self.code is None else self.code)
            while self.outgoing and self.is_connected and time.monotonic() - self.heard < SILENT_S:
                ready, _, _ = select.select([0], [1], [], 1.0)
                if ready:
                    self._read_requests()
                self._flush()

    def _is_over(self) -> bool:
        now = time.monotonic()
        if now - self.heard > SILENT_S:
            self._lose()
        if self.agent is None:
            return not self.is_connected
        self.code = self.agent.poll()
        if self.code is None or len(self.outgoing) >= MOST_PENDING:
            self.drained = now
        elif not self.partial or now > self.drained + 1.0:  # a process that survives the agent may hold it open
            return True
        return self.ends_at is not None and now > self.ends_at

    def _wait(self) -> None:
        """Waits for the next event, for a moment at most, and handles what has come."""
        readable = [self.woken, *([0] if self.is_connected else [])]
        if len(self.outgoing) < MOST_PENDING or not self.is_connected:
            readable += self.partial
        ready, writable, _ = select.select(readable, [1] if self.outgoing and self.is_connected else [], [], 0.5)
        if self.woken in ready:
            os.read(self.woken, 4096)
        for descriptor in ready:
            if descriptor in self.partial:
                self._read_output(descriptor)
        if 0 in ready:
            self._read_requests()
        if time.monotonic() - self.beaten > BEAT_S:
            self.beaten = time.monotonic()
            self._send(beat=1)
        if writable:
            self._flush()

    def _read_requests(self) -> None:
        try:
            content = os.read(0, CHUNK)
        except BlockingIOError:
            return
        if not content:
            self._lose()
            return
        self.heard = time.monotonic()
        *lines, self.incoming = (self.incoming + content).split(b"\n")
        for line in lines:
            request = json.loads(line)
            action = request.pop("do")
            try:
                answer = getattr(self, "_do_" + action)(**request)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                answer = {"error": reason(error)}
            self.heard = time.monotonic()  # an answer may have taken long
            if answer is not None:
                self._send(answer=answer)

    def _read_output(self, descriptor: int) -> None:
        content = os.read(descriptor, CHUNK)
        *lines, rest = (self.partial[descriptor] + content).split(b"\n")
        if not content or len(rest) > LONGEST_LINE:
            lines, rest = [*lines, *([rest] if rest else [])], b""
        for line in lines:
            # Of a progress bar that overwrites itself the last state is kept.
            text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
            self._send(line=text, stream=self.names[descriptor])
        self.partial[descriptor] = rest
        if not content:
            del self.partial[descriptor]

    def _send(self, **message: object) -> None:
        if self.is_connected:
            self.outgoing += json.dumps(message).encode() + b"\n"
            if len(self.outgoing) < CHUNK:  # else they are written when the client has read
                self._flush()

    def _flush(self) -> None:
        try:
            while self.outgoing:
                del self.outgoing[: os.write(1, self.outgoing[:CHUNK])]
        except BlockingIOError:
            return
        except OSError:  # the connection is closed
            self._lose()

    def _lose(self) -> None:
        """The client is gone, or this process was told to end: so does the job."""
        self.is_connected = False
        self._do_end(END_S)

    # -- requests ------------------------------------------------------------------------------------------------------

    def _do_beat(self) -> None:
        pass

    def _do_clock(self) -> dict[str, object]:
        return {"time": time.time()}

    def _do_prepare(self, directory: str, environment: dict[str, str], facts: str) -> dict[str, object]:
        if not Path(directory).is_dir():
            return {"missing": directory}
        path = str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", os.defpath)
        self.directory = directory
        self.environment = {**os.environ, **environment, "PATH": path}
        command = [sys.executable, "-c", facts]
        done = subprocess.run(
            command, cwd=directory, env=self.environment, capture_output=True, timeout=120, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            return {"error": done.stderr.decode(errors="replace").strip().rpartition("\n")[2]}
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def _do_leave(self, path: str, name: str) -> dict[str, object]:
        """Writes a file into the closest folder of `path` that exists."""
        folder = Path(self.directory, Path(path).expanduser()).resolve()
        folder = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        left = folder / name
        try:
            left.touch(mode=0o600, exist_ok=False)
        except OSError as error:
            return {"error": f"{folder} cannot be written: {error.strerror}"}
        self.left = left
        return {"path": str(left)}

    def _do_see(self, path: str) -> dict[str, object]:
        deadline = time.monotonic() + SEEN_S
        while not Path(path).exists():
            if time.monotonic() > deadline or not Path(path).parent.is_dir():
                return {"seen": False}
            time.sleep(0.2)  # no system tells that a file of another host has appeared
        return {"seen": True}

    def _do_forget(self) -> dict[str, object]:
        self._forget()
        return {}

    def _do_listen(self, port: int) -> dict[str, object]:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self.listener = socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)
        return {"port": self.listener.getsockname()[1]}

    def _do_route(self, to: str) -> dict[str, object]:
        """The own address from which packets to another host leave; none is sent."""
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((to, 9))
            return {"address": probe.getsockname()[0]}

    def _do_reach(self, address: str, port: int) -> dict[str, object]:
        socket.create_connection((address, port), timeout=5.0).close()
        return {}

    def _do_start(self, command: list[str], environment: dict[str, str]) -> None:
        self._forget()
        self.agent = subprocess.Popen(
            command,
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        assert self.agent.stdout is not None and self.agent.stderr is not None
        self.names = {self.agent.stdout.fileno(): "stdout", self.agent.stderr.fileno(): "stderr"}
        self.partial = dict.fromkeys(self.names, b"")

    def _do_signal(self, number: int) -> None:
        self.is_told = True
        if self.agent is not None and self.agent.poll() is None:
            self.agent.send_signal(number)

    def _do_end(self, within_s: float) -> None:
        """Tells the agent to end, and kills every process that has not done so in time."""
        deadline = time.monotonic() + within_s
        self.ends_at = deadline if self.ends_at is None else min(self.ends_at, deadline)
        if not self.is_told:  # a second signal would interrupt the agent where it ends its processes
            self._do_signal(signal.SIGTERM)

    def _forget(self) -> None:
        """Closes the port, and removes the file, that other hosts were to find."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        if self.left is not None:
            with suppress(FileNotFoundError):
                self.left.unlink()
            self.left = None


def reason(error: Exception) -> str:
    """An error in a few words, without the arguments that Python adds to those of the system."""
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)
    return str(getattr(error, "strerror", None) or error)


# -- processes ---------------------------------------------------------------------------------------------------------


def die_with_parent() -> None:
    """Asks Linux for a SIGTERM when the parent of this process dies."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def adopt() -> None:
    """Makes this process the parent of all below it that lose theirs."""
    if ctypes.CDLL(None).prctl(_SUBREAPER, 1) != 0:
        raise OSError("this system has no subreapers: the hosts of a job must run Linux 3.4 or later")


def descendants() -> list[int]:
    """The processes below this one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has ended
            children.setdefault(parent, []).append(int(entry.name))
    found = children.get(os.getpid(), [])
    for process in found:  # grows meanwhile
        found += children.get(process, [])
    return found


def end_descendants() -> None:
    """Kills every process below this one, until there is none; what the kernel does not end within 3 s stays."""
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        for process in descendants():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def main() -> None:
    """Runs the program in a process of its own, which this one guards."""
    adopt()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        die_with_parent()
        adopt()
        Remote().run()
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(child, number))
    os.close(0)
    os.close(1)  # otherwise ssh would wait for it
    _, status = os.waitpid(child, 0)
    end_descendants()
    os._exit(0 if status == 0 else 1)


if __name__ == "__main__":
    main()
