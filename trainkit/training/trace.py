"""Trace: what a run computed at a few of its steps, so that a second run can be compared with it to the bit."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trainkit.data.batch import Batch
from trainkit.distributed.shard import Shard
from trainkit.engine.engine import Engine
from trainkit.runtime import Runtime
from trainkit.tracking import jsonl
from trainkit.tracking.means import Last

TRACE_FILE = "trace.jsonl"
_FIRST = 4
_ODD = -7046029254386353131  # 2^64 over the golden ratio, as the hash of a multiplication uses it
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_traced(step: int) -> bool:
    """Whether a step is recorded: each of the first four, and then each power of two."""
    return step <= _FIRST or step & (step - 1) == 0


class Trace:
    """Writes trace.jsonl: of each recorded step its samples, its batch, its metrics and all weights after it.

    A line holds `step`, `position`, `samples` and `batch` (checksums of the indices and the content of the global
    batch), `metrics` (means over the global batch of this one step) and `weights`: of each engine, for each parameter,
    the checksum of its bits and its norm. A checksum is a sum over elements of their mixed bits times a function of the
    index, modulo 2^64: it depends neither on how a tensor is sharded nor on how samples are split over ranks.

    Args:
        runtime: of the run; nothing is written without a run directory.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._newest = runtime, 0
        self._path = runtime.run_dir / TRACE_FILE if runtime.run_dir is not None else None

    def begin(self, step: int) -> None:
        """Forgets what was recorded after `step`, from which training goes on."""
        self._newest = step
        if self._path is not None and self._runtime.ranks.is_main and self._path.exists():
            self._try(lambda path: jsonl.truncate_to_step(path, step if step else -1))

    def after(
        self, step: int, batch: Batch, metrics: Mapping[str, Tensor | float | Last], engines: Mapping[str, Engine]
    ) -> None:
        """Records a step that `is_traced`; to be called after each. Collective: every rank must call.

        Args:
            step: steps done.
            batch: this rank's share of the global batch.
            metrics: of the step, as the recipe returned them.
            engines: of the recipe, by name.
        """
        if self._path is None or not is_traced(step):
            return
        samples, content = self._sum([_of_samples(batch), _of_content(batch, self._runtime.ranks.rank)])
        line = {"samples": _hex(samples), "batch": _hex(content), "metrics": self._means(batch, metrics)}
        self._record(step, line, engines)

    def end(self, step: int, engines: Mapping[str, Engine]) -> None:
        """Records the weights at the end, unless they have been. Collective: every rank must call."""
        if self._path is not None and step > self._newest:
            self._record(step, {}, engines)

    def _record(self, step: int, line: Mapping[str, Any], engines: Mapping[str, Engine]) -> None:
        self._newest = step
        weights = {name: _of_weights(engine.state.weights()) for name, engine in engines.items()}
        if not self._runtime.ranks.is_main:
            return
        whole = {"step": step, "position": self._runtime.position, **line, "weights": weights}

        def append(path: Path) -> None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(whole) + "\n")

        self._try(append)

    def _try(self, write: Any) -> None:
        try:
            write(self._path)
        except (OSError, ValueError) as error:
            self._runtime.tracker.message(f"{TRACE_FILE} could not be written ({error}); training continues")

    def _sum(self, values: list[int]) -> list[int]:
        if not dist.is_initialized():
            return values
        total = torch.tensor(values, dtype=torch.int64, device=self._runtime.device)
        dist.all_reduce(total)
        return [int(value) for value in total.tolist()]

    def _means(self, batch: Batch, metrics: Mapping[str, Tensor | float | Last]) -> dict[str, float | None]:
        numbers = {name: float(value) * len(batch) for name, value in metrics.items()}
        sums = self._runtime.ranks.all_reduce_sum({**numbers, "num samples": float(len(batch))})
        means = {name: sums[name] / (sums["num samples"] or math.nan) for name in numbers}
        return {name: value if math.isfinite(value) else None for name, value in means.items()}


