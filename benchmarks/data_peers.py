"""Samples a second with shuffling, from the same samples on the local disk, beside four other libraries.

    python -m venv peers && peers/bin/pip install mosaicml-streaming==0.13.0 litdata==0.2.76 webdataset==1.0.2 \
        datasets==5.2.0
    python benchmarks/data_peers.py --python peers/bin/python        # about ten minutes

The samples are windows of 512 tokens of 2 bytes, as `trainkit data prepare` makes them of text, and pictures of
64 x 64 x 3 bytes. Each library writes them into shards of 4 MB of its own form and reads batches of 64 in one process,
shuffled as it does by default or as its guide says. Turns alternate, each in a process of its own. All files are in the
page cache: what is measured is the work, and not the disk.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.data_peers_reader import READERS, SAMPLES, WRITERS
from benchmarks.overhead import machine, spread, write
from trainkit.data import Images, Text, prepare

GOALS = {"tokens": 1.5, "pictures": 1.2}
WORKERS = (0, 2)
_LENGTH, _SIDE = 512, 64
_READER = Path(__file__).with_name("data_peers_reader.py")


def make_tokens(folder: Path, num: int) -> None:
    """About `num` windows, in our shards and in a file for the others."""
    draw, source = random.Random(0), folder / "text.jsonl"
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 6))) for _ in range(3000)]
    with source.open("w") as file:
        for _ in range(num):
            file.write(json.dumps({"text": " ".join(draw.choices(words, k=_LENGTH // 2))}) + "\n")
    prepare(source, folder / "trainkit", kind="text", shard_mb=4, settings={"vocab_size": 4096}, progress=False)
    data = Text(path=folder / "trainkit", sequence_length=_LENGTH).load(progress=False).train
    np.save(
        folder / SAMPLES, np.stack([data[number]["tokens"].numpy() for number in range(len(data))]).astype(np.uint16)
    )


def make_pictures(folder: Path, num: int) -> None:
    """About `num` pictures, in our shards and in a file for the others."""
    values = np.random.default_rng(0)
    (folder / "files").mkdir()
    for number in range(num):
        Image.fromarray(values.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)).save(folder / "files" / f"{number}.bmp")
    settings = {"resolution": _SIDE}
    prepare(folder / "files", folder / "trainkit", kind="images", shard_mb=4, settings=settings, progress=False)
    data = Images(path=folder / "trainkit", resolution=_SIDE).load(progress=False).train
    np.save(folder / SAMPLES, np.stack([data[number]["images"].numpy() for number in range(len(data))]))


def run(python: str, what: str, name: str, folder: Path, *options: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, str(_READER), what, name, str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(case: str, folder: Path, python: str, num_turns: int) -> dict[str, Any]:
    for name in WRITERS:
        run(python, "write", name, folder / name)
    rates: dict[tuple[str, int], list[float]] = {(name, workers): [] for workers in WORKERS for name in READERS}
    facts: dict[str, dict[str, Any]] = {}
    for turn in range(num_turns):
        for name, workers in rates:
            print(f"\r{case}, turn {turn + 1} of {num_turns}: {name:<40}", end="", file=sys.stderr, flush=True)
            ours = name.startswith("trainkit")
            own = "streaming" if "streaming" in name else "trainkit" if ours else name
            found = run(sys.executable if ours else python, "read", name, folder / own, "--workers", str(workers))
            rates[name, workers] += found.pop("samples_per_s")
            facts[name] = {**found, "kept": found["samples"]}
    print(file=sys.stderr)
    fastest = {workers: max(np.median(rates[n, workers]) for n in WRITERS) for workers in WORKERS}
    readers = [
        {
            "name": name,
            "workers": workers,
            "samples_per_s": spread(values),
            "over_the_fastest_peer": float(np.median(values) / fastest[workers]),
            "version": facts[name]["version"],
            "samples": facts[name]["samples"],
        }
        for (name, workers), values in rates.items()
    ]
    samples = np.load(folder / SAMPLES, mmap_mode="r")
    described = {"samples": len(samples), "bytes_of_a_sample": int(samples[0].nbytes), "num_turns": num_turns}
    return {"case": case, **described, "goal": GOALS[case], "readers": readers}


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['case']}: {result['samples']:,} samples of {result['bytes_of_a_sample']:,} bytes"]
    for one in result["readers"]:
        over = f"{one['over_the_fastest_peer']:.2f}"
        lines.append(f"  {one['name']:<40}{one['workers']} workers {one['samples_per_s']['median']:>10,.0f}   {over}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment with the four libraries")
    parser.add_argument("--tokens", type=int, default=20_000, metavar="N", help="documents, each about a window")
    parser.add_argument("--pictures", type=int, default=4_000, metavar="N")
    parser.add_argument("--turns", type=int, default=3, metavar="N")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    facts, results = machine(), []
    with tempfile.TemporaryDirectory() as root:
        os.environ["TRAINKIT_CACHE"] = str(Path(root) / "cache")
        for case, make in (("tokens", make_tokens), ("pictures", make_pictures)):
            folder = Path(root) / case
            folder.mkdir()
            make(folder, getattr(arguments, case))
            results.append(measure(case, folder, arguments.python, arguments.turns))
            print(table(results[-1]), flush=True)
    write("data-peers", facts, results, arguments.output)


if __name__ == "__main__":
    main()
