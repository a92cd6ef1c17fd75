"""A launch over ssh: connections, checks, the agents' commands, and the job, in this order."""

import asyncio
import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from trainkit.launcher.checks import PLAN, Wanted, check, endpoint
from trainkit.launcher.hosts import Host
from trainkit.launcher.remote_job import Events, RemoteJob
from trainkit.launcher.ssh import Connection, ssh_command

CLOSE_S = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A job for several hosts.

    Args:
        hosts: the machines; the first is that of the rendezvous.
        arguments: of `trainkit` in each process: the command and what follows it.
        wanted: what it needs of the hosts.
        python: the path of Python on every host.
        ssh: the ssh client, with its options.
        max_restarts: how often the agents restart the processes after a failure.
        shutdown_timeout_s: seconds that the run has to save when it is told to end.
        run_id: of the rendezvous.
    """

    hosts: Sequence[Host]
    arguments: Sequence[str]
    wanted: Wanted
    python: str
    ssh: Sequence[str] = ("ssh",)
    max_restarts: int = 3
    shutdown_timeout_s: float = 30.0
    run_id: str = field(default_factory=lambda: f"launch-{secrets.token_hex(4)}")

    def plan(self) -> list[str]:
        """What `run` would do, as lines: the checks, and each host's commands; nothing is connected to."""
        address, port = self.wanted.address or self.hosts[0].target.rpartition("@")[2], self.wanted.port or "PORT"
        carried = " ".join(sorted(self.wanted.environment)) or "none"
        lines = ["checks, of all hosts at once:", *(f"  {line}" for line in PLAN)]
        lines += [f"environment variables that are carried: {carried}", f"working directory: {self.wanted.directory}"]
        for rank, host in enumerate(self.hosts):
            command = agent_command(self, rank, host.slots or "auto", endpoint(address, port))
            lines += [
                f"{host.name}:",
                f"  {shlex.join(ssh_command(host, self.python, self.ssh))}",
                f"  which starts there: {shlex.join(command)}",
            ]
        return lines

    def run(self, say: Say) -> int:
        """Checks the hosts, runs the job on them, and waits for it.

        Args:
            say: called with lines for the user.

        Returns:
            The exit code: 2 where a check failed; else that of `RemoteJob.run`.

        Raises:
            ClusterError: where a host does not end what runs there.
        """
        return asyncio.run(self._run(say))

    async def _run(self, say: Say) -> int:
        events: Events = asyncio.Queue(1000)
        connections = [Connection(host, self.python, self.ssh, events) for host in self.hosts]
        try:
            verdicts, meeting = await check(connections, self.wanted, say)
            for line in (line for verdict in verdicts for line in verdict.lines()):
                say(line)
            if any(verdict.errors for verdict in verdicts):
                return 2
            job = RemoteJob(connections, events, self.shutdown_timeout_s, say)
            commands = [agent_command(self, i, v.num_processes, meeting) for i, v in enumerate(verdicts)]
            return await job.run(commands, [_environment(connection) for connection in connections])
        finally:
            await asyncio.gather(*(connection.close(CLOSE_S) for connection in connections))


def agent_command(launch: Launch, node_rank: int, num_processes: int | str, meeting: str) -> list[str]:
    """The command of the agent on one host: `trainkit agent`, or torchrun for another command than `train`.

    Args:
        launch: the job.
        node_rank: number of the host, from 0.
        num_processes: on this host.
        meeting: the endpoint of the rendezvous, `address:port`.
    """
    options = [
        f"--nnodes={len(launch.hosts)}",
        f"--nproc-per-node={num_processes}",
        f"--max-restarts={launch.max_restarts}",
        f"--shutdown-timeout={launch.shutdown_timeout_s:.0f}",
        f"--rdzv-id={launch.run_id}",
        f"--rdzv-endpoint={meeting}",
    ]
    command, *rest = launch.arguments
    if command == "train":
        return [launch.python, "-u", "-m", "trainkit.cli", "agent", f"--node-rank={node_rank}", *options, *rest]
    # A host need not recognise its own address.
    options += ["--rdzv-backend=c10d", f"--rdzv-conf=is_host={int(node_rank == 0)}"]
    program = ["-m", "trainkit.cli", *launch.arguments]
    return [launch.python, "-u", "-m", "trainkit.launcher.quiet_torchrun", *options, *program]


def _environment(connection: Connection) -> dict[str, str]:
    # Without an address torchrun gives the others this host's own name, which they need not resolve.
    address = {"PET_LOCAL_ADDR": connection.address} if connection.address else {}
    return {"TRAINKIT_HOST": connection.host.name, **address}
