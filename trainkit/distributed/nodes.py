"""Nodes of a scheduler's job: lists of their names, and their addresses."""

import hashlib
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from trainkit.errors import ClusterError

_ASKING_S = 20.0
_FIRST_PORT, _NUM_PORTS = 20000, 10000


def counts(text: str) -> list[int]:
    """The numbers of a list over nodes, as Slurm writes it.

    Args:
        text: such as SLURM_STEP_TASKS_PER_NODE.

    Returns:
        One number a node.

    Raises:
        ValueError: where it is no such list.

    Example:
        >>> counts("2(x3),1")
        [2, 2, 2, 1]
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(text)
        found += [int(match[1])] * int(match[2] or 1)
    return found


def first(text: str) -> str:
    """The first name of a list of nodes, as Slurm writes it.

    Args:
        text: such as SLURM_JOB_NODELIST.

    Example:
        >>> first("rack[1-2]node[007-009,12],login"), first("a,b[1-2]")
        ('rack1node007', 'a')
    """
    name, depth = "", 0
    for letter in text:
        if letter == "," and not depth:
            break
        depth += {"[": 1, "]": -1}.get(letter, 0)
        name += letter
    return re.sub(r"\[([^-,\]]+)[^\]]*\]", r"\1", name)


def first_of_job(environment: Mapping[str, str]) -> str | None:
    """The node on which a scheduler starts rank 0.

    Args:
        environment: of a process of the job.

    Returns:
        Its name; None where no scheduler tells it.
    """
    for variable in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        if environment.get(variable):
            return first(environment[variable])
    if (ranks := _lines(environment.get("LSB_DJOB_RANKFILE"))) and "LSB_JOBID" in environment:
        # The first line is the node that runs the job's script, where jsrun starts no process.
        return next((host for host in ranks if host != ranks[0]), ranks[0])
    return next(iter(_lines(environment.get("PBS_NODEFILE"))), None)


def port_of(job: str, step: str) -> int:
    """A port that all processes of a step choose, and those of other jobs mostly do not.

    Args:
        job: the number of the job; empty: it has none.
        step: that of the step in it; empty: it has none.

    Returns:
        A port from 20000 to 29999.
    """
    digest = hashlib.sha256(f"{job}.{step}".encode()).digest()
    return _FIRST_PORT + int.from_bytes(digest[:4], "big") % _NUM_PORTS


def _lines(path: str | None) -> list[str]:
    return Path(path).read_text().split() if path and Path(path).is_file() else []


def address_of(node: str) -> str:
    """What to connect to for reaching a node: its name, or the address that Slurm has for it.

    Args:
        node: its name, which need not be that of a host.

    Raises:
        ClusterError: where neither is known.
    """
    if _resolves(node):
        return node
    if (scontrol := shutil.which("scontrol")) is not None:
        command = [scontrol, "--oneliner", "show", "node", node]
        told = subprocess.run(command, capture_output=True, text=True, timeout=_ASKING_S, check=False)
        fields = dict(field.partition("=")[::2] for field in told.stdout.split())
        for field in ("NodeAddr", "NodeHostName"):
            if _resolves(fields.get(field, "")):
                return fields[field]
    raise ClusterError(
        f"the node {node} has no address here (no host has that name): set MASTER_ADDR to an address of it that the "
        f"other nodes reach, or add it to /etc/hosts"
    )


def _resolves(name: str) -> bool:
    try:
        return bool(name and socket.getaddrinfo(name, None))
    except OSError:
        return False
