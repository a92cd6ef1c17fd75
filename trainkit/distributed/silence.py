"""Silence: notices hosts that say nothing any more, since their link or their power is lost.

Nothing arrives in place of what a lost host would have sent: TCP waits for a quarter of an hour, and collectives for
their timeout, gloo's being half an hour.
"""

import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

SILENT_S = 15
"""Seconds after which a host that says nothing counts as lost."""
_BEAT_S = 2.0
_KEY = "trainkit/beat"


class Beats:
    """What each host says every two seconds to the store where the hosts have met, until the next meeting.

    The host that holds the store listens to the others. These hear of its loss by their connection to it, which is
    told to end after silence.

    Args:
        store: of one meeting.
        number: of this host, from 0.
        num_hosts: that have met.
        port: of the store, at the first host.

    Raises:
        DistError: from the methods, where the host that holds the store is lost.
    """

    def __init__(self, store: dist.Store, number: int, num_hosts: int, port: int) -> None:
        self._store, self._number = store, number
        self._next_at = 0.0
        self._heard = dict.fromkeys(range(num_hosts), (-1, 0.0))
        store.set(f"{_KEY}/name/{number}", socket.gethostname())
        self._holds_store = num_hosts > 1 and _end_after_silence(port)

    def silent(self) -> str | None:
        """Says that this host is here, and returns the name of one that has not, for `SILENT_S`; None: all have."""
        now = time.monotonic()
        if len(self._heard) == 1 or now < self._next_at:
            return None
        late = now - self._next_at > SILENT_S / 2  # the first time, or this process stood still: it cannot judge
        self._next_at = now + _BEAT_S
        self._store.add(f"{_KEY}/{self._number}", 1)
        if not self._holds_store:
            return None
        for number, (count, since) in self._heard.items():
            beats = self._store.add(f"{_KEY}/{number}", 0)
            if beats != count or late:
                self._heard[number] = (beats, now)
            elif now - since > SILENT_S:
                name = f"{_KEY}/name/{number}"
                return self._store.get(name).decode() if self._store.check([name]) else f"host {number}"
        return None


def _end_after_silence(port: int) -> bool:
    """Lets connections of this process to a port break after `SILENT_S`; returns whether it listens there itself."""
    listens = False
    for own in _sockets():
        if own.getsockname()[1] == port:
            listens = True
            continue
        try:
            peer = own.getpeername()
        except OSError:  # it is not connected
            continue
        if peer[1] == port:
            _break_after(own, SILENT_S)
    return listens


def _break_after(connection: socket.socket, seconds: int) -> None:
    idle = getattr(socket, "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE")  # as macOS calls it
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, idle, seconds // 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds // 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: also where something was sent that nobody acknowledges
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)


def _sockets() -> Iterator[socket.socket]:
    """The TCP sockets of this process: torch opens them, and has no option for what is set here."""
    for path in list(Path("/dev/fd").iterdir()):
        with _socket(int(path.name)) as own:
            if own is not None and own.family in (socket.AF_INET, socket.AF_INET6) and own.type == socket.SOCK_STREAM:
                yield own


@contextmanager
def _socket(number: int) -> Iterator[socket.socket | None]:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            yield None
            return
    except OSError:  # closed since, as the directory's own is
        yield None
        return
    with socket.fromfd(number, -1, -1) as own:  # a duplicate: the options are those of the connection
        yield own
