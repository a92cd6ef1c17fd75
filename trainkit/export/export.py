"""Export: what is written, of which run, and where to."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainkit.encryption import Recipient
from trainkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known about a checkpoint.

    Args:
        name: of the run, its directory without a path.
        step: of the checkpoint.
        position: samples that the model was trained on.
        metrics: the last evaluation at that step, if there was one.
        baselines: values by metric and name.
        data: properties of the data by name.
        config: the configuration of the run.
        versions: of the libraries that it was trained with.
        training: how it was trained, by name, such as the number of ranks.
        task: what Hugging Face calls it, such as `fill-mask`; None: not known.
        assessment: intervals, baselines and verdict; see `trainkit.evaluation.Assessment.facts`.
        fingerprints: of its data.
        audit: what the audit of the data has found; None: they were not audited.
        environment: further facts on code and machine.
    """

    name: str
    step: int
    position: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    data: Mapping[str, int | str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    assessment: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    audit: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)


def facts_of_run(name: str, manifest: Mapping[str, Any], **more: Any) -> RunFacts:
    """Returns what a checkpoint says about its run.

    Args:
        name: of the run.
        manifest: of the checkpoint.
        more: further arguments of RunFacts.
    """
    values = manifest["values"]
    return RunFacts(
        name=name,
        step=values["step"],
        position=manifest["position"],
        metrics=values["metrics"],
        config=values["config"] or {},
        assessment=values.get("assessment") or {},
        fingerprints=values.get("data") or {},
        audit=(values.get("found") or {}).get("audit", {}).get("line"),
        **values.get("facts", {}),
        **more,
    )


@dataclass(frozen=True, kw_only=True)
class Export:
    """One export, as a recipe's exporter gets it.

    Args:
        target: the path to write, a file or a directory: in a temporary directory, from which all that is written there
            is moved to its place once the exporter has ended.
        destination: its path then, for messages.
        run: facts about the checkpoint.
        averaged: whether the averaged weights are asked for; None: as the recipe evaluates.
        int8: whether weights, and activations either `dynamic` or `static`, are quantized to 8 bits.
        max_drop: the largest drop by `int8` of the model's held-out metric that is accepted; see `OnnxModel`.
        recipients: for whom it is encrypted: by a `Sealing` exporter itself, otherwise once it is written.
    """

    target: Path
    destination: Path
    run: RunFacts
    averaged: bool | None = None
    int8: Literal["dynamic", "static"] | None = None
    max_drop: float = 0.01
    recipients: tuple[Recipient, ...] = ()


Exporter = Callable[[Export], Iterable[str]]
"""Writes to `export.target`, and yields lines for the user."""


@contextmanager
def whole(destination: Path) -> Iterator[Path]:
    """Context manager for a file or directory that is written completely or not at all.

    Args:
        destination: must not exist, or be an empty directory.

    Yields:
        The path to write to. What lies beside it, such as `NAME.data`, is moved too.

    Raises:
        ConfigError: where `destination` exists, or cannot be written.
    """
    require_free(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise ConfigError(f"{destination} cannot be written: {error.strerror or error}; give another path") from error
    try:
        yield aside / destination.name
        _move(aside, destination)
    except OSError as error:
        if error.filename is not None and not Path(error.filename).is_relative_to(destination.parent):
            raise  # what the exporter reads, such as data
        raise ConfigError(f"{destination} cannot be written: {error.strerror or error}; give another path") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_free(destination: Path) -> None:
    """Raises ConfigError where something is at `destination` already, other than an empty directory."""
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if destination.exists() or destination.is_symlink():
        raise ConfigError(f"{destination} exists already, and is not overwritten: give another path, or remove it")


def _move(aside: Path, destination: Path) -> None:
    main = aside / destination.name
    assert main.exists(), f"the exporter wrote no {destination.name}"
    if main.is_file() and destination.is_dir():
        raise ConfigError(f"{destination} is a directory, and the export is a file: give another path")
    others = [path for path in sorted(aside.iterdir()) if path != main]
    for path in others:
        require_free(destination.parent / path.name)
    for path in others:
        path.rename(destination.parent / path.name)
    main.rename(destination)  # last: what it refers to is in place
