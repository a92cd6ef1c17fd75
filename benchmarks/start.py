"""What a start takes on files: the first one, and one on files that were seen before, against their number and size.

    python benchmarks/start.py                        # 60,000 and 120,000 files, 0.05 and 0.2 GB: a few minutes
    python benchmarks/start.py --files 100000 400000 --pictures 60000 200000 --gigabytes 1 4

A start is what a rank does before it knows whether the tokens are in the cache: it looks which files there are and
whether they changed, and computes the fingerprint of their content. Each start is a process of its own; `beside` is the
second process of two that start at once. `in a run`: as a run does it, which looks at some of very many files before it
begins, and at all of them beside the training, by another process. The memory is that by which the process grows. The
files are in the page cache. What 1 and 10 million files take is extrapolated by a straight line through both numbers.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.encryption import most_mb
from benchmarks.overhead import machine, write
from trainkit.data import Comparisons, Images, Text
from trainkit.testing import fork_context

FILES_IN_FOLDER = 1000
LARGER = (1_000_000, 10_000_000)
MANY = 50_000
_SENTENCE = "the quick brown fox jumps over the lazy dog and comes back again at the end of the day, "


def small_texts(folder: Path, num: int) -> None:
    for number in range(num):
        path = folder / f"{number // FILES_IN_FOLDER:05}" / f"{number:08}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} {_SENTENCE * 3}\n")


def one_text(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True)
    with (folder / "text.txt").open("w") as file:
        for number in range(num_bytes // (8 * len(_SENTENCE))):
            file.write(f"{number} {_SENTENCE * 8}\n\n")


def pictures(folder: Path, num: int) -> None:
    draw = np.random.default_rng(0)
    for number in range(num):
        path = folder / f"{number // FILES_IN_FOLDER:05}" / f"{number:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def look_at_text(folder: Path, cache: Path) -> None:
    path = folder / "text.txt" if (folder / "text.txt").is_file() else folder
    corpus = Text(path=path, cache_dir=cache)._corpus(progress=False)
    corpus.fingerprint(cache)


def load_pictures(folder: Path, cache: Path) -> None:
    Images(path=folder, resolution=8, cache_dir=cache).load(progress=False)


def _start(
    start: Callable[[Path, Path], None], folder: Path, cache: Path, together: Barrier, in_a_run: bool, found: Any
) -> None:
    before = most_mb()
    together.wait(60)
    began, of_cpu = time.perf_counter(), time.process_time()
    with Comparisons(is_first=in_a_run) as comparisons:
        with comparisons.later() if in_a_run else nullcontext():
            start(folder, cache)
        took, of_cpu = time.perf_counter() - began, time.process_time() - of_cpu
        result = {"seconds": took, "cpu_seconds": of_cpu, "mb": most_mb() - before}
        if comparisons.facts():
            comparisons.wait(lambda: False, progress=False)
            assert comparisons.error() is None
            result["compared_after_seconds"] = time.perf_counter() - began
    found.put(result)


def starts(
    start: Callable[[Path, Path], None], folder: Path, cache: Path, num: int, in_a_run: bool = False
) -> list[dict[str, float]]:
    """Starts that `num` processes make at once, the longest first."""
    context = fork_context("trainkit.data.text", "trainkit.data.images")
    together, found = context.Barrier(num), context.Queue()
    arguments = (start, folder, cache, together, in_a_run, found)
    processes = [context.Process(target=_start, args=arguments) for _ in range(num)]
    for process in processes:
        process.start()
    results = [found.get(timeout=3600) for _ in processes]
    for process in processes:
        process.join(60)
    return sorted(results, key=lambda result: -result["mb"])


def measure(
    make: Callable[[Path, int], None], start: Callable[[Path, Path], None], num: int, directory: Path, num_turns: int
) -> dict[str, Any]:
    folder, cache = directory / "files", directory / "cache"
    make(folder, num)
    time.sleep(0.2)  # files that were written in the moment of a start are read again at the next one
    print(f"{make.__name__} {num:,} ...", file=sys.stderr, flush=True)
    (first,) = starts(start, folder, cache, 1)
    again = [starts(start, folder, cache, 1)[0] for _ in range(num_turns)]
    in_a_run = [starts(start, folder, cache, 1, in_a_run=True)[0] for _ in range(num_turns)]
    both = starts(start, folder, cache, 2)
    return {
        "num": num,
        "first": first,
        "again": {key: statistics.median(one[key] for one in again) for key in again[0]},
        "in a run": {key: statistics.median(one[key] for one in in_a_run) for key in in_a_run[0]},
        "two at once": {"seconds": max(one["seconds"] for one in both), "mb": both[-1]["mb"]},
        "kept_mb": sum(path.stat().st_size for path in cache.glob("f*/*")) / 1e6,
    }


def line(points: list[dict[str, Any]], value: Callable[[dict[str, Any]], float], num: int) -> float:
    """The value at `num` of the straight line through the first and the last point."""
    (fewer, low), (more, high) = ((point["num"], value(point)) for point in (points[0], points[-1]))
    return float(high + (high - low) / (more - fewer) * (num - more))


def beyond(points: list[dict[str, Any]], num: int) -> dict[str, Any]:
    is_compared = all("compared_after_seconds" in point["in a run"] for point in points)
    return {
        "num": num,
        **{
            which: {key: line(points, lambda point: point[which][key], num) for key in points[0][which]}  # noqa: B023
            for which in ("first", "again", *(("in a run",) if is_compared else ()))
        },
        "kept_mb": line(points, lambda point: point["kept_mb"], num),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs=2, default=[60_000, 120_000], metavar="N")
    parser.add_argument("--pictures", type=int, nargs=2, default=[1_000, 4_000], metavar="N")
    parser.add_argument("--gigabytes", type=float, nargs=2, default=[0.05, 0.2], metavar="GB")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="starts on files that were seen before")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    facts, results = machine(), []
    kinds = (
        ("small files of text", small_texts, look_at_text, arguments.files, LARGER),
        ("bytes in one file of text", one_text, look_at_text, [int(gb * 1e9) for gb in arguments.gigabytes], ()),
        # Of few, most does not grow with them: a line would be made of noise.
        ("pictures, whole load", pictures, load_pictures, arguments.pictures, LARGER * (arguments.pictures[0] > MANY)),
    )
    for name, make, start, nums, larger in kinds:
        points = []
        for num in nums:
            with tempfile.TemporaryDirectory() as directory:
                points.append(measure(make, start, num, Path(directory), arguments.turns))
        extrapolated = [beyond(points, num) for num in larger]
        results.append({"what": name, "measured": points, "extrapolated": extrapolated})
        print(json.dumps(results[-1], indent=1), flush=True)
    write("start", facts, results, arguments.output)


if __name__ == "__main__":
    main()
