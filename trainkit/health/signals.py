"""Signals: a run that is told to end does so after a step, the same one on all ranks.

Each rank has a thread that asks the rendezvous store twice a second whether any rank was told, so that a step costs
neither a collective nor a round trip. Once one was, every thread promises that its rank will not pass the end of the
step that it is in before the verdict, and the verdict is the furthest of these ends: no rank can be past it, and since
threads answer while steps wait for one another, none waits for ever, whatever the timing.
"""

import json
import math
import os
import secrets
import select
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType

import torch.distributed as dist

from trainkit.distributed.ranks import Ranks
from trainkit.errors import ClusterError

REQUEUE_FILE = "REQUEUE"
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

TIME_IS_UP = 0
"""Stands in for the number of a signal where `end_after` ends the run."""

_ASKING_S = 0.5
_AGREEING_S = 0.01
_PATIENCE_S = 20.0  # less than the 30 s after which torchrun kills
_ECHO_S = 1.0  # Slurm and terminals signal every process of a group, and torchrun passes the signal on to its workers


class Preempted(SystemExit):
    """A run that was told to end, and has saved. `code` is what the process exits with if nobody catches it.

    Under torchrun 0, for anything else is restarted or reported as a failure; elsewhere 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(0 if "TORCHELASTIC_RUN_ID" in os.environ else 128 + number)


class Signals:
    """From `with` to its end, SIGINT, SIGTERM and SIGUSR1 are wishes that the run ends; a second one ends it at once.

    One within a second of the first is its echo. Other signals keep their meaning, as does a SIGINT that the process
    was started to ignore; outside of the main thread all do. Collective: every rank enters, and passes the same
    sequence of `stops_here()`.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._store: dist.Store | None = None
        self._lock = threading.Lock()
        self._num_passed = 0
        self._limit: int | None = None
        self._verdict: int | None = None
        self._has_verdict = threading.Event()
        self._heard: tuple[int, float] | None = None
        self._number = TIME_IS_UP
        self._deadline = math.inf
        self._is_leaving = False
        self._thread = threading.Thread(target=self._listen, name="trainkit-signals", daemon=True)

    # -- the main thread ---------------------------------------------------------------------------------------------

    def stops_here(self) -> bool:
        """Whether the run ends here; the same on all ranks. Raises ClusterError when ranks cannot agree."""
        with self._lock:
            if self._limit is None:
                self._num_passed += 1
                return False
        if not self._has_verdict.wait(_PATIENCE_S):
            raise ClusterError(
                f"told to end, but not all ranks answered within {_PATIENCE_S:.0f} s: nothing was saved after the "
                f"newest checkpoint"
            )
        assert self._verdict is not None
        if self._num_passed >= self._verdict:
            return True
        self._num_passed += 1
        return False

    @property
    def number(self) -> int:
        """Of the signal that ends the run, perhaps heard by another rank, or TIME_IS_UP; known once `stops_here()`."""
        return self._number

    def end_after(self, seconds: float) -> None:
        """The run ends with the step in which so many seconds are over on rank 0; other ranks' own are left alone."""
        if self._ranks.is_main:
            self._deadline = time.monotonic() + seconds

    def __enter__(self) -> "Signals":
        if (store := self._ranks.own_store()) is not None:
            # A restarted job may meet in the same store again.
            self._store = dist.PrefixStore(f"signals/{self._ranks.broadcast_object(secrets.token_hex(8))}", store)
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            # Written by the C handler: the thread hears it while the main thread is deep in a collective.
            self._wakeup = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            # A shell starts what is not in the foreground with SIGINT ignored: Ctrl-C there means another process.
            heard = [number for number in CAUGHT if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, _leave_to_the_thread) for number in heard}
            _live.add(self)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _live.discard(self)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
        self._is_leaving = True
        self._mouth.send(b"\0")
        self._thread.join(timeout=5)
        if kind is None:
            self._say_goodbye()
        self._ear.close()
        self._mouth.close()

    def _say_goodbye(self) -> None:
        """Ranks that were told after this one had passed its last `stops_here()` still wait for its answer."""
        if self._store is None or self._verdict is not None:
            return
        try:
            if self._limit is None:
                self._promise()
            if self._ranks.is_main:
                self._store.set("verdict", str(self._num_passed))
        except RuntimeError:  # the store has gone with the rank that held it
            return

    # -- the thread --------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        is_cut_off = False
        while not self._is_leaving:
            agreeing = self._limit is not None and self._verdict is None and not is_cut_off
            if select.select([self._ear], [], [], _AGREEING_S if agreeing else self._asking_s())[0]:
                for number in self._ear.recv(64):
                    self._hear(number)
            if is_cut_off or self._verdict is not None:
                continue
            try:
                self._agree()
            except RuntimeError:  # the store is gone, and the job with it; a second signal must still be heard
                is_cut_off = True

    def _asking_s(self) -> float:
        until_deadline = self._deadline - time.monotonic()
        return min(_ASKING_S, until_deadline) if until_deadline > 0 else _ASKING_S

    def _hear(self, number: int) -> None:
        if number not in CAUGHT:
            return
        now = time.monotonic()
        if self._heard is None:
            self._heard = number, now
        elif now - self._heard[1] > _ECHO_S:
            os.write(2, f"trainkit: a second {signal.Signals(number).name}: stopped at once\n".encode())
            os._exit(128 + number)

    def _agree(self) -> None:
        if self._limit is None:
            own = self._own_reason()
            if own is not None and self._store is not None:
                self._store.set("told", str(own))
            elif own is None and not (self._store is not None and self._store.check(["told"])):
                return
            self._promise()
            if self._ranks.is_main and (number := self._first()) != TIME_IS_UP:
                self._say_what_comes(number)
        verdict = self._find_verdict()
        if verdict is not None:
            self._number = self._first()  # all ranks have promised: it changes no more
            self._verdict = verdict
            self._has_verdict.set()

    def _own_reason(self) -> int | None:
        """What this rank has heard itself; None: nothing that ends the run."""
        if self._heard is not None:
            return self._heard[0]
        return TIME_IS_UP if time.monotonic() >= self._deadline else None

    def _promise(self) -> None:
        with self._lock:
            self._limit = self._num_passed
        if self._store is not None:
            self._store.set(f"limit/{self._ranks.rank}", str(self._limit))

    def _first(self) -> int:
        """The number of the signal that was heard, perhaps by another rank, or TIME_IS_UP."""
        if self._store is not None:
            return int(self._store.get("told"))
        return self._heard[0] if self._heard is not None else TIME_IS_UP

    def _say_what_comes(self, number: int) -> None:
        """At once, for a step may be long. From this thread, while the main one may be writing: as one write."""
        name = signal.Signals(number).name
        again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
        os.write(2, f"\ntrainkit: {name}: ends after this step, and saves first; {again} ends it at once\n".encode())

    def _find_verdict(self) -> int | None:
        """The furthest of all promises, which rank 0 finds; None until it is known."""
        store = self._store
        if store is None:
            return self._limit
        if self._ranks.is_main and not store.check(["verdict"]):
            keys = [f"limit/{rank}" for rank in range(self._ranks.world_size)]
            if not store.check(keys):
                return None
            store.set("verdict", str(max(int(store.get(key)) for key in keys)))
        return int(store.get("verdict")) if store.check(["verdict"]) else None


def write_requeue(run_dir: Path, *, number: int, step: int) -> None:
    """Leaves word in `run_dir`, for whoever has started the run, that it is to be started again."""
    line = json.dumps({"signal": signal.Signals(number).name, "step": step, "time": round(time.time(), 3)})
    temporary = run_dir / f".{REQUEUE_FILE}.tmp"
    try:
        temporary.write_text(line + "\n")
        temporary.replace(run_dir / REQUEUE_FILE)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


_live: set[Signals] = set()
_forking = threading.local()


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Without a handler of Python's, nothing would be written to the thread's socket."""


# A signal to a forked child is for it alone: it must neither be swallowed nor told to the parent's thread. Until the
# child has handlers of its own, it waits.


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT) if _live else None


def _after_fork(in_child: bool) -> None:
    if _forking.mask is None:
        return
    if in_child:
        _live.clear()
        signal.set_wakeup_fd(-1)
        for number in CAUGHT:
            # Ctrl-C reaches every process of the terminal's group, and it is the parent that decides about its end.
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(
    before=_before_fork, after_in_parent=partial(_after_fork, False), after_in_child=partial(_after_fork, True)
)
