"""The remote program and the job over it, with agents of a few lines and a stand-in for ssh that starts a shell."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import descendants
from trainkit.launcher.hosts import Host
from trainkit.launcher.remote_job import RemoteJob
from trainkit.launcher.ssh import Connection, HostError, remote_program, ssh_command

LIMIT_S = 60.0
WAITS = "import time; print('ready', flush=True); time.sleep(600)"
IGNORES = f"import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; {WAITS}"
SAVES = (
    "import signal, sys; "
    "[signal.signal(n, lambda n, _: (print('saved', n, flush=True), sys.exit(75))) for n in (2, 15)]; "
    f"{WAITS}"
)
# A process that leaves its parent, its session and its group, as daemons do.
LEAVES = (
    "import subprocess, sys; subprocess.Popen(['sh', '-c', 'setsid sleep 600 & setsid sleep 600 & wait'], "
    f"start_new_session=True); {WAITS}"
)


@pytest.fixture
def ssh(tmp_path):
    """In place of ssh: runs its last argument in a shell."""
    path = tmp_path / "ssh"
    path.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    path.chmod(0o755)
    return [str(path)]


@pytest.fixture(autouse=True)
def none_is_left():
    before = set(descendants(os.getpid()))
    yield
    deadline = time.monotonic() + 10
    while left := [pid for pid in descendants(os.getpid()) if pid not in before]:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.05)


def run(ssh, *agents, act=None, shutdown_timeout_s=30.0):
    """The exit code of a job with these agents, one a host, and what was said. `act(connections)` is called when all
    are ready."""
    told: list[str] = []

    async def job() -> int:
        events: asyncio.Queue[tuple[str, str, Any]] = asyncio.Queue(1000)
        hosts = [Host(f"node{i}") for i in range(1, len(agents) + 1)]
        connections = [Connection(host, sys.executable, ssh, events) for host in hosts]
        try:
            for connection in connections:
                await connection.open()
                answer = await connection.ask("prepare", directory="/", environment={}, facts="print('{}')")
                assert answer == {}
            job = RemoteJob(connections, events, shutdown_timeout_s, told.append)
            acting = asyncio.create_task(_act_when_ready(job, len(agents), act, connections))
            commands = [[sys.executable, "-c", agent] for agent in agents]
            code = await asyncio.wait_for(job.run(commands, [{} for _ in agents]), LIMIT_S)
            acting.cancel()
            return code
        finally:
            await asyncio.gather(*(connection.close(10.0) for connection in connections))

    return asyncio.run(job()), told


async def _act_when_ready(job, num, act, connections):
    while act is not None:
        if sum("sleep" in Path(f"/proc/{pid}/cmdline").read_text() for pid in _alive()) >= num:
            await asyncio.sleep(0.5)  # until they have set their handlers
            act(connections)
            return
        await asyncio.sleep(0.05)


def _alive():
    return [pid for pid in descendants(os.getpid()) if Path(f"/proc/{pid}").exists()]


def test_lines_stay_whole(ssh, capfd):
    says = (
        "import os, sys, time; os.write(1, b'ab'); time.sleep(.3); os.write(1, b'cd\\n'); "
        "os.write(2, b'10 %\\r20 %\\r30 %\\nerror\\r\\n'); os.write(1, b'x' * 100000 + b'\\n'); "
        "os.write(1, '\\u00e9'.encode() + b'\\xff')"
    )
    code, told = run(ssh, says)
    out, err = capfd.readouterr()
    assert (code, told) == (0, [])
    assert err.splitlines() == ["[node1] 30 %", "[node1] error"]
    first, *long, last = out.splitlines()
    assert (first, last) == ("[node1] abcd", "[node1] \u00e9\ufffd")
    assert "".join(line.removeprefix("[node1] ") for line in long) == "x" * 100000


@pytest.mark.parametrize(
    ("agents", "code"),
    [
        (["pass", "pass"], 0),
        (["raise SystemExit(75)", "raise SystemExit(75)"], 75),
        (["raise SystemExit(75)", "pass"], 75),
        (["raise SystemExit(3)", WAITS], 3),
        (["import os; os.kill(os.getpid(), 9)", WAITS], 137),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(ssh, agents, code):
    began = time.monotonic()
    assert run(ssh, *agents)[0] == code
    assert time.monotonic() - began < 30, "the others are ended, not waited for"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_a_signal_reaches_every_agent(ssh, capfd, number, code):
    got, told = run(ssh, SAVES, SAVES, act=lambda _: os.kill(os.getpid(), number))
    sent = signal.SIGTERM if number == signal.SIGHUP else number
    assert got == code
    assert told == [f"{number.name}: every host ends after the same step and saves; again: without saving"]
    assert sorted(line for line in capfd.readouterr().out.splitlines() if "saved" in line) == [
        f"[node1] saved {sent.value}",
        f"[node2] saved {sent.value}",
    ]


def test_what_does_not_end_in_time_is_killed(ssh):
    code, told = run(ssh, IGNORES, act=lambda _: os.kill(os.getpid(), signal.SIGTERM), shutdown_timeout_s=1.0)
    assert code == 137 and told[-1] == "not all hosts have ended in time: ending them"


def test_what_leaves_its_session_is_found(ssh):
    assert run(ssh, LEAVES, "raise SystemExit(4)")[0] == 4


@pytest.mark.parametrize("which", ["guard", "program"])
def test_a_killed_remote_program_leaves_nothing(ssh, which):
    """The guard and the program it guards: whichever is killed, the other one ends the agent."""

    def kill(connections):
        guard = connections[0]._process.pid
        (program,) = [pid for pid in descendants(guard) if "exec(eval" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(guard if which == "guard" else program, signal.SIGKILL)

    code, told = run(ssh, LEAVES, act=kill)
    assert (code != 0, len(told)) == (True, 1)


def test_a_silent_client_is_lost():
    source = remote_program().replace("SILENT_S = 20.0", "SILENT_S = 1.0")
    command = ["sh", "-c", ssh_command(Host("node1"), sys.executable)[-1]]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(repr(source) + "\n")
    process.stdin.write(f'{{"do": "start", "command": ["{sys.executable}", "-c", "{LEAVES}"], "environment": {{}}}}\n')
    process.stdin.flush()
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    assert process.wait(timeout=30) == 0
    process.stdin.close()
    process.stdout.close()


def test_a_reader_that_pauses_ends_nothing(ssh, monkeypatch):
    """Neither side takes the other for lost while nobody reads the output, as behind a pager."""
    program = remote_program().replace("SILENT_S = 20.0", "SILENT_S = 1.0").replace("BEAT_S = 2.0", "BEAT_S = 0.2")
    monkeypatch.setattr("trainkit.launcher.ssh.remote_program", lambda: program)
    monkeypatch.setattr("trainkit.launcher.ssh.BEAT_S", 0.2)
    monkeypatch.setattr("trainkit.launcher.remote_job.SILENT_S", 1.0)
    reading, writing = os.pipe()
    monkeypatch.setattr("sys.stdout", os.fdopen(writing, "w"))
    read: list[str] = []

    def read_late():
        time.sleep(4)
        with os.fdopen(reading) as file:
            read.extend(file)

    reader = threading.Thread(target=read_late)
    reader.start()
    code, told = run(ssh, "for i in range(100000): print('a line', i)")
    sys.stdout.close()
    reader.join()
    assert (code, told) == (0, [])
    assert len(read) == 100000 and read[-1] == "[node1] a line 99999\n"


def test_what_a_host_does_not_answer_is_said(ssh, tmp_path):
    async def opened(python):
        connection = Connection(Host("node1"), python, ssh, asyncio.Queue())
        try:
            await connection.open()
        finally:
            await connection.close(5.0)

    with pytest.raises(HostError, match=r"node1: .*--python names Python's path there"):
        asyncio.run(opened("/none/python"))
    ssh[:] = [str(tmp_path / "none")]
    with pytest.raises(HostError, match=r"node1: .*/none cannot be run: No such file or directory"):
        asyncio.run(opened(sys.executable))
