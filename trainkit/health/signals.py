"""Signals: a run that receives a signal ends after a step, the same one on all ranks.

Each rank has a thread that asks the rendezvous store twice a second whether any rank has received a signal, so that a
step costs neither a collective nor a round trip. Once one has, every thread publishes the number of the step that its
rank is in, whose end the rank does not pass before the last step is known. The last step is the largest of these
numbers: no rank can be past it, and since threads publish while steps wait for one another, no rank waits forever.
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

from trainkit.distributed import agent
from trainkit.distributed.ranks import Ranks
from trainkit.errors import ClusterError

REQUEUE_FILE = "REQUEUE"
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

TIME_IS_UP = 0
"""In place of the number of a signal, where `end_after` ends the run."""

FILES_CHANGED = -1
"""In place of the number of a signal, where `end_for_files` ends the run."""

_POLL_S = 0.5
_AGREEING_POLL_S = 0.01
_TIMEOUT_S = 20.0  # less than the 30 s after which torchrun kills
_LEAVING_S = 5.0
_ECHO_S = 1.0  # Slurm and terminals signal every process of a group, and torchrun passes the signal on to its workers


class Preempted(SystemExit):
    """Raised after a run was ended by a signal.

    Its exit `code` is 0 under torchrun, where anything else is restarted or reported as a failure; `trainkit agent`,
    which leaves a word for it, ends with what the code is elsewhere: 75 where it would continue from a checkpoint that
    it did not start from, 128 + the signal's number otherwise, and after Ctrl-C.

    Args:
        number: of the signal.
        has_saved: whether there is a checkpoint that is newer than what this job began with.
    """

    def __init__(self, number: int, *, has_saved: bool = True) -> None:
        code = os.EX_TEMPFAIL if has_saved and number != signal.SIGINT else 128 + number
        agent.remember(agent.STOPPED, str(code))
        super().__init__(0 if "TORCHELASTIC_RUN_ID" in os.environ else code)


class Signals:
    """A context in which SIGINT, SIGTERM and SIGUSR1 end the run after a step; a second signal ends it at once.

    A signal within a second of the first one is ignored, since launchers repeat them. Other signals keep their meaning,
    as does a SIGINT that the process was started to ignore; outside of the main thread all do. Collective: every rank
    must enter, and call `stops_here()` as often.

    Args:
        ranks: the processes of the job.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._store: dist.Store | None = None
        self._lock = threading.Lock()
        self._num_passed = 0
        self._limit: int | None = None
        self._last_step: int | None = None
        self._has_last_step = threading.Event()
        self._received: tuple[int, float] | None = None
        self._number = TIME_IS_UP
        self._have_files_changed = False
        self._deadline = math.inf
        self._is_leaving = False
        self._thread = threading.Thread(target=self._listen, name="trainkit-signals", daemon=True)

    # -- the main thread ---------------------------------------------------------------------------------------------

    def stops_here(self) -> bool:
        """Whether the run ends here; the same on all ranks.

        Raises:
            ClusterError: where the ranks cannot agree.
        """
        with self._lock:
            if self._limit is None:
                self._num_passed += 1
                return False
        if not self._has_last_step.wait(_TIMEOUT_S):
            raise ClusterError(
                f"a signal ends the run, but not all ranks answered within {_TIMEOUT_S:.0f} s: nothing was saved after "
                f"the newest checkpoint"
            )
        assert self._last_step is not None
        if self._num_passed >= self._last_step:
            return True
        self._num_passed += 1
        return False

    @property
    def number(self) -> int:
        """The signal that ends the run, of whichever rank, TIME_IS_UP or FILES_CHANGED; known once `stops_here()`."""
        return self._number

    @property
    def has_received(self) -> bool:
        """Whether this rank has received a signal itself."""
        return self._received is not None

    def end_for_files(self) -> None:
        """Ends the run after a step, since this rank found that files of its data changed. Called in any thread."""
        self._have_files_changed = True

    def end_after(self, seconds: float) -> None:
        """Ends the run after the step in which a time is over on rank 0's clock.

        Args:
            seconds: from now; ignored on other ranks.
        """
        if self._ranks.is_main:
            self._deadline = time.monotonic() + seconds

    def __enter__(self) -> "Signals":
        if (store := self._ranks.own_store()) is not None:
            # A restarted job may meet in the same store again.
            self._store = dist.PrefixStore(f"signals/{self._ranks.broadcast_object(secrets.token_hex(8))}", store)
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            # Written by the C handler: the thread receives it while the main thread is inside a collective.
            self._wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
            # A shell starts background processes with SIGINT ignored: Ctrl-C there is for another process.
            handled = [number for number in CAUGHT if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, _ignore) for number in handled}
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
        self._sender.send(b"\0")
        self._thread.join(timeout=5)
        if kind is None:
            self._release_others()
        if kind is None or issubclass(kind, Preempted):
            self._leave_last()
        self._receiver.close()
        self._sender.close()

    def _release_others(self) -> None:
        """Answers ranks that learn of a signal after this rank's last `stops_here()`."""
        if self._store is None or self._last_step is not None:
            return
        try:
            if self._limit is None:
                self._publish_limit()
            if self._ranks.is_main:
                self._store.set("last_step", str(self._num_passed))
        except RuntimeError:  # the store has gone with the rank that held it
            return

    def _leave_last(self) -> None:
        """Keeps rank 0, whose process may hold the store, until no rank uses it: torch prints lost connections."""
        if self._store is None:
            return
        try:
            num_left, deadline = self._store.add("left", 1), time.monotonic() + _LEAVING_S
            while self._ranks.is_main and num_left < self._ranks.world_size and time.monotonic() < deadline:
                time.sleep(_AGREEING_POLL_S)
                num_left = self._store.add("left", 0)
        except RuntimeError:  # it is held elsewhere, and has gone
            return

    # -- the thread --------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        is_disconnected = False
        while not self._is_leaving:
            agreeing = self._limit is not None and self._last_step is None and not is_disconnected
            if select.select([self._receiver], [], [], _AGREEING_POLL_S if agreeing else self._poll_s())[0]:
                for number in self._receiver.recv(64):
                    self._receive(number)
            if is_disconnected or self._last_step is not None:
                continue
            try:
                self._agree()
            except RuntimeError:  # the store is gone, and the job with it; a second signal must still end the process
                is_disconnected = True

    def _poll_s(self) -> float:
        until_deadline = self._deadline - time.monotonic()
        return min(_POLL_S, until_deadline) if until_deadline > 0 else _POLL_S

    def _receive(self, number: int) -> None:
        if number not in CAUGHT:
            return
        now = time.monotonic()
        if self._received is None:
            self._received = number, now
        elif now - self._received[1] > _ECHO_S:
            os.write(2, f"trainkit: a second {signal.Signals(number).name}: stopped at once\n".encode())
            os._exit(128 + number)

    def _agree(self) -> None:
        if self._limit is None:
            own = self._own_reason()
            if own is not None and self._store is not None:
                self._store.set("signal", str(own))
            elif own is None and not (self._store is not None and self._store.check(["signal"])):
                return
            self._publish_limit()
            if self._ranks.is_main and (number := self._first()) in CAUGHT:
                self._announce(number)
        last_step = self._find_last_step()
        if last_step is not None:
            self._number = self._first()  # all ranks have published their limit: it no longer changes
            self._last_step = last_step
            self._has_last_step.set()

    def _own_reason(self) -> int | None:
        """The signal that this rank has received itself; None: nothing that ends the run."""
        if self._received is not None:
            return self._received[0]
        if self._have_files_changed:
            return FILES_CHANGED
        return TIME_IS_UP if time.monotonic() >= self._deadline else None

    def _publish_limit(self) -> None:
        with self._lock:
            self._limit = self._num_passed
        if self._store is not None:
            self._store.set(f"limit/{self._ranks.rank}", str(self._limit))

    def _first(self) -> int:
        """The signal that a rank has received, TIME_IS_UP or FILES_CHANGED."""
        if self._store is not None:
            return int(self._store.get("signal"))
        return self._own_reason() or TIME_IS_UP

    def _announce(self, number: int) -> None:
        """At once, since a step may be long; in one write, since the main thread may be writing too."""
        name = signal.Signals(number).name
        again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
        os.write(2, f"\ntrainkit: {name}: ends after this step, and saves first; {again} ends it at once\n".encode())

    def _find_last_step(self) -> int | None:
        """The largest limit of all ranks, which rank 0 publishes; None until it is known."""
        store = self._store
        if store is None:
            return self._limit
        if self._ranks.is_main and not store.check(["last_step"]):
            keys = [f"limit/{rank}" for rank in range(self._ranks.world_size)]
            if not store.check(keys):
                return None
            store.set("last_step", str(max(int(store.get(key)) for key in keys)))
        return int(store.get("last_step")) if store.check(["last_step"]) else None


def write_requeue(run_dir: Path, *, number: int, step: int) -> None:
    """Writes the file REQUEUE, which asks the launcher to start the run again.

    Args:
        run_dir: the run's directory.
        number: of the signal that ended it.
        step: steps done.

    Raises:
        OSError: where it cannot be written.
    """
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


def _ignore(number: int, frame: FrameType | None) -> None:
    """Without a Python handler, nothing would be written to the thread's socket."""


# A signal to a forked child is for the child alone: it must be neither lost nor written to the parent's socket. It is
# blocked until the child has handlers of its own.


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT) if _live else None


def _after_fork(in_child: bool) -> None:
    if _forking.mask is None:
        return
    if in_child:
        _live.clear()
        signal.set_wakeup_fd(-1)
        for number in CAUGHT:
            # Ctrl-C reaches every process of the terminal's group; the parent decides when the child ends.
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(
    before=_before_fork, after_in_parent=partial(_after_fork, False), after_in_child=partial(_after_fork, True)
)