def checksum(tensor: Tensor, start: int = 0) -> Tensor:
    """Sums the bits of all elements, each times an odd function of its index, modulo 2^64.

    Args:
        tensor: of any dtype and shape.
        start: the index of its first element.

    Returns:
        int64 [], on the device of the tensor.

    Example:
        >>> a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
        >>> bool(checksum(a) == checksum(b)), bool(checksum(a) == checksum(a[:1]) + checksum(a[1:], 1))
        (False, True)
    """
    bits = _bits(tensor).reshape(-1)
    num = min(bits.numel(), _at_once(tensor.device))
    weights = 2 * torch.arange(start, start + num, dtype=torch.int64, device=tensor.device) + 1
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for first in range(0, bits.numel(), max(1, num)):
        mixed = _mixed(bits[first : first + num])
        total += (mixed * weights[: len(mixed)]).sum() + mixed.sum() * (2 * first)
    return total


def _at_once(device: torch.device) -> int:
    """Elements that stay in a processor's cache; or that keep a GPU busy."""
    return 1 << 16 if device.type == "cpu" else 1 << 24


def _mixed(bits: Tensor) -> Tensor:
    """Those of small integers would make small sums, in which changes could cancel."""
    mixed = bits.to(torch.int64, copy=True).add_(1).mul_(_ODD)
    mixed.bitwise_xor_(mixed >> 29).mul_(_ODD)
    return mixed.bitwise_xor_(mixed >> 32)


def _bits(tensor: Tensor) -> Tensor:
    real = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().contiguous()
    return real.view(_BITS[real.element_size()])


def _of_rows(leaf: Tensor, order: Tensor) -> int:
    """The checksum of the rows of a global tensor that are here, by their places in it."""
    rows = _bits(leaf).reshape(len(order), -1)
    size, total = rows.shape[1], 0
    weights = 2 * torch.arange(size, dtype=torch.int64, device=leaf.device) + 1
    num = max(1, _at_once(leaf.device) // size)
    for first in range(0, len(order), num):
        mixed = _mixed(rows[first : first + num])
        places = order[first : first + num].to(leaf.device)
        total += int((mixed * weights).sum() + (mixed.sum(1) * (2 * size * places)).sum())
    return total


def _of_weights(shards: Mapping[str, Shard]) -> dict[str, tuple[str, float]]:
    """The checksum and the norm of each whole tensor. Collective where some are sharded."""
    groups: defaultdict[Any, list[str]] = defaultdict(list)
    for name, shard in shards.items():
        groups[shard.group].append(name)
    found: dict[str, tuple[str, float]] = {}
    for group, names in groups.items():
        held = [shards[name] for name in names]
        sums = torch.stack([checksum(shard.local, shard.start) for shard in held])
        squares = torch.stack([shard.local.detach().double().square().sum() for shard in held])
        if group is not None:
            dist.all_reduce(sums, group=group)
            dist.all_reduce(squares, group=group)
        norms = squares.sqrt().tolist()
        found |= {name: (_hex(int(value)), norm) for name, value, norm in zip(names, sums.tolist(), norms, strict=True)}
    return {name: found[name] for name in shards}


def _of_samples(batch: Batch) -> int:
    order = batch.positions - batch.position
    return int((_mixed(batch.indices) * (2 * order + 1)).sum())


def _of_content(batch: Batch, rank: int) -> int:
    order, total = batch.positions - batch.position, 0
    for number, leaf in enumerate(_leaves(batch.data)):
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == len(order):
            value = _of_rows(leaf, order) if leaf.numel() else 0
        elif isinstance(leaf, Tensor):
            value = int(checksum(leaf)) * (2 * rank + 1)
        else:
            value = int.from_bytes(
                hashlib.blake2b(repr(leaf).encode(errors="replace"), digest_size=8).digest(), "little"
            )
            value *= 2 * rank + 1
        total += value * (2 * number + 1)
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, tuple) or (isinstance(tree, list) and any(isinstance(part, Tensor) for part in tree)):
        for part in tree:
            yield from _leaves(part)
    elif isinstance(tree, np.ndarray) and not tree.dtype.hasobject and tree.dtype.kind in "biufc":
        yield torch.from_numpy(np.ascontiguousarray(tree))
    else:
        yield tree


def _hex(value: int) -> str:
    return f"{value % (1 << 64):016x}"
