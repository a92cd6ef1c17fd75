"""How long does a save hold training up, and how long does it take in all?

    python benchmarks/saving.py                        # 100 million parameters under AdamW: 1.2 GB; about two minutes
    python benchmarks/saving.py --million-parameters 1 --turns 2

In turns, in one process: a save, a plain write and fsync of as many bytes from memory, and a copy of them into memory
that was touched before. Both write new files, as a run does; the old ones are deleted in between. "held up" is the time
until `runtime.save(..., wait=False)` returns, "in all" until the directory is in place: written, summed up, flushed.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import trainkit
from benchmarks.overhead import in_words, machine, spread, write

GOALS = {"held up, over the copy": 1.5, "in all, over write and fsync": 1.4}


def engine_of(runtime: trainkit.Runtime, num_parameters: int) -> trainkit.Engine:
    width = 1000
    module = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(max(1, num_parameters // width**2))))
    engine = runtime.setup(module, torch.optim.AdamW(module.parameters()))
    for batch in runtime.batches(torch.ones(2, width), batch_size=2, num_steps=1):
        engine.backward(engine(batch.data).mean())
        engine.step()
    return engine


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def write_plainly(path: Path, tensors: list[torch.Tensor]) -> None:
    with path.open("wb") as file:
        for tensor in tensors:
            file.write(tensor.numpy().data)
        file.flush()
        os.fsync(file.fileno())


def measure(num_parameters: int, num_turns: int, directory: Path) -> dict[str, Any]:
    runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
    engine = engine_of(runtime, num_parameters)
    shards = [shard.local.flatten() for part in engine.state.shards().values() for shard in part.values()]
    buffers = [torch.zeros_like(tensor) for tensor in shards]
    times: dict[str, list[float]] = {"held up": [], "in all": [], "write and fsync": [], "copy": []}

    def save() -> None:
        times["held up"].append(seconds(lambda: runtime.save(directory / "checkpoint", wait=False, engine=engine)))
        runtime.finish_saving()

    def reset() -> None:
        shutil.rmtree(directory / "checkpoint", ignore_errors=True)
        (directory / "plain").unlink(missing_ok=True)

    for turn in range(1 + num_turns):
        print(f"\rturn {turn} of {num_turns} ", end="\n" * (turn == num_turns), file=sys.stderr, flush=True)
        reset()
        times["in all"].append(seconds(save))
        times["write and fsync"].append(seconds(lambda: write_plainly(directory / "plain", shards)))
        times["copy"].append(seconds(lambda: torch._foreach_copy_(buffers, shards)))
    runtime.close()
    times = {name: values[1:] for name, values in times.items()}  # the first one touches the memory
    ratios = {
        "held up, over the copy": [a / b for a, b in zip(times["held up"], times["copy"], strict=True)],
        "in all, over write and fsync": [a / b for a, b in zip(times["in all"], times["write and fsync"], strict=True)],
    }
    return {
        "num_bytes": sum(tensor.numel() * tensor.element_size() for tensor in shards),
        "num_turns": num_turns,
        "seconds": {name: spread(values) for name, values in times.items()},
        "ratios": {name: {**spread(values), "goal": GOALS[name]} for name, values in ratios.items()},
        "share held up": statistics.median(times["held up"]) / statistics.median(times["in all"]),
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['num_bytes'] / 1e9:.3g} GB; {result['num_turns']} turns; median (quartiles)"]
    lines += [f"  {name:<30}{in_words(values, 3)} s" for name, values in result["seconds"].items()]
    lines += [f"  {name:<30}{in_words(v, 2)}   goal {v['goal']:.1f}" for name, v in result["ratios"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million-parameters", type=int, default=100, metavar="N")
    parser.add_argument("--turns", type=int, default=9, metavar="N", help="after one that warms up")
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: the temporary directory's")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        result = measure(1_000_000 * arguments.million_parameters, arguments.turns, Path(directory))
    print(table(result))
    write("saving", facts, [result], arguments.output)


if __name__ == "__main__":
    main()
