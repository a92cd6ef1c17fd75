"""Waits: which part of the steps is slow, said once, with what to set."""

from collections.abc import Callable, Mapping

LEAST_S = 20.0
"""Seconds of training before anything is said: the first steps are slower."""
LEAST_SHARE = 0.2


class Waits:
    """The shares of the training time in which rank 0 waited for its batches and for other ranks.

    Args:
        num_workers: returns how many of each rank fetch batches ahead.
    """

    def __init__(self, num_workers: Callable[[], int]) -> None:
        self._num_workers = num_workers
        self._trained_s = 0.0
        self._waited_s: dict[str, float] = {}
        self._said: set[str] = set()

    def add(self, fractions: Mapping[str, float], seconds: float) -> str | None:
        """Counts the time between two logged steps.

        Args:
            fractions: by name, as `Throughput.fractions` returns them.
            seconds: of that time.

        Returns:
            A line to log; None: nothing is slow that was not said before.
        """
        self._trained_s += seconds
        for name, fraction in fractions.items():
            self._waited_s[name] = self._waited_s.get(name, 0.0) + fraction * seconds
        if self._trained_s < LEAST_S:
            return None
        for name, text in self._texts().items():
            share = self._waited_s.get(name, 0.0) / self._trained_s
            if share >= LEAST_SHARE and name not in self._said:
                self._said.add(name)
                return f"{share:.0%} of the time rank 0 waited for {text}"
        return None

    def _texts(self) -> dict[str, str]:
        num_workers = self._num_workers()
        return {
            "data_wait": f"its batches, with num_workers={num_workers}: set num_workers={max(2, 2 * num_workers)} to "
            f"have them fetched ahead, or make a sample cheaper",
            "comm_wait": "the gradients of other ranks: trainkit topo plan shows what the links allow; "
            "recipe.grad_accumulation_steps or a larger batch communicates less often",
        }
