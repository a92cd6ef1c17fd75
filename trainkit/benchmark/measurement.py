"""Measurement: of a whole grid, cell by cell, into a file from which it goes on where it was interrupted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainkit.benchmark.configuration import batch_size_of, config_of, config_of_count, with_batch_size
from trainkit.benchmark.grid import Cell, Length
from trainkit.benchmark.results import Results
from trainkit.benchmark.runner import FailedError, Runner
from trainkit.json_text import digest

COUNTED_SAMPLES = 8
"""In the step whose FLOPs are counted, at most."""

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the cells of a grid are measured with.

    Args:
        length: of each measurement.
        batch_size: samples of each process in a step; None: searched for on a GPU, on the CPU as configured.
        threads: of each process on the CPU; None: on a GPU.
        device: `cpu` or `cuda`.
        versions: by package.
        config_dir: a directory laid out like `conf/`.
    """

    length: Length
    batch_size: int | None
    threads: int | None
    device: str
    versions: Mapping[str, str]
    config_dir: str | Path | None = None

    def as_json(self) -> dict[str, Any]:
        """As a file of results holds it."""
        return {**asdict(self.length), "batch_size": self.batch_size, "threads": self.threads,
                "device": self.device, "versions": dict(self.versions)}  # fmt: skip


class Measurement:
    """Measures cells that the file does not hold yet.

    Args:
        results: the file, which is written after each measurement.
        runner: makes a measurement in processes of its own.
        settings: of all cells.
        again: measures also what the file holds.
        report: called when something begins that takes a while.
    """

    def __init__(
        self,
        results: Results,
        runner: Runner,
        settings: Settings,
        *,
        again: bool = False,
        report: Report = lambda text: None,
    ) -> None:
        self.results, self._runner, self._settings = results, runner, settings
        self._again, self._report = again, report
        self._done: set[tuple[str, str]] = set()
        self._digests: dict[tuple[str, Cell], str] = {}
        results.value["settings"] = settings.as_json()

    def is_known(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell."""
        return not self._again and self.results.known("cells", cell.key, self._of_cell(cell)) is not None

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measures a cell, and before it the peak of its precision and the FLOPs of its model.

        Args:
            cell: of the grid.

        Returns:
            The cell as the file holds it, with the `reason` where it could not be measured.
        """
        self._peak(cell.precision)
        self._flops(cell)
        settings = self._of_cell(cell)
        named = {"model": cell.model.name, "precision": cell.precision, "strategy": cell.strategy}
        about = {**named, "processes": cell.processes, "overrides": list(cell.model.overrides),
                 "threads": self._settings.threads, "model_settings": self._of_model(cell)}  # fmt: skip
        try:
            found = {**about, **self._steps(cell)}
        except FailedError as error:
            found = {**about, "reason": str(error)}
        self.results.add("cells", cell.key, settings, found)
        added: dict[str, Any] = self.results.value["cells"][cell.key]
        return added

    def _steps(self, cell: Cell) -> dict[str, Any]:
        config, per_process = config_of(cell, self._settings.config_dir), self._settings.batch_size
        how = "given"
        if per_process is None and self._settings.device == "cuda" and batch_size_of(config) is not None:
            self._report(f"{cell.words}: the largest batch that fits")
            per_process = self._runner.run({"kind": "batch", "config": config}, cell.processes)["batch_size"]
            how = "the largest that was found to fit"
        elif per_process is None:
            per_process, how = batch_size_of(config), "as configured"
        if per_process is not None:
            config = with_batch_size(config, per_process * cell.processes)
        self._report(cell.words)
        task = {"kind": "steps", "config": config, "length": asdict(self._settings.length)}
        found = self._runner.run(task, cell.processes)
        return {**found, "batch_size_per_process": per_process, "batch_is": how}

    def _peak(self, precision: str) -> None:
        threads = self._settings.threads
        settings = digest([precision, threads, self._settings.device, dict(self._settings.versions)])
        task = {"kind": "peak", "precision": precision, "device": self._settings.device}
        self._once("peaks", precision, settings, task, {"threads": threads}, f"the peak of {precision}")

    def _flops(self, cell: Cell) -> None:
        config = config_of_count(cell, self._settings.config_dir)
        num = batch_size_of(config)
        if num is not None:
            config = with_batch_size(config, min(num, COUNTED_SAMPLES))
        settings = self._of_model(cell)
        more = {"model_settings": settings}
        self._once(
            "flops",
            cell.model.name,
            settings,
            {"kind": "flops", "config": config},
            more,
            f"the FLOPs of {cell.model.name}",
        )

    def _once(
        self, part: str, key: str, settings: str, task: Mapping[str, Any], more: Mapping[str, Any], words: str
    ) -> None:
        """Measures what many cells share, once in a call; its failure leaves their MFU unknown."""
        if (part, key) in self._done:
            return
        self._done.add((part, key))
        if not self._again and self.results.known(part, key, settings) is not None:
            return
        self._report(words)
        try:
            found = self._runner.run(task)
        except FailedError as error:
            found = {"reason": str(error)}
        self.results.add(part, key, settings, {**found, **more})

    def _of_cell(self, cell: Cell) -> str:
        own = self._settings
        if ("cell", cell) not in self._digests:  # composing takes a while
            self._digests["cell", cell] = digest([config_of(cell, own.config_dir), own.as_json()])
        return self._digests["cell", cell]

    def _of_model(self, cell: Cell) -> str:
        own = self._settings
        if ("model", cell) not in self._digests:
            self._digests["model", cell] = digest([config_of_count(cell, own.config_dir), dict(own.versions)])
        return self._digests["model", cell]


def check(cells: Sequence[Cell], settings: Settings) -> None:
    """Checks the configuration of every cell before any of them is measured.

    Args:
        cells: of the grid.
        settings: of all.

    Raises:
        ConfigError: naming the first key that is wrong.
    """
    checked = set()
    for cell in cells:
        named = (cell.model.name, cell.precision, cell.strategy)
        if named in checked:
            continue
        checked.add(named)
        config = config_of(cell, settings.config_dir)
        if settings.batch_size is not None:
            with_batch_size(config, settings.batch_size)
        config_of_count(cell, settings.config_dir)
