"""HealthStore: how watchdogs of ranks exchange small records, without a collective."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from trainkit.health.rank_status import RankStatus

T = TypeVar("T")
REPLY_TIMEOUT_S = 10.0
"""Seconds after which a store that has not replied is given up: its host may be the one that is stopped."""


class HealthStore:
    """One rank's access to the rendezvous store.

    Under torchrun its agent keeps the store, which outlives rank 0 then; elsewhere rank 0 keeps it. Every method gives
    up after `REPLY_TIMEOUT_S`; one that reads then returns None.

    Args:
        store: a connection of its own, see `Ranks.own_store`: a thread that waits in a collective may hold the group's.
        topic: the same on every rank, and never used before at this store.
        rank: of this process.
        world_size: ranks of the job.
    """

    def __init__(self, store: dist.Store, topic: str, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._store = dist.PrefixStore(f"trainkit/health/{topic}", store)
        self._request: threading.Thread | None = None
        self.is_dead = False

    def exchange(self, own: RankStatus) -> str | None:
        """Publishes this rank's status, and asks for an alarm.

        Returns:
            The alarm that a rank has raised, or an empty string.
        """

        def both() -> str:
            self._store.set(f"status/{self.rank}", own.to_json())
            return self._store.get("alarm").decode() if self._store.check(["alarm"]) else ""

        return self._call(both)

    def raise_alarm(self, text: str) -> None:
        """Lets every rank's next `exchange` return `text`, or the alarm of a rank that was faster."""
        self._call(lambda: self._store.compare_set("alarm", "", text))

    def statuses(self, kind: str = "status") -> dict[int, RankStatus] | None:
        """The last status of each rank that has published one.

        Args:
            kind: `status`, or `answer` for the answers to an alarm.
        """

        def read() -> dict[int, RankStatus]:
            keys = {rank: f"{kind}/{rank}" for rank in range(self.world_size)}
            there = [rank for rank, key in keys.items() if self._store.check([key])]
            if not there:
                return {}
            texts = self._store.multi_get([keys[rank] for rank in there])
            return {rank: RankStatus.from_json(text) for rank, text in zip(there, texts, strict=True)}

        return self._call(read)

    def answer(self, own: RankStatus) -> None:
        """Publishes this rank's answer to an alarm."""
        self._call(lambda: self._store.set(f"answer/{self.rank}", own.to_json()))

    def claim_report(self) -> bool:
        """Whether this rank is to write the report: true for one rank only, and for all where the store is dead."""
        number = self._call(lambda: self._store.add("reporters", 1))
        return number is None or number == 1

    def mark_reported(self) -> None:
        """Publishes that the report is written."""
        self._call(lambda: self._store.set("reported", "1"))

    def is_reported(self) -> bool:
        """Whether a rank has written the report."""
        return bool(self._call(lambda: self._store.check(["reported"])))

    def publish(self, own: RankStatus) -> None:
        """Publishes this rank's status."""
        self._call(lambda: self._store.set(f"status/{self.rank}", own.to_json()))

    def _call(self, call: Callable[[], T]) -> T | None:
        """What `call` returns. It runs in a thread, because some calls of the store wait without a timeout."""
        if self.is_dead or (self._request is not None and self._request.is_alive()):
            return None
        replies: list[T] = []

        def run() -> None:
            try:
                replies.append(call())
            except (RuntimeError, ValueError):  # torch's DistError is a RuntimeError
                self.is_dead = True

        self._request = threading.Thread(target=run, name="trainkit-health-store", daemon=True)
        self._request.start()
        self._request.join(REPLY_TIMEOUT_S)
        return replies[0] if replies else None
