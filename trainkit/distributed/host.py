"""Host: what one host has to know of a job on several, and where it meets the others."""

import socket
import time
import uuid
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from trainkit.errors import ClusterError

ALONE = "localhost:0"
"""The endpoint of a job on one host: a free port."""

LOST = (RendezvousError, dist.DistError)
"""What torch raises where the store of the first host cannot be reached."""

MEETING_S = 600.0
"""Seconds for which hosts wait for one another: they may be started by hand, and their images pulled."""

# A host that is lost is noticed after 3 x 2 s; then others may come for 5 s. torch's defaults are 15 s and 30 s.
_RENDEZVOUS = {"keep_alive_interval": 2, "keep_alive_max_attempt": 3, "last_call_timeout": 5}


@dataclass(frozen=True, kw_only=True)
class Host:
    """What one host has to know of a job.

    Args:
        processes: on this host.
        min_nodes: hosts, without which the job does not run.
        max_nodes: hosts, for which it does not wait.
        endpoint: HOST:PORT where they meet; `ALONE` for one host.
        is_first: whether this host is that of `endpoint`; None: it is found out by its name.
        job: a name of the job, the same on all hosts.
        max_restarts: how often the processes are started again after a failure.
        shutdown_timeout_s: seconds after a signal before processes that have not ended are killed.
    """

    processes: int
    min_nodes: int = 1
    max_nodes: int = 1
    endpoint: str = ALONE
    is_first: bool | None = None
    job: str = ""
    max_restarts: int = 0
    shutdown_timeout_s: int = 30


def rendezvous_handler(host: Host) -> RendezvousHandler:
    """Connects to the store of the job's first host, or makes it there.

    Args:
        host: what this host has to know.

    Raises:
        ClusterError: where the hosts cannot meet at the endpoint.
    """
    parameters: dict[str, Any] = {"timeout": int(MEETING_S), "join_timeout": int(MEETING_S), **_RENDEZVOUS}
    if host.is_first is not None:
        parameters["is_host"] = host.is_first
    if host.is_first is False:
        _wait_for(host.endpoint)
    try:
        return get_rendezvous_handler(
            RendezvousParameters(
                backend="c10d",
                endpoint=host.endpoint,
                run_id=host.job or str(uuid.uuid4()),
                min_nodes=host.min_nodes,
                max_nodes=host.max_nodes,
                local_addr=own_address(host),
                **parameters,
            )
        )
    except LOST as error:
        reason = first_line(error.__cause__ or error)
        raise ClusterError(f"--rdzv-endpoint={host.endpoint}: the hosts cannot meet there: {reason}") from error


def _wait_for(endpoint: str) -> None:
    """Waits until the first host listens. torch would, too, but deaf to signals, and for a minute only."""
    name, port = _parts(endpoint)
    deadline = time.monotonic() + MEETING_S
    while True:
        try:
            return socket.create_connection((name, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"--rdzv-endpoint={endpoint}: nothing listened there for {MEETING_S:.0f} s "
                    f"({error.strerror or error}): is the first host running, and reached from {socket.gethostname()}?"
                ) from error
        time.sleep(0.5)


def own_address(host: Host) -> str:
    """The address by which other hosts reach this one: that of the interface which leads to the endpoint.

    Args:
        host: what this host has to know.

    Raises:
        ClusterError: where nothing leads there.
    """
    name, port = _parts(host.endpoint)
    if host.endpoint == ALONE or host.is_first:
        return name
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ClusterError(f"--rdzv-endpoint={host.endpoint}: {error.strerror or error}") from error


def _parts(endpoint: str) -> tuple[str, int]:
    name, _, port = endpoint.rpartition(":")
    return name.strip("[]"), int(port)


def port_of(host: Host) -> int:
    """The port of the endpoint; 0 for one host, which takes any.

    Args:
        host: what this host has to know.
    """
    return _parts(host.endpoint)[1]


def first_line(error: BaseException) -> str:
    """The message of an error without the lines below it, where torch prints the stack of its own code."""
    return str(error).partition("\n")[0] or type(error).__name__
