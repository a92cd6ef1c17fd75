"""Reads the data of `from_a_store.py` from its server in one way, in a process of its own; prints JSON.

python benchmarks/from_a_store_reader.py download tokens http://127.0.0.1:8000/tokens/trainkit - --connections 16
python benchmarks/from_a_store_reader.py blocks tokens http://127.0.0.1:8000/tokens/trainkit FOLDER --workers 2
"""

import argparse
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

BATCH_SIZE = 64
LENGTH, SIDE = 512, 64
ARRAYS = {"tokens": "train", "pictures": f"train.{SIDE:05}"}
"""Of the shards, what the samples are in."""
NUMBER_BYTES = {"tokens": 2, "pictures": 1}
"""Of a token or a pixel in the shards; batches hold tokens in 8 bytes."""
_RANGE_BYTES = 1 << 22
_BUFFER = 1000  # samples, of the library that shuffles in one

Batches = Callable[[str, str, Path, int], Iterator[Any]]


def download(case: str, url: str, folder: Path | None, num_connections: int) -> dict[str, Any]:
    """What a plain program does that downloads the shards by ranges: N threads, each with a connection.

    Args:
        case: which samples.
        url: of the shards.
        folder: for the files; None: the bytes are dropped.
        num_connections: N.
    """
    import urllib3

    pool = urllib3.PoolManager(maxsize=num_connections, block=True)
    page = pool.request("GET", f"{url}/").data.decode()
    names = sorted(set(re.findall(rf'href="({re.escape(ARRAYS[case])}-\d+\.bin)"', page)))
    sizes = {name: int(pool.request("HEAD", f"{url}/{name}").headers["Content-Length"]) for name in names}
    ranges = [(name, start) for name, size in sizes.items() for start in range(0, size, _RANGE_BYTES)]
    files = {name: (folder / name).open("wb", buffering=0) for name in names} if folder else {}

    def fetch(given: tuple[str, int]) -> int:
        name, start = given
        headers = {"Range": f"bytes={start}-{min(start + _RANGE_BYTES, sizes[name]) - 1}"}
        content = pool.request("GET", f"{url}/{name}", headers=headers).data
        if name in files:
            os.pwrite(files[name].fileno(), content, start)
        return len(content)

    began, cpu = time.perf_counter(), _cpu_s()
    with ThreadPoolExecutor(num_connections) as threads:
        num_bytes = sum(threads.map(fetch, ranges))
    seconds = time.perf_counter() - began
    assert num_bytes == sum(sizes.values()), f"{num_bytes} bytes came of {sum(sizes.values())}"
    return {"seconds": seconds, "cpu_s": _cpu_s() - cpu, "bytes": num_bytes}


def _trainkit(shuffle: str) -> Batches:
    def read(case: str, url: str, folder: Path, num_workers: int) -> Iterator[Any]:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        import trainkit
        from trainkit.data import Images, Text

        name = {"tokens": "tokens", "pictures": "images"}[case]
        data: Any
        if case == "tokens":
            data = Text(path=url, sequence_length=LENGTH).load(progress=False).train
        else:
            data = Images(path=url, resolution=SIDE).load(progress=False).train
        runtime = trainkit.Runtime(strategy="single", device="cpu", tracker=trainkit.Tracker())
        batches = runtime.batches(
            data,
            batch_size=BATCH_SIZE,
            num_steps=len(data) // BATCH_SIZE,
            num_workers=num_workers,
            shuffle="blocks" if shuffle == "blocks" else "global",
        )
        return (batch.data[name] for batch in batches)

    return read


def _streaming(case: str, url: str, folder: Path, num_workers: int) -> Iterator[Any]:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    data = StreamingDataset(
        remote=url, local=str(folder / "local"), shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1
    )
    loader: Any = DataLoader(data, batch_size=BATCH_SIZE, num_workers=num_workers)
    return (batch["values"] for batch in loader)


def _webdataset(case: str, url: str, folder: Path, num_workers: int) -> Iterator[Any]:
    import urllib3
    import webdataset

    page = urllib3.PoolManager().request("GET", f"{url}/").data.decode()
    urls = [f"{url}/{name}" for name in sorted(set(re.findall(r'href="(\d+\.tar)"', page)))]
    data = webdataset.WebDataset(urls, shardshuffle=len(urls), cache_dir=str(folder / "local"))
    samples = data.shuffle(_BUFFER).decode().to_tuple("npy").batched(BATCH_SIZE)
    return (batch[0] for batch in webdataset.WebLoader(samples, batch_size=None, num_workers=num_workers))


READERS: dict[str, Batches] = {
    "blocks": _trainkit("blocks"),
    "global": _trainkit("global"),
    "streaming": _streaming,
    "webdataset": _webdataset,
}
PACKAGES = {"streaming": "mosaicml-streaming", "webdataset": "webdataset"}


def read(name: str, case: str, url: str, folder: Path, num_workers: int) -> dict[str, Any]:
    """One epoch, from when the first batch is asked for: threads or processes of a loader are started after that."""
    batches = READERS[name](case, url, folder, num_workers)
    num_samples, num_numbers = 0, 0
    began, cpu = time.perf_counter(), _cpu_s()
    for batch in batches:
        num_samples += len(batch)
        num_numbers += math.prod(batch.shape)
    seconds = time.perf_counter() - began
    library = PACKAGES.get(name)
    return {
        "seconds": seconds,
        "cpu_s": _cpu_s() - cpu,
        "samples": num_samples,
        "bytes": num_numbers * NUMBER_BYTES[case],
        "version": library and version(library),
    }


def _cpu_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["download", *READERS])
    parser.add_argument("case", choices=[*ARRAYS])
    parser.add_argument("url", help="of the shards")
    parser.add_argument("folder", type=Path, help="for what is kept; of `download`, - drops it")
    parser.add_argument("--workers", type=int, default=0, metavar="N")
    parser.add_argument("--connections", type=int, default=16, metavar="N")
    arguments = parser.parse_args()
    if arguments.name == "download":
        folder = None if str(arguments.folder) == "-" else arguments.folder
        found = download(arguments.case, arguments.url, folder, arguments.connections)
    else:
        import torch

        torch.set_num_threads(1)
        found = read(arguments.name, arguments.case, arguments.url, arguments.folder, arguments.workers)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
