"""The orders of an epoch by other libraries, made by their own code in one process with one worker."""

import importlib
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
BUFFERS = (1000, 16_000)
"""Samples: the defaults of webdataset and of datasets' examples, and the size of 16 shards."""


@dataclass(frozen=True)
class Made:
    """An order of an epoch.

    Args:
        whole: makes all of its indices.
        middle: makes the one in its middle, as a resume there does; None: the library cannot.
    """

    whole: Callable[[], Indices]
    middle: Callable[[], object] | None


@dataclass(frozen=True)
class Contender:
    """A way to shuffle.

    Args:
        make: makes the order, in which nothing is computed yet.
        num_held: samples in its buffer, where it has one.
    """

    make: Callable[[], Made]
    num_held: int | None = None


def peers(folder: Path, num_shards: int, shard: int, epoch: int) -> dict[str, Contender]:
    """What makes the orders, by name.

    Args:
        folder: that pip installed them into.
        num_shards: of the data.
        shard: samples in each.
        epoch: its number, from 0.
    """
    sys.path.append(str(folder))  # behind what is installed
    return {
        **_streaming(folder, num_shards, shard, epoch),
        **_webdataset(num_shards, shard, epoch),
        **_datasets(num_shards, shard, epoch),
        **_litdata(num_shards, shard, epoch),
    }


def _whole(make: Callable[[], Indices]) -> Contender:
    """Of an order that is made for a whole epoch at once: its middle waits for all of it."""
    return Contender(lambda: Made(make, make))


def _buffered(make: Callable[[], Iterator[int]], num: int, buffer: int) -> Contender:
    """Of an order that is read from the start, through a buffer that no library stores."""
    return Contender(lambda: Made(lambda: np.fromiter(make(), np.int64, num), None), buffer)


def _streaming(folder: Path, num_shards: int, shard: int, epoch: int) -> dict[str, Contender]:
    # Its package imports torchvision and clients of clouds, which no order needs.
    for name in ("streaming", "streaming.base", "streaming.base.shuffle"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    label, sizes, found = f"mosaicml-streaming {version('mosaicml-streaming')}", np.full(num_shards, shard), {}
    for name in ("py1s", "py2s", "py1b", "py1br", "py1e"):
        path = f"streaming.base.shuffle.{name}"
        if importlib.util.find_spec(path) is None:
            continue
        function: Any = getattr(importlib.import_module(path), f"get_shuffle_{name}")
        if name in ("py1s", "py2s"):
            found[f"{label}, {name}"] = _whole(partial(function, sizes, 1, 0, epoch))
        else:
            found[f"{label}, {name}, block of 16 shards"] = _whole(partial(function, sizes, 1, 0, epoch, 16 * shard))
    return found


def _webdataset(num_shards: int, shard: int, epoch: int) -> dict[str, Contender]:
    webdataset: Any = importlib.import_module("webdataset")

    def stream(buffer: int) -> Iterator[int]:
        shards = [*range(num_shards)]
        random.Random(epoch).shuffle(shards)  # as its shardshuffle=True does with each epoch's generator
        samples = (number * shard + place for number in shards for place in range(shard))
        shuffled: Iterator[int] = webdataset.filters.detshuffle(buffer, 100, seed=0, epoch=epoch).run(samples)
        return shuffled

    label = f"webdataset {version('webdataset')}"
    return {
        f"{label}, buffer of {buffer:,}": _buffered(partial(stream, buffer), num_shards * shard, buffer)
        for buffer in BUFFERS
    }


def _datasets(num_shards: int, shard: int, epoch: int) -> dict[str, Contender]:
    import datasets

    def generate(shards: list[int]) -> Iterator[dict[str, int]]:
        for number in shards:
            for place in range(shard):
                yield {"index": number * shard + place}

    def stream(buffer: int) -> Iterator[int]:
        made = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": [*range(num_shards)]})
        made = made.shuffle(seed=0, buffer_size=buffer)
        made.set_epoch(epoch)
        return (row["index"] for row in made)

    label = f"datasets {version('datasets')}"
    return {
        f"{label}, buffer of {buffer:,}": _buffered(partial(stream, buffer), num_shards * shard, buffer)
        for buffer in BUFFERS
    }


def _litdata(num_shards: int, shard: int, epoch: int) -> dict[str, Contender]:
    shuffles: Any = importlib.import_module("litdata.streaming.shuffle")
    environment: Any = importlib.import_module("litdata.utilities.env")

    bounds = [
        [number * shard, number * shard, (number + 1) * shard, (number + 1) * shard] for number in range(num_shards)
    ]
    reader = types.SimpleNamespace(_config=None, _max_cache_size=0)
    cache: Any = types.SimpleNamespace(get_chunk_intervals=lambda: bounds, _reader=reader)

    def make() -> Indices:
        shuffle = shuffles.FullShuffle(cache, 0, False)
        chunks, intervals = shuffle.get_chunks_and_intervals_per_workers(
            environment._DistributedEnv(1, 0, 1), 1, 256, epoch + 1
        )
        parts = [
            shuffle(np.arange(interval[1], interval[2]), num_shards, epoch + 1, chunk)
            for chunk, interval in zip(chunks[0], intervals[0], strict=True)
        ]
        return np.concatenate(parts).astype(np.int64)

    return {f"litdata {version('litdata')}, FullShuffle": _whole(make)}
