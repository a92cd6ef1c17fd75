"""RunLog: means over steps and ranks of a run's metrics, for its tracker and its summary file."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from trainkit.distributed.ranks import Ranks
from trainkit.tracking.means import Last, Means
from trainkit.tracking.pictures import picture
from trainkit.tracking.throughput import Throughput
from trainkit.tracking.tracker import Run, Status, Tracker
from trainkit.tracking.waits import Waits

SUMMARY_FILE = "summary.txt"
Item = TypeVar("Item")


class RunLog:
    """Accumulates the metrics of a run's steps, and sends their means, pictures and lines of text to the tracker.

    Args:
        tracker: receives the means; one that does nothing on ranks other than 0.
        ranks: the processes over which means are taken.
        run_dir: where summary.txt is written; None: nowhere.
        progress: returns the samples in the steps done, and the position at which training ends (None: not known).
        describe: returns the first lines of the summary; called by `start`, which raises what it raises.
        started: called once the tracker has started.
        measure: returns further numbers of a logged step, such as the memory in use.
        num_workers: returns how many of each rank fetch batches ahead.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        ranks: Ranks,
        run_dir: Path | None,
        progress: Callable[[], tuple[int, int | None]] = lambda: (0, None),
        describe: Callable[[], tuple[str, ...]] = tuple,
        started: Callable[[], None] = lambda: None,
        measure: Callable[[], dict[str, float]] = dict,
        num_workers: Callable[[], int] = lambda: 0,
    ) -> None:
        self.tracker, self.is_started = tracker, False
        self.resumed_step: int | None = None
        self.throughput = Throughput()
        self._ranks, self._run_dir, self._progress = ranks, run_dir, progress
        self._describe, self._started, self._measure = describe, started, measure
        self._means, self._waits = Means(), Waits(num_workers)

    def start(
        self,
        *,
        config: Mapping[str, Any] | None = None,
        summary: tuple[str, ...] = (),
        costs: Sequence[tuple[int, float]] = (),
        milestones: Sequence[tuple[int, str]] = (),
    ) -> None:
        """Starts the tracker, unless it has been started.

        Args:
            config: what the run was made of.
            summary: further lines of the summary.
            costs: of samples, for the time left; see `Recipe.costs`.
            milestones: of the run; see `Recipe.milestones`.
        """
        if self.is_started:
            return
        lines = self._describe() + summary
        self.is_started = True
        position, num_samples = self._progress()
        self.throughput = Throughput(start=position, num_samples=num_samples, costs=costs)
        self._summarize(lines, "w")
        run = Run(
            directory=self._run_dir or Path(),
            name=self._run_dir.name if self._run_dir else "run",
            config=config or {},
            num_samples=num_samples,
            resumed_step=self.resumed_step,
            summary=lines,
            milestones=tuple(milestones),
        )
        self.tracker.start(run)
        self._started()

    def message(self, text: str) -> None:
        """Logs a line about the run itself to the tracker and to the run's summary."""
        self.tracker.message(text)
        if self.is_started:
            self._summarize([text], "a")

    def add(self, metrics: Mapping[str, Tensor | float | Last], num_samples: float) -> None:
        """Adds a step's metrics to the means, weighted by the size of this rank's local batch.

        Args:
            metrics: numbers, tensors of one element, or a `Last` of either.
            num_samples: samples in this rank's local batch.

        Raises:
            ConfigError: naming a metric that is no number.
        """
        self._means.add(metrics, num_samples)

    @property
    def is_empty(self) -> bool:
        """Whether no metrics were added since the last `flush`."""
        return self._means.is_empty

    def flush(self, step: int) -> dict[str, float]:
        """Logs the means of what was added since the last call. Collective: every rank must call.

        Args:
            step: steps done.

        Returns:
            The means over the global batches of those steps, by name.
        """
        self.start()
        means, (position, _) = self._means_over_ranks(), self._progress()
        rates, (fractions, seconds) = self.throughput.rates(position), self.throughput.fractions()
        self.tracker.log(step, {**means, "position": position, **rates, **fractions, **self._measure()})
        if self._ranks.is_main and (slow := self._waits.add(fractions, seconds)):
            self.message(slow)
        return means

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields batches of training, and measures how long each is waited for; see `data_wait` of `Tracker.log`."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.throughput.waited("data_wait", time.perf_counter() - began)
            yield batch

    def images(self, step: int, images: Mapping[str, Any]) -> None:
        """Logs pictures by name, from rank 0. Not collective.

        Args:
            step: steps done.
            images: whatever `picture` accepts, by name.

        Raises:
            ConfigError: naming one that is no picture.
        """
        if self._ranks.is_main:
            pictures = {name: picture(name, image) for name, image in images.items()}
            self.start()
            for name, pixels in pictures.items():
                self.tracker.image(step, name, pixels)

    def end(self, status: Status) -> None:
        """Finishes the tracker and drops metrics that were not logged. The log can be started again.

        Args:
            status: how the run ended.
        """
        self._means.reset()
        if self.is_started:
            self.is_started = False
            self.tracker.finish(status)

    def _means_over_ranks(self) -> dict[str, float]:
        taken = self._means.take()
        totals = {f"sum {name}": total for name, (total, _) in taken.items()}
        weights = {f"weight {name}": weight for name, (_, weight) in taken.items()}
        sums = self._ranks.all_reduce_sum({**totals, **weights}) if taken else {}
        # A metric of total weight 0 has no mean.
        return {name: sums[f"sum {name}"] / (sums[f"weight {name}"] or math.nan) for name in taken}

    def _summarize(self, lines: Sequence[str], mode: Literal["w", "a"]) -> None:
        if self._run_dir is None or not self._ranks.is_main:
            return
        try:
            with (self._run_dir / SUMMARY_FILE).open(mode) as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            self.tracker.message(f"{SUMMARY_FILE} could not be written: {error.strerror or error}; training continues")
