"""Results: the file of a machine's measurements, which a later call reads and goes on with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainkit.benchmark import machine
from trainkit.benchmark.figures import is_measured, with_figures
from trainkit.errors import ConfigError, DataError
from trainkit.json_text import read_json, write_json

FORMAT = 1
MAX_BYTES = 1 << 26


class Results:
    """The measurements of one machine, in a file that is written after each of them.

    Attributes: `value`, what the file holds: `machine`, `date` of the last measurement, `settings`, `cells` by key,
    `flops` by model, `peaks` by precision.

    Args:
        path: of the file.
        value: what it holds.
    """

    def __init__(self, path: Path, value: dict[str, Any]) -> None:
        self.path, self.value = path, value

    @classmethod
    def open(cls, path: Path) -> "Results":
        """Reads the file of this machine, or begins one.

        Raises:
            ConfigError: it is of other hardware.
            DataError: it is no file of results.
        """
        here = machine.describe()
        if not path.exists():
            empty = {"format": FORMAT, "machine": here, "date": machine.now(), "settings": {}}
            return cls(path, {**empty, "cells": {}, "flops": {}, "peaks": {}})
        results = cls.read(path)
        if not machine.is_same(results.value["machine"], here):
            raise ConfigError(
                f"--to={path} holds measurements of {machine.in_words(results.value['machine'])}, and this machine is "
                f"{machine.in_words(here)}: give another --to, and that file as --compare"
            )
        return results

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Reads a file, of any machine.

        Raises:
            DataError: it is not there, or no file of results.
        """
        try:
            value = read_json(path, MAX_BYTES)
            _File.model_validate(value)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, ValidationError) as error:
            raise DataError(f"{path} is no file of trainkit benchmark: {' '.join(str(error).split())[:200]}") from error
        return cls(path, value)

    def known(self, part: str, key: str, settings: str) -> dict[str, Any] | None:
        """What was measured with these settings; None: nothing, or it failed, or with others.

        Args:
            part: `cells`, `flops` or `peaks`.
            key: in it.
            settings: their digest.
        """
        found: dict[str, Any] | None = self.value[part].get(key)
        if found is None or found["settings"] != settings or "reason" in found:
            return None
        return found

    def add(self, part: str, key: str, settings: str, found: Mapping[str, Any]) -> None:
        """Adds a measurement, in place of an earlier one of this key, and writes the file.

        Args:
            part: as for `known`.
            key: in it.
            settings: their digest.
            found: the measurement, or the `reason` why there is none.
        """
        now = machine.now()
        self.value[part][key] = {**found, "settings": settings, "measured_at": now}
        self.value["date"] = now
        self.write()

    def write(self) -> None:
        """Writes the file, with the figures that follow from the measurements.

        Raises:
            ConfigError: it cannot be written.
        """
        self.value["cells"] = with_figures(self.value)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.value)
        except OSError as error:
            raise ConfigError(f"--to={self.path} cannot be written: {error.strerror or error}") from error

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The cells with their figures, sorted by model, strategy, precision and processes."""
        cells = with_figures(self.value).values()
        order = {name: number for number, name in enumerate(dict.fromkeys(cell["model"] for cell in cells))}
        return sorted(
            cells, key=lambda cell: (order[cell["model"]], cell["precision"], cell["strategy"], cell["processes"])
        )

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Those of `cells` that did not fail."""
        return [cell for cell in self.cells if is_measured(cell)]


# What a file of others must have to be shown.


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    settings: str


class _Repeat(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    seconds: float = Field(gt=0)
    samples: float = Field(gt=0)
    tokens: float | None = Field(default=None, ge=0)
    images: float | None = Field(default=None, ge=0)
    joules: float | None = None


class _Cell(_Part):
    model: str
    precision: str
    strategy: str
    processes: int = Field(ge=1)
    batch_size: int | None = None
    peak_memory_bytes: int | None = None
    other_cores: float | None = Field(default=None, ge=0)
    repeats: list[_Repeat] = []
    reason: str | None = None


class _Count(_Part):
    flops_per_sample: float | None = Field(default=None, ge=0)


class _Peak(_Part):
    flops_per_s: float | None = Field(default=None, ge=0)


class _Cpu(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str


class _Gpu(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class _Machine(BaseModel):
    model_config = ConfigDict(extra="allow")
    cpu: _Cpu
    gpus: list[_Gpu]


class _File(BaseModel):
    format: int = Field(ge=FORMAT, le=FORMAT)
    machine: _Machine
    date: str
    settings: dict[str, Any]
    cells: dict[str, _Cell]
    flops: dict[str, _Count]
    peaks: dict[str, _Peak]
