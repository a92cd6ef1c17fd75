"""What grows with the number of ranks: joining, traffic to the store, connections, log, checkpoint and its manifest.

    python benchmarks/scale.py                    # 2 to 64 ranks on this machine; some minutes of two idle cores
    python benchmarks/scale.py --ranks 2,4,8

The ranks are forks of one process that has imported everything, joined by gloo over loopback; they share its cores, so
that times show how work grows and not what a cluster takes. What is counted, bytes, connections and files, is the
same on any machine, and is fitted by a cubic of the number of other ranks; the fit says what 1024 ranks would come to.
The store's traffic is counted by a proxy before it. A manifest as 1024 ranks would write it is made from the largest
one, and read.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import resource
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import trainkit
from benchmarks.overhead import machine, write
from trainkit.checkpoint import complete, find, read_manifest

NUM_LAYERS, WIDTH = 200, 64  # 400 parameters, as BERT-large has; a rank holds whole rows
FAR = 1024
LIMIT_S = 900.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4,8,16,32,64", metavar="N,N,...")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, far = [], dict[str, float]()
    counts = [int(text) for text in options.ranks.split(",")]
    for ranks in counts:
        with tempfile.TemporaryDirectory() as folder:
            found.append(job(ranks, Path(folder)))
            if ranks == counts[-1]:
                far = manifest_of(FAR, Path(folder))
        print(json.dumps(found[-1]), flush=True)
    print(json.dumps(far))
    counted = [key for key in found[0] if key != "ranks" and not key.endswith(("_s", "_mb"))]  # shared cores and pages
    fits = {key: fit(found, key) for key in counted} if len(found) > 2 else {}
    print(json.dumps(fits, indent=1))
    write("scale", machine(), [{"ranks": found, "fits": fits, "far": far}], options.output)


def job(ranks: int, folder: Path) -> dict[str, float]:
    """One job of so many ranks; of what differs between ranks, that of the slowest or the largest."""
    port, outside = free_port(), free_port()
    counted = folder / "traffic"
    proxy = fork(lambda: asyncio.run(forward(outside, port, counted)))
    children = [fork(lambda rank=rank: one(rank, ranks, outside, port, folder)) for rank in range(ranks)]
    end = time.monotonic() + LIMIT_S
    try:
        for child in children:
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                if time.monotonic() > end:
                    raise TimeoutError(f"{ranks} ranks have not ended in {LIMIT_S:g} s")
                time.sleep(0.02)
    finally:
        for child in (*children, proxy):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, 9)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(proxy, 0)
    each = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    newest = find(folder / "run")
    begin = time.perf_counter()
    manifest = read_manifest(newest)
    read_s = time.perf_counter() - begin
    logs = [(folder / f"{rank}.log").stat().st_size for rank in range(ranks)]
    num_bytes, connections = map(int, counted.read_text().split())
    return {
        "ranks": ranks,
        **{key: max(one[key] for one in each) for key in each[0]},
        "store_bytes": num_bytes,
        "store_connections": connections,
        "log_bytes_rank_0": logs[0],
        "log_bytes_others": sum(logs[1:]),
        "checkpoint_files": len(manifest["files"]),
        "manifest_bytes": (newest / "manifest.json").stat().st_size,
        "manifest_read_s": read_s,
    }


def manifest_of(ranks: int, folder: Path) -> dict[str, float]:
    """Writes what so many ranks would say of a checkpoint, each with a row of every tensor, and reads it."""
    newest, written, directory = find(folder / "run"), folder / "far.tmp", folder / "far"
    manifest = read_manifest(newest)
    each, name = next(iter(manifest["files"].values())), "rank_{:05d}.safetensors"
    for entry in filter(lambda entry: entry["shape"], manifest["tensors"].values()):
        row = math.prod(entry["shape"][1:])
        entry["shape"][0] = ranks
        entry["parts"] = [[rank * row, row, name.format(rank)] for rank in range(ranks)]
    for entry in filter(lambda entry: not entry["shape"], manifest["tensors"].values()):
        entry["parts"] = [[0, 1, name.format(0)]]
    manifest["files"] = {name.format(rank): {**each, "num_bytes": 1 << 30} for rank in range(ranks)}
    written.mkdir()
    begin = time.perf_counter()
    complete(written, directory, manifest)
    written_s, begin = time.perf_counter() - begin, time.perf_counter()
    assert len(read_manifest(directory)["files"]) == ranks
    read_s = time.perf_counter() - begin
    size = (directory / "manifest.json").stat().st_size
    return {"ranks": ranks, "manifest_bytes": size, "manifest_write_s": written_s, "manifest_read_s": read_s}


def one(rank: int, ranks: int, outside: int, port: int, folder: Path) -> None:
    """A rank: joins, trains two steps, saves and loads. The store is that of rank 0; the others pass the proxy."""
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port if rank == 0 else outside),
    )  # fmt: skip
    begin = time.perf_counter()
    runtime = trainkit.Runtime(strategy="fsdp", device="cpu", seed=0, run_dir=folder / "run")
    joined_s, joined_fds = time.perf_counter() - begin, num_open_files()
    layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_LAYERS)))
    engine = runtime.setup(layers, torch.optim.AdamW(layers.parameters()))
    step_s = 0.0
    for batch in runtime.batches(torch.zeros(4 * ranks, WIDTH), batch_size=ranks, num_steps=2):
        start = time.perf_counter()
        engine.backward(engine(batch.data).square().mean())
        engine.step()
        step_s = time.perf_counter() - start
    start = time.perf_counter()
    path = folder / "run" / "checkpoints" / "step_00000002"
    runtime.save(path, model=engine)
    runtime.finish_saving()
    saved_s, start = time.perf_counter() - start, time.perf_counter()
    runtime.load(path, model=engine)
    facts = {
        "join_s": joined_s,
        "step_s": step_s,
        "save_s": saved_s,
        "load_s": time.perf_counter() - start,
        "open_files_joined": joined_fds,
        "open_files": num_open_files(),
        "resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    (folder / f"{rank}.json").write_text(json.dumps(facts))
    runtime.close()


def num_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# -- processes ---------------------------------------------------------------------------------------------------------


def fork(work: Any) -> int:
    """A child that does `work` and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def forward(outside: int, port: int, counted: Path) -> None:
    """Passes connections on to a port, and counts them and their bytes."""
    total = {"bytes": 0, "connections": 0}

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(1 << 16):
            total["bytes"] += len(chunk)
            counted.write_text(f"{total['bytes']} {total['connections']}")
            writer.write(chunk)
            await writer.drain()
        writer.close()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total["connections"] += 1
        while True:  # until rank 0 listens
            try:
                there, back = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.05)
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer), return_exceptions=True)

    server = await asyncio.start_server(accepted, "127.0.0.1", outside, backlog=FAR)
    async with server:
        await server.serve_forever()


# -- figures -----------------------------------------------------------------------------------------------------------


def fit(found: Sequence[Mapping[str, float]], key: str) -> dict[str, float]:
    """A cubic of the other ranks, no part below 0, by the least squares of relative errors; and what 1024 give."""
    others, values = (np.array([one[name] for one in found], float) for name in ("ranks", key))
    others -= 1
    if not values.all():
        return {"at_1024": float(values.max())}
    powers = np.stack([others**power for power in range(4)], axis=1)
    coefficients, _ = nnls(powers / values[:, None], np.ones_like(values))
    errors = powers @ coefficients / values - 1
    names = ("constant", "linear", "square", "cubic")
    return {
        **dict(zip(names, coefficients.tolist(), strict=True)),
        "largest_relative_error": float(abs(errors).max()),
        "at_1024": float(coefficients @ [float(FAR - 1) ** power for power in range(4)]),
    }


if __name__ == "__main__":
    main()
