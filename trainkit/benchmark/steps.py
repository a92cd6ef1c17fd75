"""Steps: the time of a configuration's steps, in the processes of one job."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainkit.benchmark.batches import batches_of, contents, padding_of, stage_of
from trainkit.benchmark.energy import EnergyMeter
from trainkit.benchmark.grid import Length
from trainkit.benchmark.other_work import OtherWork
from trainkit.benchmark.peak_memory import peak_memory
from trainkit.data.batch import Batch
from trainkit.errors import ConfigError
from trainkit.job import new_recipe
from trainkit.recipe import Recipe


def measure_steps(config: Mapping[str, Any], length: Length) -> dict[str, Any]:
    """Trains a configuration for some steps, and measures them. Collective: every rank must call.

    A repeat contains everything between the ends of two steps: data, forward, backward, reduction, update, logging.

    Args:
        config: of a run, resolved or not.
        length: in steps.

    Returns:
        `repeats`, each with its `seconds` and, of all ranks, `samples`, `tokens` or `images` and `joules` where there
        are such; the global `batch_size`; `peak_memory_bytes` of the rank that held most, and what it is of;
        `other_cores`, the cores that other programs kept busy meanwhile.

    Raises:
        ConfigError: where the run is shorter than what is to be measured.
    """
    recipe = new_recipe(config)
    runtime = recipe.runtime
    try:
        meter = _Meter(recipe)
        repeats, batch = _measured(recipe, meter, length)
        num_bytes, memory = peak_memory(runtime.device)
        most = runtime.ranks.all_gather_object(num_bytes)
        return {
            "repeats": repeats,
            "batch_size": batch.size,
            "stage": stage_of(recipe),
            "device": runtime.device_name,
            "precision_obtained": runtime.precision_obtained,
            "peak_memory_bytes": None if None in most else max(each or 0 for each in most),
            "memory": memory,
            "other_cores": meter.other_cores(),
            "energy": meter.energy.reason or "NVML's counter of each GPU",
        }
    finally:
        runtime.close()


def _measured(recipe: Recipe, meter: "_Meter", length: Length) -> tuple[list[dict[str, float]], Batch]:
    repeats: list[dict[str, float]] = []
    num_steps = length.warmup + length.repeats * length.steps
    batch: Batch | None = None
    for step, batch in enumerate(limited(recipe, num_steps), start=1):
        recipe.runtime.log(step, **recipe.train_step(batch))
        if step == length.warmup:
            meter.start()
        elif step > length.warmup:
            meter.add(batch)
            if (step - length.warmup) % length.steps == 0:
                repeats.append(meter.read())
    assert batch is not None, "there are at least one step and one repeat"
    return repeats, batch


def limited(recipe: Recipe, num_steps: int) -> Iterator[Batch]:
    """The first batches to measure. Collective: every rank must call.

    Args:
        recipe: of the run.
        num_steps: how many.

    Raises:
        ConfigError: where the run has fewer.
    """
    batches = batches_of(recipe)
    for number in range(num_steps):
        batch = next(batches, None)
        if batch is None:
            raise ConfigError(
                f"the run of this configuration ends after {number} steps, and {num_steps} are to be measured: make it "
                f"longer ({recipe.length_key or 'by its length'}), or give fewer --steps or --repeats"
            )
        yield batch


class _Meter:
    """Seconds, samples, contents and joules between two moments at which all ranks have done their steps."""

    def __init__(self, recipe: Recipe) -> None:
        self._runtime = recipe.runtime
        self._padding = padding_of(recipe)
        self.energy = EnergyMeter(self._runtime.device)
        self._began, self._joules = 0.0, self.energy.joules()
        self._sums: dict[str, Tensor] = {}
        self._samples = 0
        self._work: OtherWork | None = None

    def start(self) -> None:
        """Collective."""
        if self._runtime.device.type == "cuda":
            torch.cuda.synchronize(self._runtime.device)
        self._runtime.ranks.all_reduce_sum({"arrived": 1.0})
        self._began, self._joules = time.perf_counter(), self.energy.joules()
        self._sums, self._samples = {}, 0
        self._work = self._work or OtherWork()

    def add(self, batch: Batch) -> None:
        self._samples += batch.size
        for name, number in contents(batch, self._padding).items():
            self._sums[name] = self._sums.get(name, torch.zeros((), dtype=torch.int64)).to(number.device) + number

    def read(self) -> dict[str, float]:
        """What was measured since the last read or the start, which begins anew. Collective."""
        if self._runtime.device.type == "cuda":
            torch.cuda.synchronize(self._runtime.device)
        self._runtime.ranks.all_reduce_sum({"arrived": 1.0})  # the slowest rank's time is that of all
        seconds, joules = time.perf_counter() - self._began, self.energy.joules()
        own: dict[str, Tensor | float] = {name: float(number) for name, number in self._sums.items()}
        own["joules"] = math.nan  # all ranks must give the same names
        if joules is not None and self._joules is not None:
            own["joules"] = joules - self._joules
        sums = self._runtime.ranks.all_reduce_sum(own)
        if math.isnan(sums["joules"]):
            del sums["joules"]
        found = {"seconds": seconds, "samples": float(self._samples), **sums}
        self.start()
        return found

    def other_cores(self) -> float | None:
        """Cores that were busy with other programs since the first start. Collective."""
        assert self._work is not None, "it was started"
        own_s = self._runtime.ranks.all_reduce_sum({"own": self._work.own_s()})["own"]
        return self._work.cores(own_s)
