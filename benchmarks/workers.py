"""What it costs to have batches fetched ahead, beside torch's DataLoader with as many workers.

    python benchmarks/workers.py                       # about two minutes
    python benchmarks/workers.py --turns 1 --batches 50

Each way gives the same batches of one data set in memory, whose fetching costs little, so that the handing over is what
is measured: the time until the next batch, and the CPU time of the process that trains, which takes nothing else from
it. Ways take turns in one process; workers are started before the clock is.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import trainkit
from benchmarks.overhead import in_words, machine, spread, write

CASES: dict[str, tuple[tuple[int, ...], type, int]] = {
    "32 windows of 64 tokens": ((64,), np.int64, 32),
    "256 windows of 512 tokens": ((512,), np.int64, 256),
    "64 pictures of 64 x 64": ((3, 64, 64), np.uint8, 64),
}
_NUM_SAMPLES, _WARM_UP = 4096, 10


class InMemory:
    """A data set that reads a whole batch at once."""

    def __init__(self, shape: tuple[int, ...], dtype: type, is_thread_safe: bool) -> None:
        self.values: NDArray[Any] = np.zeros((_NUM_SAMPLES, *shape), dtype)
        self.is_thread_safe = is_thread_safe

    def __len__(self) -> int:
        return _NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"values": torch.from_numpy(self.values[index])}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"values": torch.from_numpy(self.values[np.asarray(indices)])}


class InBatches:
    """The same by position, as torch's DataLoader takes it with batch_size=None."""

    def __init__(self, source: InMemory, batch_size: int) -> None:
        self.source, self.batch_size = source, batch_size

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.source.__getitems__([(position + number) % _NUM_SAMPLES for number in range(self.batch_size)])


def ways(shape: tuple[int, ...], dtype: type, batch_size: int) -> dict[str, Callable[[], Iterator[Any]]]:
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())

    def ours(num_workers: int, is_thread_safe: bool) -> Callable[[], Iterator[Any]]:
        source = InMemory(shape, dtype, is_thread_safe)
        return lambda: runtime.batches(source, batch_size=batch_size, num_workers=num_workers)

    def torchs(num_workers: int) -> Callable[[], Iterator[Any]]:
        data: Any = InBatches(InMemory(shape, dtype, False), batch_size)
        return lambda: iter(DataLoader(data, sampler=count(0, batch_size), batch_size=None, num_workers=num_workers))

    made = {"no worker": ours(0, False)}
    for num_workers in (1, 2):
        made |= {
            f"DataLoader, {num_workers}": torchs(num_workers),
            f"processes, {num_workers}": ours(num_workers, False),
            f"threads, {num_workers}": ours(num_workers, True),
        }
    return made


def measure(title: str, num_turns: int, num_batches: int) -> dict[str, Any]:
    shape, dtype, batch_size = CASES[title]
    contenders = ways(shape, dtype, batch_size)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(num_turns):
        for name, make in contenders.items():
            print(f"\r{title}: turn {turn + 1} of {num_turns}, {name:<16}", end="", file=sys.stderr, flush=True)
            batches = make()
            for _ in islice(batches, _WARM_UP):
                pass
            began, cpu_began = time.perf_counter(), time.process_time()
            for _ in islice(batches, num_batches):
                pass
            times[name].append(1e6 * (time.perf_counter() - began) / num_batches)
            cpu_times[name].append(1e6 * (time.process_time() - cpu_began) / num_batches)
            del batches
    print(file=sys.stderr)
    contents = {
        name: {
            "batch_us": spread(times[name]),
            "cpu_us": spread(cpu_times[name]),
            "over_torch": spread([a / b for a, b in zip(times[name], times[f"DataLoader, {name[-1]}"], strict=True)])
            if name[-1].isdigit()
            else None,
        }
        for name in contenders
    }
    num_bytes = batch_size * int(np.prod(shape)) * np.dtype(dtype).itemsize
    return {"case": title, "num_bytes": num_bytes, "num_turns": num_turns, "contenders": contents}


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['case']}, {result['num_bytes'] / 1e6:.3g} MB a batch; median (quartiles), us"]
    for name, one in result["contenders"].items():
        lines.append(f"  {name:<16}{in_words(one['batch_us'], 0):>22}   CPU {in_words(one['cpu_us'], 0)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, metavar="N")
    parser.add_argument("--batches", type=int, default=400, metavar="N", help="in each turn of each way")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    results = []
    for title in CASES:
        results.append(measure(title, arguments.turns, arguments.batches))
        print(table(results[-1]))
    write("workers", facts, results, arguments.output)


if __name__ == "__main__":
    main()
