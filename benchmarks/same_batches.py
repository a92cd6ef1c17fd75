"""Whether the global batches are the same on other numbers of ranks and workers, and after a resume, of five libraries.

    python -m venv peers && peers/bin/pip install mosaicml-streaming==0.13.0 litdata==0.2.76 webdataset==1.0.2 \
        datasets==5.2.0
    python benchmarks/same_batches.py --python peers/bin/python        # about five minutes

16,384 numbered samples, shuffled as each library does it or its guide says, in global batches of 64. The first 201
batches of 1, 2 and 4 ranks with 0 and 2 workers each are held against those of one rank without workers, as sets of
samples; and so are those that follow a state taken after 17 batches, on one rank and on two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write
from benchmarks.processes import free_port
from benchmarks.same_batches_reader import NUM_BATCHES, READERS, RESUMED_AT, WRITERS

CASES = ((1, 2), (2, 0), (2, 2), (4, 0), (4, 2))
_READER = Path(__file__).with_name("same_batches_reader.py")
_LIMIT_S = 600


class FailedError(Exception):
    """What a library says where it cannot do it."""


def ask(python: str, what: str, name: str, folder: Path, ranks: int, *options: str) -> list[dict[str, Any]]:
    """What each rank of a job prints."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    if ranks > 1:
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    command = [python, str(_READER), what, name, str(folder), *options]
    jobs = []
    for rank in range(ranks):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else shared
        pipe = subprocess.PIPE
        jobs.append(subprocess.Popen(command, env=own, stdout=pipe, stderr=pipe, text=True))
    try:
        said = [job.communicate(timeout=_LIMIT_S) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    for job, (_, errors) in zip(jobs, said, strict=True):
        if job.returncode:
            raise FailedError(errors.strip().splitlines()[-1] if errors.strip() else f"exit code {job.returncode}")
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def together(ranks: list[dict[str, Any]]) -> list[frozenset[int]]:
    """The samples of each global batch."""
    return [frozenset(n for batch in batches for n in batch) for batches in zip(*(r["batches"] for r in ranks))]  # noqa: B905  # ranks may have fewer


def measure(name: str, python: str, folder: Path) -> dict[str, Any]:
    own = folder / ("streaming" if name == "trainkit" else name)
    program = sys.executable if name == "trainkit" else python
    [first] = ask(program, "read", name, own, 1)
    expected = together([first])

    def equal(ranks: int, *options: str, begins: int = 0) -> int | str:
        try:
            found = together(ask(program, "read", name, own, ranks, *options))
        except FailedError as error:
            return str(error)[:200]
        return sum(a == b for a, b in zip(expected[begins:], found, strict=False))

    cases = [
        {"ranks": ranks, "workers": workers, "equal": equal(ranks, "--workers", str(workers)), "of": NUM_BATCHES}
        for ranks, workers in CASES
    ]
    [stopped] = ask(program, "read", name, own, 1, "--stops")
    resumed: list[dict[str, Any]] = []
    for ranks in (1, 2):
        state = stopped["state"]
        options = ("--state", json.dumps(state))
        found: int | str = equal(ranks, *options, begins=RESUMED_AT) if state is not None else "it has no state"
        resumed.append({"ranks": ranks, "equal": found, "of": NUM_BATCHES - RESUMED_AT})
    return {"name": name, "version": first["version"], "batches": len(expected), "cases": cases, "resumed": resumed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment with the four libraries")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as root:
        for name in WRITERS:
            ask(arguments.python, "write", name, Path(root) / name, 1)
        for name in READERS:
            results.append(measure(name, arguments.python, Path(root)))
            print(json.dumps(results[-1]), flush=True)
    write("same-batches", machine(), results, arguments.output)


if __name__ == "__main__":
    main()
