"""Writes and reads the numbered samples of `same_batches.py` with one library, as one rank of a job; prints JSON.

python benchmarks/same_batches_reader.py write streaming FOLDER
python benchmarks/same_batches_reader.py read streaming FOLDER --workers 2
"""

import argparse
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

NUM_SAMPLES, BATCH_SIZE, NUM_BATCHES, RESUMED_AT = 16_384, 64, 201, 17
_PER_SHARD = 256
_BUFFER = 1000  # samples, of the libraries that shuffle in one
RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
_OWN = BATCH_SIZE // WORLD_SIZE

State = dict[str, Any]
Read = Callable[[Path, int, State | None], tuple[Iterator[list[int]], Callable[[int], State] | None]]
"""(folder, workers, a state to go on from) -> this rank's batches, and what gives the state after so many of them."""


def write_streaming(folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"number": "int"}, size_limit=1 << 12) as writer:
        for number in range(NUM_SAMPLES):
            writer.write({"number": number})


def write_litdata(folder: Path) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_size=_PER_SHARD)
    for number in range(NUM_SAMPLES):
        cache[number] = {"number": number}
    cache.done()
    cache.merge()


def write_webdataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, NUM_SAMPLES, _PER_SHARD)):
        with tarfile.open(folder / f"{shard:06}.tar", "w") as file:
            for number in range(first, first + _PER_SHARD):
                content = str(number).encode()
                member = tarfile.TarInfo(f"{number:08}.cls")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def write_datasets(folder: Path) -> None:
    import datasets

    made = datasets.Dataset.from_dict({"number": list(range(NUM_SAMPLES))})
    made.save_to_disk(str(folder), num_shards=NUM_SAMPLES // _PER_SHARD)


def read_streaming(
    folder: Path, num_workers: int, state: State | None
) -> tuple[Iterator[list[int]], Callable[[int], State]]:
    from streaming import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=_OWN, num_canonical_nodes=1)
    loader = StreamingDataLoader(data, batch_size=_OWN, num_workers=num_workers)
    if state is not None:
        loader.load_state_dict(state)
    return _numbers(loader), lambda count: dict(loader.state_dict() or {})


def read_litdata(
    folder: Path, num_workers: int, state: State | None
) -> tuple[Iterator[list[int]], Callable[[int], State]]:
    from litdata import StreamingDataLoader, StreamingDataset

    loader = StreamingDataLoader(StreamingDataset(str(folder), shuffle=True), batch_size=_OWN, num_workers=num_workers)
    if state is not None:
        loader.load_state_dict(state)
    return _numbers(loader), lambda count: dict(loader.state_dict())


def read_webdataset(folder: Path, num_workers: int, state: State | None) -> tuple[Iterator[list[int]], None]:
    import webdataset

    paths = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(paths, shardshuffle=len(paths), nodesplitter=webdataset.split_by_node, seed=0)
    data = data.shuffle(_BUFFER, seed=0).decode().to_tuple("cls").batched(_OWN)
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=num_workers)
    return ([int(number) for number in batch[0]] for batch in loader), None


def read_datasets(
    folder: Path, num_workers: int, state: State | None
) -> tuple[Iterator[list[int]], Callable[[int], State]]:
    import datasets
    from datasets.distributed import split_dataset_by_node

    made = datasets.load_from_disk(str(folder))
    data = made.to_iterable_dataset(num_shards=NUM_SAMPLES // _PER_SHARD).shuffle(seed=0, buffer_size=_BUFFER)
    data = split_dataset_by_node(data, rank=RANK, world_size=WORLD_SIZE)
    if state is not None:
        data.load_state_dict(state)
    return _numbers(torch.utils.data.DataLoader(data, batch_size=_OWN, num_workers=num_workers)), (
        lambda count: dict(data.state_dict())
    )


def read_trainkit(
    folder: Path, num_workers: int, state: State | None
) -> tuple[Iterator[list[int]], Callable[[int], State]]:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import trainkit
    from trainkit.data import open_dataset

    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker())
    start = state["position"] if state is not None else 0
    batches = runtime.batches(
        open_dataset(folder), batch_size=BATCH_SIZE, start=start, num_workers=num_workers, shuffle="blocks"
    )
    return (batch.data["number"].tolist() for batch in batches), lambda count: {"position": count * BATCH_SIZE}


def _numbers(loader: Iterable[Any]) -> Iterator[list[int]]:
    return ([int(number) for number in batch["number"]] for batch in loader)


WRITERS: dict[str, Callable[[Path], None]] = {
    "streaming": write_streaming,
    "litdata": write_litdata,
    "webdataset": write_webdataset,
    "datasets": write_datasets,
}
READERS: dict[str, Read] = {
    "trainkit": read_trainkit,
    "streaming": read_streaming,
    "litdata": read_litdata,
    "webdataset": read_webdataset,
    "datasets": read_datasets,
}
PACKAGES = {"streaming": "mosaicml-streaming"}


def read(name: str, folder: Path, num_workers: int, state: State | None, stops: bool) -> dict[str, Any]:
    """This rank's batches from the first or from a state on; with `stops`, up to where a state is taken."""
    batches, state_after = READERS[name](folder, num_workers, state)
    done = RESUMED_AT if state is not None else 0
    count = RESUMED_AT if stops else NUM_BATCHES - done
    found: dict[str, Any] = {"batches": list(islice(batches, count)), "state": None}
    if stops and state_after is not None:
        found["state"] = state_after(RESUMED_AT)
    found["version"] = None if name == "trainkit" else version(PACKAGES.get(name, name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("name", choices=[*READERS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=0, metavar="N")
    parser.add_argument("--state", help="JSON, to go on from")
    parser.add_argument("--stops", action="store_true", help=f"after {RESUMED_AT} batches, with the state there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if arguments.what == "write":
        WRITERS[arguments.name](arguments.folder)
    else:
        if WORLD_SIZE > 1 and arguments.name != "trainkit":
            dist.init_process_group("gloo")
        state = json.loads(arguments.state) if arguments.state else None
        found = read(arguments.name, arguments.folder, arguments.workers, state, arguments.stops)
    print(json.dumps(found), flush=True)
    os._exit(0)  # threads and processes of some libraries would be waited for


if __name__ == "__main__":
    main()
