"""What ranks tell one another beside training: small records in the store at which they met, never a collective."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from trainkit.health.verdict import Sign

T = TypeVar("T")
REPLY_S = 10.0
"""A store that has not replied in this time is taken for dead: its host may be the one that is stopped."""


class Post:
    """One rank's place at the store at which the ranks met.

    store: a connection of its own, see `Ranks.own_store`: a thread that waits in a collective may hold the group's.
    Under torchrun its agent keeps the store, which outlives rank 0 then; elsewhere rank 0 does.
    Every method gives up after `REPLY_S`, and says so by None.
    topic: the same on every rank, and never used before at this store.
    """

    def __init__(self, store: dist.Store, topic: str, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._store = dist.PrefixStore(f"trainkit/health/{topic}", store)
        self._known: set[int] = set()
        self._asking: threading.Thread | None = None
        self.is_dead = False

    def exchange(self, mine: Sign) -> str | None:
        """Tells the others `mine`; the alarm that one of them has raised, or an empty string."""

        def both() -> str:
            self._store.set(f"sign/{self.rank}", mine.to_json())
            return self._store.get("alarm").decode() if self._store.check(["alarm"]) else ""

        return self._ask(both)

    def raise_alarm(self, text: str) -> None:
        """Every rank's next `exchange` returns `text`, or that of one who was faster."""
        self._ask(lambda: self._store.compare_set("alarm", "", text))

    def signs(self, kind: str = "sign") -> dict[int, Sign] | None:
        """What each rank last told; kind `answer`: to the alarm."""

        def read() -> dict[int, Sign]:
            keys = {rank: f"{kind}/{rank}" for rank in range(self.world_size)}
            there = [rank for rank, key in keys.items() if self._store.check([key])]
            if not there:
                return {}
            return {
                rank: Sign.from_json(text)
                for rank, text in zip(there, self._store.multi_get([keys[rank] for rank in there]), strict=True)
            }

        return self._ask(read)

    def answer(self, mine: Sign) -> None:
        self._ask(lambda: self._store.set(f"answer/{self.rank}", mine.to_json()))

    def claim_report(self) -> bool:
        """True for one rank only; and for all where the store is dead."""
        number = self._ask(lambda: self._store.add("reporters", 1))
        return number is None or number == 1

    def reported(self) -> None:
        self._ask(lambda: self._store.set("reported", "1"))

    def is_reported(self) -> bool:
        return bool(self._ask(lambda: self._store.check(["reported"])))

    def tell(self, mine: Sign) -> None:
        self._ask(lambda: self._store.set(f"sign/{self.rank}", mine.to_json()))

    def _ask(self, call: Callable[[], T]) -> T | None:
        """What `call` returns. It runs in a thread, because some of the store's calls wait for ever."""
        if self.is_dead or (self._asking is not None and self._asking.is_alive()):
            return None
        replies: list[T] = []

        def run() -> None:
            try:
                replies.append(call())
            except (RuntimeError, ValueError):  # torch's DistError is a RuntimeError
                self.is_dead = True

        self._asking = threading.Thread(target=run, name="trainkit-post", daemon=True)
        self._asking.start()
        self._asking.join(REPLY_S)
        return replies[0] if replies else None
