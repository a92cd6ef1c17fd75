"""The agent of torchrun: values that outlive a restart of the processes, and the store for their rendezvous."""

import os
import secrets
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist

FAILED = "failed"
"""The key under which a process stores an error that would recur; launch/train.py reads it before any import."""

STOPPED = "stopped"
"""The key under which a process that a signal has ended stores the exit code of the job; `trainkit agent` reads it."""

_RENDEZVOUS_S = 1800.0  # torch's default timeout
_asked: Counter[str] = Counter()


def is_restart() -> bool:
    """Whether torchrun or Slurm has restarted this job."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def nth(name: str) -> str:
    """Numbers the uses of a name in this process.

    Args:
        name: any text.

    Returns:
        `name` with the number of calls so far.

    Example:
        >>> nth("port"), nth("port")
        ('port.1', 'port.2')
    """
    _asked[name] += 1
    return f"{name}.{_asked[name]}"


def upcoming(name: str) -> str:
    """Returns what the next `nth(name)` will, without counting as a use."""
    return f"{name}.{_asked[name] + 1}"


def recall(name: str) -> str | None:
    """Reads what `remember` stored in this or an earlier start of the processes of this machine's agent.

    Args:
        name: the key.

    Returns:
        The value; None where there is none, or no agent.
    """
    path = _path(name)
    return path.read_text() if path is not None and path.is_file() else None


def remember(name: str, value: str) -> None:
    """Stores a value for as long as the agent of this machine runs; does nothing without an agent.

    Args:
        name: the key; all processes of the machine share it.
        value: replaces an earlier one.
    """
    path = _path(name)
    if path is not None:
        with suppress(OSError):
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.write_text(value)
            temporary.replace(path)


def _path(name: str) -> Path | None:
    # LOGS/attempt_N/LOCAL_RANK/error.json: each agent creates a LOGS directory.
    file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return file.parents[2] / f"trainkit.{name}" if len(file.parents) > 3 else None


def rendezvous_store(rank: int, world_size: int) -> "dist.Store | None":
    """The store of torchrun's agent, under keys that no earlier start has used. Collective: every rank must call.

    torch uses the same keys in every start, and so reads the addresses of processes that have exited (pytorch #135712).
    The restart count cannot tell the starts apart, because each agent counts its own. So rank 0 numbers the starts, and
    another rank belongs to a start once rank 0 has echoed the random token that the rank has sent.

    Args:
        rank: of this process.
        world_size: processes of the job.

    Returns:
        The store; None where torchrun's agent holds none.

    Raises:
        RuntimeError: where rank 0 does not answer within 30 minutes.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=_RENDEZVOUS_S)
    agents = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    store = dist.PrefixStore(f"trainkit/{os.environ.get('TORCHELASTIC_RUN_ID', '')}", agents)
    if rank == 0:
        number = store.add("starts", 1)
        tokens = [store.get(f"{number}/{other}").decode() for other in range(1, world_size)]
        store.set(f"{number}/met", " ".join(tokens))
        return dist.PrefixStore(str(number), store)
    token, sent, deadline = secrets.token_hex(8), 0, time.monotonic() + _RENDEZVOUS_S
    while time.monotonic() < deadline:
        number = store.add("starts", 0)
        if number > sent:
            store.set(f"{number}/{rank}", token)
            sent = number
        if sent and store.check([f"{sent}/met"]) and token in store.get(f"{sent}/met").decode().split():
            return dist.PrefixStore(str(sent), store)
        time.sleep(0.02)
    raise RuntimeError(f"rank 0 did not answer within {_RENDEZVOUS_S:.0f} s")
