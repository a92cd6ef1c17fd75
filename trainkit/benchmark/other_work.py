"""Other work: how many cores other programs kept busy while something was measured."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)  # of a line of /proc/stat: user, nice, system, irq, softirq, steal


class OtherWork:
    """Counts the processor time of this machine and of this process, from its making on.

    Args:
        stat: in place of /proc/stat.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._began, self._busy, self._own = time.monotonic(), _busy_s(stat), time.process_time()

    def own_s(self) -> float:
        """Seconds of a processor that this process has taken."""
        return time.process_time() - self._own

    def cores(self, own_s: float) -> float | None:
        """The cores that were busy with anything else, on average; None: the system does not say.

        Args:
            own_s: of all processes that are not meant.
        """
        now = _busy_s(self._stat)
        if self._busy is None or now is None:
            return None
        return max(0.0, (now - self._busy - own_s) / (time.monotonic() - self._began))


def _busy_s(stat: Path) -> float | None:
    """Seconds for which processors were busy since the machine was started."""
    if not stat.exists():
        return None
    fields = stat.read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[index]) for index in _BUSY) / os.sysconf("SC_CLK_TCK")
