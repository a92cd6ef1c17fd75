"""Which container shards should have: the same tokens and images in several, read by range.

    python benchmarks/shard_containers.py                # 32 MB of each, 2,000 random samples: about a minute

Each is read through a file that counts, as a store would be asked: `requests` and `bytes` of a random sample, once
what describes a shard (its header or footer) is known. That is what a process must keep of every shard: its bytes a
sample are what a billion samples cost. Times are CPU times a sample, of reading from the page cache.
"""

import argparse
import io
import json
import struct
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import machine, write

Array = NDArray[Any]


class Counted(io.RawIOBase):
    """A file that counts what it is asked for, as a store is."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._size = path.stat().st_size
        self.requests, self.bytes_read = 0, 0

    def read(self, size: int | None = -1) -> bytes:
        self.requests += 1
        content = self._file.read(-1 if size is None else size)
        self.bytes_read += len(content or b"")
        return content or b""

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def at(self, start: int, stop: int) -> bytes:
        self.seek(start)
        return self.read(stop - start)


class Container(ABC):
    """A shard of samples of one shape."""

    name: str

    @abstractmethod
    def write(self, path: Path, samples: Array) -> None: ...

    @abstractmethod
    def open(self, file: Counted) -> tuple[Callable[[int], Array], int]:
        """Reads what describes the shard: what reads a sample, and the bytes that must be kept of it."""


class Raw(Container):
    name = "arrays and an index"

    def write(self, path: Path, samples: Array) -> None:
        path.write_bytes(samples.tobytes())
        self._kind = samples.dtype, samples.shape[1:]

    def open(self, file: Counted) -> tuple[Callable[[int], Array], int]:
        dtype, shape = self._kind  # of the index, one for all shards
        size = dtype.itemsize * int(np.prod(shape))
        return lambda n: np.frombuffer(file.at(n * size, (n + 1) * size), dtype).reshape(shape), 0


class Safetensors(Container):
    name = "safetensors"

    def write(self, path: Path, samples: Array) -> None:
        from safetensors.numpy import save_file

        save_file({"samples": samples}, path)
        self._kind = samples.dtype, samples.shape[1:]

    def open(self, file: Counted) -> tuple[Callable[[int], Array], int]:
        (length,) = struct.unpack("<Q", file.at(0, 8))
        header = file.at(8, 8 + length)
        begin, (dtype, shape) = 8 + length + json.loads(header)["samples"]["data_offsets"][0], self._kind
        size = dtype.itemsize * int(np.prod(shape))
        return lambda n: np.frombuffer(file.at(begin + n * size, begin + (n + 1) * size), dtype).reshape(shape), 8


class Mds(Container):
    """As mosaicml-streaming 0.13 writes it: u32 count, u32 offsets, then samples of one column of bytes."""

    name = "MDS"

    def write(self, path: Path, samples: Array) -> None:
        config, count = b"{}", len(samples)
        first = 4 + 4 * (count + 1) + len(config)
        offsets = first + np.arange(count + 1, dtype=np.uint64) * samples[0].nbytes
        path.write_bytes(struct.pack("<I", count) + offsets.astype("<u4").tobytes() + config + samples.tobytes())
        self._kind = samples.dtype, samples.shape[1:]

    def open(self, file: Counted) -> tuple[Callable[[int], Array], int]:
        (count,) = struct.unpack("<I", file.at(0, 4))
        offsets, (dtype, shape) = np.frombuffer(file.at(4, 4 + 4 * (count + 1)), "<u4"), self._kind
        return lambda n: np.frombuffer(file.at(*offsets[n : n + 2].tolist()), dtype).reshape(shape), offsets.nbytes


class Arrow(Container):
    name = "Arrow IPC, 64 samples a batch"

    def write(self, path: Path, samples: Array) -> None:
        import pyarrow as pa

        self._kind = samples.dtype, samples.shape[1:]
        flat = pa.array(samples.reshape(-1))
        table = pa.table({"samples": pa.FixedSizeListArray.from_arrays(flat, int(np.prod(samples.shape[1:])))})
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=64)

    def open(self, file: Counted) -> tuple[Callable[[int], Array], int]:
        import pyarrow as pa

        before = file.bytes_read
        reader, (dtype, shape) = pa.ipc.open_file(pa.PythonFile(file, "r")), self._kind

        def read(n: int) -> Array:
            column = reader.get_batch(n // 64).column(0)
            return np.asarray(column[n % 64].values.to_numpy(), dtype).reshape(shape)

        return read, file.bytes_read - before


class Parquet(Container):
    name = "Parquet, 64 samples a row group, no compression"

    def write(self, path: Path, samples: Array) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._kind = samples.dtype, samples.shape[1:]
        column = pa.array([sample.tobytes() for sample in samples], pa.binary(samples[0].nbytes))
        options = {"row_group_size": 64, "compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(pa.table({"samples": column}), path, **options)

    def open(self, file: Counted) -> tuple[Callable[[int], Array], int]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        before = file.bytes_read
        reader, (dtype, shape) = pq.ParquetFile(pa.PythonFile(file, "r")), self._kind

        def read(n: int) -> Array:
            group = reader.read_row_group(n // 64).column(0)
            return np.frombuffer(group[n % 64].as_buffer(), dtype).reshape(shape)

        return read, file.bytes_read - before


def measure(container: Container, samples: Array, chosen: list[int], path: Path) -> dict[str, float]:
    container.write(path, samples)
    file = Counted(path)
    read, known = container.open(file)
    requests, num_bytes = file.requests, file.bytes_read
    start = time.process_time()
    for n in chosen:
        assert np.array_equal(read(n)[..., :1], samples[n][..., :1])
    random_s = time.process_time() - start
    requests, num_bytes = file.requests - requests, file.bytes_read - num_bytes
    start = time.process_time()
    for n in range(len(samples)):
        read(n)
    return {
        "size over the samples": path.stat().st_size / samples.nbytes,
        "requests a sample": requests / len(chosen),
        "bytes read over needed": num_bytes / (len(chosen) * samples[0].nbytes),
        "us a random sample": 1e6 * random_s / len(chosen),
        "us a sample in order": 1e6 * (time.process_time() - start) / len(samples),
        "MB to know of a billion": known / len(samples) * 1e9 / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=32, help="of each kind of data")
    parser.add_argument("--samples", type=int, default=2000, help="that are read at random")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    draw, facts, results = np.random.default_rng(0), machine(), []
    kinds: dict[str, tuple[tuple[int, ...], Any]] = {
        "windows of 512 tokens, uint16": ((512,), np.uint16),
        "images of 3x64x64 bytes": ((3, 64, 64), np.uint8),
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind, (shape, dtype) in kinds.items():
            count = given.mb * 1_000_000 // (int(np.prod(shape)) * np.dtype(dtype).itemsize)
            samples = draw.integers(0, 256, (count, *shape)).astype(dtype)
            chosen = draw.integers(0, count, given.samples).tolist()
            found = {}
            for container in (Raw(), Safetensors(), Mds(), Arrow(), Parquet()):
                print(f"{kind}: {container.name}", file=sys.stderr)
                found[container.name] = measure(container, samples, chosen, Path(folder) / "shard")
            results.append({"data": f"{given.mb} MB of {kind}", "containers": found})
    write("shard-containers", facts, results, given.output)


if __name__ == "__main__":
    main()
