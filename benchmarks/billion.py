"""What a rank holds of very many samples, and waits for before its first batch, at the start and in the 100th epoch.

    python benchmarks/billion.py                      # 1 million, 100 million and 1 billion samples; about a minute

The samples are windows of 16 tokens over text that is in the cache, whose file of tokens is made as long as they need:
it is sparse, so it takes no space on the disk, and what is read of it comes from no disk. Each start is a process of
its own, which makes 300 batches of 64. Its memory is what it grows by over a process that has made as many batches of
a small tensor: of its own (RssAnon), and of files that it has mapped (RssFile), which is the page cache's and is given
back when another process needs it. `first batch` is from the call of `load` to the first batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import torch

import trainkit
from benchmarks.overhead import machine, write
from trainkit.data import Text

LENGTH, BATCH, NUM_BATCHES, TOKEN_BYTES = 16, 64, 300, 2
NUM_DOCUMENTS = 2000


def text(folder: Path) -> Text:
    return Text(path=folder / "text.txt", vocab_size=200, sequence_length=LENGTH, cache_dir=folder / "cache")


def make(folder: Path, num: int) -> None:
    """Makes text, and its tokens as long as `num` samples need."""
    folder.mkdir()
    documents = (f"{number} the quick brown fox jumps over the lazy dog\n\n" for number in range(NUM_DOCUMENTS))
    (folder / "text.txt").write_text("".join(documents))
    text(folder).load(progress=False)
    (tokens,) = (folder / "cache").glob("text-*/train.bin")
    os.truncate(tokens, num * (LENGTH - 1) * TOKEN_BYTES)


def memory_mb() -> dict[str, float]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def measured(folder: Path, position: int) -> dict[str, float]:
    """In a process of its own."""
    runtime = trainkit.Runtime(device="cpu", strategy="single", run_dir=None, log_every=10**6)
    for _ in runtime.batches(torch.zeros(4096, LENGTH), batch_size=BATCH, num_steps=NUM_BATCHES):
        pass
    before, began = memory_mb(), time.perf_counter()
    batches = runtime.batches(text(folder).load(progress=False).train, batch_size=BATCH, start=position)
    next(batches)
    took = time.perf_counter() - began
    for _ in range(NUM_BATCHES - 1):
        next(batches)
    runtime.close()
    return {"seconds": took, **{f"{name} MB": value - before[name] for name, value in memory_mb().items()}}


def starts(folder: Path, position: int, num_turns: int) -> dict[str, float]:
    found: list[dict[str, float]] = []
    for _ in range(num_turns):
        command = [sys.executable, __file__, "--of", str(folder), str(position)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10**6, 10**8, 10**9], metavar="N")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="processes of each kind")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.of is not None:
        print(json.dumps(measured(Path(arguments.of[0]), int(arguments.of[1]))))
        return
    facts, results = machine(), list[dict[str, Any]]()
    for num in arguments.samples:
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory) / "data"
            make(folder, num)
            positions = {"at the start": 0, "in the middle of the 100th epoch": 99 * num + num // 2}
            points = {name: starts(folder, position, arguments.turns) for name, position in positions.items()}
        results.append({"num": num, "points": points})
        print(json.dumps(results[-1], indent=1), flush=True)
    write("billion", facts, results, arguments.output)


if __name__ == "__main__":
    main()
