"""Samples from a web server that is 30 ms away, beside a plain download of the same shards by ranges.

    apt-get install nginx-light
    python benchmarks/from_a_store.py                                   # under four minutes on two idle cores
    python benchmarks/from_a_store.py --mbit 1000                       # over a link of 1 Gbit/s
    python benchmarks/from_a_store.py --python peers/bin/python         # with the libraries of data_peers.py

nginx on this machine answers each request 30 ms later (slow_server.py). In each turn, each in a process of its own: a
plain program downloads all shards by ranges of 4 MiB, with several numbers of connections, into memory and into files;
the same samples are then read in batches of 64, shuffled, in an epoch with an empty cache and in a second one; and once
from the local disk, which says what can be had without a network. What is compared are bytes of samples a second.
Server and readers share the cores of this machine: a plain download that does nothing with its bytes is the fastest
that there can be. With --mbit all this is done in a network namespace whose loopback has a token bucket of that rate.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.data_peers_reader import SAMPLES, WRITERS
from benchmarks.from_a_store_reader import ARRAYS, LENGTH, PACKAGES, SIDE
from benchmarks.overhead import machine, spread, write
from benchmarks.slow_server import SlowServer, serving
from trainkit.data import Images, Text, prepare

GOAL = 0.9
LATENCY_S = 0.03
CONNECTIONS = (8, 16, 32)
WORKERS = (0, 2)
_MB = 4  # of a shard
_TOKENS = 4000  # of a document
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_HERE = Path(__file__).parent
_INSIDE = "TRAINKIT_BENCHMARK_IN_NAMESPACE"
_BURST_BYTES, _QUEUE_BYTES = 1 << 18, 1 << 26


def make_tokens(folder: Path, mb: int) -> None:
    """Documents of letters, each of which is a token: text is tokenized much more slowly than it is read."""
    draw, source = random.Random(0), folder / "text.jsonl"
    with source.open("w") as file:
        for _ in range(mb * 1_000_000 // (2 * _TOKENS)):
            file.write(json.dumps({"text": " ".join(draw.choices(_LETTERS, k=_TOKENS))}) + "\n")
    prepare(source, folder / "trainkit", kind="text", shard_mb=_MB, settings={"vocab_size": 512}, progress=False)
    source.unlink()


def make_pictures(folder: Path, mb: int) -> None:
    """Pictures of noise."""
    values = np.random.default_rng(0)
    (folder / "files").mkdir()
    for number in range(mb * 1_000_000 // (3 * SIDE * SIDE)):
        Image.fromarray(values.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(folder / "files" / f"{number}.bmp")
    settings = {"resolution": SIDE}
    prepare(folder / "files", folder / "trainkit", kind="images", shard_mb=_MB, settings=settings, progress=False)
    shutil.rmtree(folder / "files")


def make_peers(case: str, folder: Path, python: str) -> None:
    """The same samples in the shards of other libraries."""
    data: Any
    if case == "tokens":
        data = Text(path=folder / "trainkit", sequence_length=LENGTH).load(progress=False).train
        samples = np.stack([data[number]["tokens"].numpy() for number in range(len(data))]).astype(np.uint16)
    else:
        data = Images(path=folder / "trainkit", resolution=SIDE).load(progress=False).train
        samples = np.stack([data[number]["images"].numpy() for number in range(len(data))])
    np.save(folder / SAMPLES, samples)
    for name in WRITERS.keys() & PACKAGES.keys():
        _run(python, "data_peers_reader.py", "write", name, str(folder / name))


def measure(
    case: str, server: SlowServer, files: Path, work: Path, python: str | None, num_turns: int
) -> dict[str, Any]:
    """Turns of all ways in turn."""
    rates: dict[str, list[float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for turn in range(num_turns):
        for name, found in _turn(case, server, files, work, python):
            print(f"\r{case}, turn {turn + 1} of {num_turns}: {name:<60}", end="", file=sys.stderr, flush=True)
            rates.setdefault(name, []).append(found["bytes"] / found["seconds"] / 1e6)
            facts[name] = found
    print(file=sys.stderr)
    downloads = {name: float(np.median(values)) for name, values in rates.items() if name.startswith("download")}
    ways = [
        {
            "name": name,
            "mb_per_s": spread(values),
            "over_memory": float(np.median(values)) / max(v for n, v in downloads.items() if "memory" in n),
            "over_files": float(np.median(values)) / max(v for n, v in downloads.items() if "files" in n),
            "cpu_s": facts[name]["cpu_s"],
            **{key: facts[name].get(key) for key in ("requests", "bytes_over_needed", "version")},
        }
        for name, values in rates.items()
    ]
    described = {"bytes": next(iter(facts.values()))["bytes"], "latency_s": LATENCY_S, "num_turns": num_turns}
    return {"case": case, **described, "goal": GOAL, "ways": ways}


def _turn(case: str, server: SlowServer, files: Path, work: Path, python: str | None) -> Any:
    """Yields the name of each way and what it took."""
    url = f"{server.url}/{case}"
    for kind in ("memory", "files"):
        for connections in CONNECTIONS:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                options = [f"{url}/trainkit", "-" if kind == "memory" else folder, "--connections", str(connections)]
                yield (
                    f"download to {kind}, {connections} connections",
                    _read(sys.executable, "download", case, *options),
                )
    for workers in WORKERS:
        for shuffle in ("blocks", "global"):
            with tempfile.TemporaryDirectory(dir=work) as folder:
                options = [folder, "--workers", str(workers)]
                name = f"trainkit, {shuffle}, {workers} workers"
                for epoch in ("empty cache", "second epoch"):
                    yield (
                        f"{name}, {epoch}",
                        _counted(server, sys.executable, shuffle, case, f"{url}/trainkit", options),
                    )
                local = str(files / case / "trainkit")
                yield f"{name}, local disk", _read(sys.executable, shuffle, case, local, *options)
    for name in PACKAGES if python else ():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            yield (
                f"{name}, 0 workers, empty cache",
                _counted(server, str(python), name, case, f"{url}/{name}", [folder]),
            )


def _counted(server: SlowServer, python: str, name: str, case: str, url: str, options: list[str]) -> dict[str, Any]:
    requests, num_bytes = server.sent()
    found = _read(python, name, case, url, *options)
    after = server.sent()
    return {**found, "requests": after[0] - requests, "bytes_over_needed": (after[1] - num_bytes) / found["bytes"]}


def _read(python: str, *options: str) -> dict[str, Any]:
    return _run(python, "from_a_store_reader.py", *options)


def _run(python: str, script: str, *options: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if (folder := options[3:4]) and options[0] in ("blocks", "global"):
        environment["TRAINKIT_CACHE"] = folder[0]
    command = [python, str(_HERE / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def behind_link(mbit: int) -> None:
    """Starts this program again in a network namespace with a link of a rate, in place of this process."""
    limit = f"tc qdisc add dev lo root tbf rate {mbit}mbit burst {_BURST_BYTES} limit {_QUEUE_BYTES}"
    inside = f'ip link set lo up && {limit} && exec "$@"'
    way = ["unshare", "-n" if os.getuid() == 0 else "-Urn"]
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    os.environ[_INSIDE] = "1"
    os.execvp(way[0], [*way, "sh", "-c", inside, "sh", sys.executable, *sys.argv])


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['case']}: {result['bytes'] / 1e6:.0f} MB; MB/s, over the best download to memory, to files"]
    for one in result["ways"]:
        over = f"{one['over_memory']:>8.2f}{one['over_files']:>8.2f}"
        lines.append(f"  {one['name']:<44}{one['mb_per_s']['median']:>8.0f}{over}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment with mosaicml-streaming and webdataset")
    parser.add_argument("--cases", nargs="+", choices=[*ARRAYS], default=[*ARRAYS])
    parser.add_argument("--mb", type=int, default=48, metavar="N", help="of samples of each kind (default: 48)")
    parser.add_argument("--turns", type=int, default=3, metavar="N")
    parser.add_argument("--mbit", type=int, metavar="N", help="10^6 bits a second of a link (default: no limit)")
    parser.add_argument("--output", type=Path, default=_HERE / "results", metavar="DIR")
    arguments = parser.parse_args()
    if arguments.turns < 2:
        parser.error("--turns: must be 2 or more, for a median and quartiles")
    if arguments.mbit is not None and _INSIDE not in os.environ:
        behind_link(arguments.mbit)
    facts, results = machine(), []
    with tempfile.TemporaryDirectory() as root:
        files, work, own = (Path(root) / name for name in ("files", "work", "nginx"))
        for case in arguments.cases:
            (files / case).mkdir(parents=True)
            {"tokens": make_tokens, "pictures": make_pictures}[case](files / case, arguments.mb)
            if arguments.python:
                make_peers(case, files / case, arguments.python)
        work.mkdir()
        own.mkdir()
        with serving(files, own, LATENCY_S) as server:
            for case in arguments.cases:
                results.append(measure(case, server, files, work, arguments.python, arguments.turns))
                print(table(results[-1]), flush=True)
    limited = f"-at-{arguments.mbit}-mbit" if arguments.mbit is not None else ""
    write(f"from-a-store{limited}", facts, results, arguments.output)


if __name__ == "__main__":
    main()
