"""The processes of one measurement of `trainkit benchmark`: `python -m trainkit.cli.benchmark_task DIRECTORY NUM`."""

import os
import sys
from pathlib import Path

from trainkit.cli.main import guarded


def main(directory: str, processes: str) -> int:
    """Starts the processes of a measurement, or is one of them.

    Args:
        directory: of its task.
        processes: how many.

    Returns:
        The exit code.
    """
    if processes != "1" and "RANK" not in os.environ:
        from trainkit.distributed.processes import run

        return run(["-m", "trainkit.cli.benchmark_task", directory, processes], int(processes))
    from trainkit.benchmark.task import work

    return work(Path(directory))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:]), from_here=True))
