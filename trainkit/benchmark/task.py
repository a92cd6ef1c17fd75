"""Task: one measurement as JSON, which the processes of a job make and answer."""

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainkit.errors import TrainkitError
from trainkit.json_text import read_json, write_json
from trainkit.memory.probe import is_out_of_memory

Kind = Literal["steps", "flops", "peak", "batch"]
ANSWER, FAILURE = "answer.json", "failure_{rank}.json"


def work(directory: Path) -> int:
    """Makes the measurement that `task.json` in a directory describes. Collective: every rank must call.

    Rank 0 writes its answer there; a rank that fails writes why.

    Args:
        directory: of the task.

    Returns:
        The exit code: 1 for a failure.
    """
    rank = int(os.environ.get("RANK", 0))
    try:
        answer = _answer(read_json(directory / "task.json"))
    except Exception as error:
        write_json(directory / FAILURE.format(rank=rank), {"reason": reason_of(error)})
        return 1
    if rank == 0:
        write_json(directory / ANSWER, answer)
    return 0


def reason_of(error: BaseException) -> str:
    """An error in one line; of one that is nobody's message to a user, also where it was raised.

    Example:
        >>> reason_of(MemoryError("3 GB"))
        'out of memory: 3 GB'
    """
    first = " ".join(str(error).split())[:300]
    if is_out_of_memory(error):
        return f"out of memory: {first}"
    if isinstance(error, TrainkitError):
        return first
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first}{where}"


def _answer(task: Mapping[str, Any]) -> dict[str, Any]:
    kind: Kind = task["kind"]
    if kind == "peak":
        from trainkit.benchmark.peak import measure_peak
        from trainkit.distributed.cluster import current_cluster
        from trainkit.distributed.device import choose_device
        from trainkit.precision import Precision

        return measure_peak(Precision(name=task["precision"]), choose_device(task["device"], current_cluster()))
    if kind == "flops":
        from trainkit.benchmark.flops import count_flops

        return count_flops(task["config"])
    if kind == "batch":
        from trainkit.benchmark.fitting import find_batch_size

        return find_batch_size(task["config"])
    from trainkit.benchmark.grid import Length
    from trainkit.benchmark.steps import measure_steps

    return measure_steps(task["config"], Length(**task["length"]))
