"""torchrun's agent: what processes that it has started again know from their last start, and where they meet."""

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
"""Remembered by processes that would fail again; launch/train.py looks for it, before it imports anything."""

_MEETING_S = 1800.0  # torch's own patience
_asked: Counter[str] = Counter()


def is_restart() -> bool:
    """Whether torchrun or Slurm has started this job before."""
    return any(int(os.environ.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def nth(name: str) -> str:
    """A name for the n-th time that this process asks about `name`.

    >>> nth("road"), nth("road")
    ('road.1', 'road.2')
    """
    _asked[name] += 1
    return f"{name}.{_asked[name]}"


def recall(name: str) -> str | None:
    """What a process of this machine has remembered under `name` in this or an earlier start of the same agent."""
    path = _path(name)
    return path.read_text() if path is not None and path.is_file() else None


def remember(name: str, value: str) -> None:
    """Keeps `value` as long as the agent of this machine lives; does nothing without one."""
    path = _path(name)
    if path is not None:
        with suppress(OSError):
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.write_text(value)
            temporary.replace(path)


def _path(name: str) -> Path | None:
    # LOGS/attempt_N/LOCAL_RANK/error.json: LOGS is made by the agent, and is its own.
    file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return file.parents[2] / f"trainkit.{name}" if len(file.parents) > 3 else None


def meeting(rank: int, world_size: int) -> "dist.Store | None":
    """The store of torchrun's agent, under keys that no earlier start of the processes has used; None without one.

    torch meets under the same keys at every start, and finds addresses of processes that are gone (pytorch #135712);
    restarts are counted by each agent for itself, so the count does not tell the starts apart. Rank 0 numbers them,
    and another rank is in a start when rank 0 has answered to the word that the rank has made up. Collective.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=_MEETING_S)
    agents = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)
    store = dist.PrefixStore(f"trainkit/{os.environ.get('TORCHELASTIC_RUN_ID', '')}", agents)
    if rank == 0:
        number = store.add("starts", 1)
        words = [store.get(f"{number}/{other}").decode() for other in range(1, world_size)]
        store.set(f"{number}/met", " ".join(words))
        return dist.PrefixStore(str(number), store)
    word, told, deadline = secrets.token_hex(8), 0, time.monotonic() + _MEETING_S
    while time.monotonic() < deadline:
        number = store.add("starts", 0)
        if number > told:
            store.set(f"{number}/{rank}", word)
            told = number
        if told and store.check([f"{told}/met"]) and word in store.get(f"{told}/met").decode().split():
            return dist.PrefixStore(str(told), store)
        time.sleep(0.02)
    raise RuntimeError(f"rank 0 was not there within {_MEETING_S:.0f} s")
