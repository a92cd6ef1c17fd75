"""Writes and reads the samples of `data_peers.py` with one library, in a process of its own; prints JSON.

python benchmarks/data_peers_reader.py write streaming FOLDER
python benchmarks/data_peers_reader.py read streaming FOLDER --workers 2
"""

import argparse
import glob
import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAMPLES = "samples.npy"
BATCH_SIZE = 64
SHARD_BYTES = 1 << 22
_BUFFER = 1000  # samples, of the libraries that shuffle in one

Batches = Callable[[Path, int], Iterator[torch.Tensor]]


def _sizes(samples: Any) -> int:
    return max(1, SHARD_BYTES // int(samples[0].nbytes))


def write_streaming(folder: Path, samples: Any) -> None:
    from streaming import MDSWriter

    shape = ",".join(map(str, samples.shape[1:]))
    columns = {"values": f"ndarray:{samples.dtype}:{shape}"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for sample in samples:
            writer.write({"values": sample})


def write_litdata(folder: Path, samples: Any) -> None:
    from litdata.streaming.cache import Cache
    from litdata.streaming.item_loader import TokensLoader

    loader = TokensLoader() if samples.ndim == 2 else None
    cache = Cache(str(folder), item_loader=loader, chunk_bytes=SHARD_BYTES)
    for number, sample in enumerate(samples):
        cache[number] = torch.from_numpy(sample) if loader else {"values": torch.from_numpy(sample)}
    cache.done()
    cache.merge()


def write_webdataset(folder: Path, samples: Any) -> None:
    folder.mkdir(parents=True)
    per_shard = _sizes(samples)
    for shard, first in enumerate(range(0, len(samples), per_shard)):
        with tarfile.open(folder / f"{shard:06}.tar", "w") as file:
            for number, sample in enumerate(samples[first : first + per_shard], start=first):
                content = io.BytesIO()
                np.save(content, sample)
                member = tarfile.TarInfo(f"{number:08}.npy")
                member.size = len(content.getvalue())
                file.addfile(member, io.BytesIO(content.getvalue()))


def write_datasets(folder: Path, samples: Any) -> None:
    import datasets

    kind = str(samples.dtype)
    inner = datasets.Sequence(datasets.Value(kind), length=samples.shape[1])
    value = inner if samples.ndim == 2 else datasets.Array3D(samples.shape[1:], kind)
    features = datasets.Features({"values": value})
    made = datasets.Dataset.from_dict({"values": list(samples)}, features=features)
    made.save_to_disk(str(folder), max_shard_size=SHARD_BYTES)


def read_streaming(folder: Path, num_workers: int) -> Iterator[torch.Tensor]:
    from streaming import StreamingDataset

    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH_SIZE, num_canonical_nodes=1)
    return _loaded(data, num_workers, "values")


def read_litdata(folder: Path, num_workers: int) -> Iterator[torch.Tensor]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    samples = np.load(folder.parent / SAMPLES, mmap_mode="r")
    loader = TokensLoader(block_size=samples.shape[1]) if samples.ndim == 2 else None
    data = StreamingDataset(str(folder), item_loader=loader, shuffle=True)
    batches = StreamingDataLoader(data, batch_size=BATCH_SIZE, num_workers=num_workers)
    return (batch if loader else batch["values"] for batch in batches)


def read_webdataset(folder: Path, num_workers: int) -> Iterator[torch.Tensor]:
    import webdataset

    paths = sorted(glob.glob(str(folder / "*.tar")))  # noqa: PTH207  # it takes texts
    data = webdataset.WebDataset(paths, shardshuffle=len(paths)).shuffle(_BUFFER).decode().to_tuple("npy")
    loader = webdataset.WebLoader(data.batched(BATCH_SIZE), batch_size=None, num_workers=num_workers)
    return (torch.as_tensor(batch[0]) for batch in loader)


def read_datasets(folder: Path, num_workers: int) -> Iterator[torch.Tensor]:
    import datasets

    made = datasets.load_from_disk(str(folder))
    num_shards = len([*folder.glob("*.arrow")])
    data = made.to_iterable_dataset(num_shards=num_shards).shuffle(seed=0, buffer_size=_BUFFER).with_format("numpy")
    return _loaded(data, num_workers, "values")


def _loaded(data: Any, num_workers: int, name: str) -> Iterator[torch.Tensor]:
    loader: Iterable[Any] = torch.utils.data.DataLoader(data, batch_size=BATCH_SIZE, num_workers=num_workers)
    return (batch[name] for batch in loader)


def _read_trainkit(shuffle: str, kind: str) -> Batches:
    def read(folder: Path, num_workers: int) -> Iterator[torch.Tensor]:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        import trainkit
        from trainkit.data import Images, Text, open_dataset

        name = "values"
        if kind == "mds":
            data: Any = open_dataset(folder, columns=["values"])
        else:
            samples = np.load(folder.parent / SAMPLES, mmap_mode="r")
            if samples.ndim == 2:
                name, data = "tokens", Text(path=folder, sequence_length=samples.shape[1]).load(progress=False).train
            else:
                name, data = "images", Images(path=folder, resolution=samples.shape[-1]).load(progress=False).train
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


WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "streaming": write_streaming,
    "litdata": write_litdata,
    "webdataset": write_webdataset,
    "datasets": write_datasets,
}
READERS: dict[str, Batches] = {
    "trainkit, global": _read_trainkit("global", "shards"),
    "trainkit, blocks": _read_trainkit("blocks", "shards"),
    "trainkit on streaming's shards, blocks": _read_trainkit("blocks", "mds"),
    "streaming": read_streaming,
    "litdata": read_litdata,
    "webdataset": read_webdataset,
    "datasets": read_datasets,
}
PACKAGES = {"streaming": "mosaicml-streaming", "litdata": "litdata", "webdataset": "webdataset", "datasets": "datasets"}


def measure(name: str, folder: Path, num_workers: int, num_passes: int) -> dict[str, Any]:
    """Passes after one that warms up; each begins with the first batch, so that starting workers does not count."""
    rates, total, sums = [], 0, 0
    for number in range(1 + num_passes):
        batches = READERS[name](folder, num_workers)
        sums = int(next(batches).long().sum())
        count, began = 0, time.perf_counter()
        for batch in batches:
            values = batch.long() if batch.ndim == 2 else batch
            count += len(values)
            sums += int(values.sum(dtype=torch.int64))
        total = count + BATCH_SIZE
        if number:
            rates.append(count / (time.perf_counter() - began))
    library = PACKAGES.get(name)
    return {"samples_per_s": rates, "samples": total, "sum": sums, "version": library and version(library)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("name", choices=[*READERS])
    parser.add_argument("folder", type=Path, help="of the shards, beside samples.npy")
    parser.add_argument("--workers", type=int, default=0, metavar="N")
    parser.add_argument("--passes", type=int, default=3, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "write":
        WRITERS[arguments.name](arguments.folder, np.load(arguments.folder.parent / SAMPLES))
        found: dict[str, Any] = {}
    else:
        found = measure(arguments.name, arguments.folder, arguments.workers, arguments.passes)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
