"""Comparison: where two runs parted, by what each recorded in trace.jsonl and metrics.jsonl."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NotRequired

import torch
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from trainkit import manifest
from trainkit.errors import DataError
from trainkit.json_text import MAX_BYTES, parse_json, read_bounded
from trainkit.tracking import jsonl
from trainkit.training.trace import TRACE_FILE

Result = Literal["same bits", "within rounding", "parted", "nothing in common"]

_EPSILON = {
    "fp64": torch.finfo(torch.float64).eps,
    "fp32": torch.finfo(torch.float32).eps,
    "tf32": torch.finfo(torch.float16).eps,  # as many bits of precision
    "fp16": torch.finfo(torch.float16).eps,
    "bf16": torch.finfo(torch.bfloat16).eps,
}


@dataclass(frozen=True)
class Comparison:
    """How the second of two runs compares with the first.

    Args:
        result: `same bits`; `within rounding`: all batches are the same, and no metric differs by more than the square
            root of the precision's machine epsilon, relatively; `parted`; or `nothing in common`: no step that both
            recorded.
        text: the result as a sentence.
        num_steps: recorded steps that both have.
        last_step: the last one of these.
        parted_at: the first step at which they are not within rounding; None: there is none.
        first_bits: where bits differ first: step and tensor or metric; None: nowhere.
        largest: the largest relative difference of a metric, its name and its step; None: there is none.
        measured: by metric of evaluations that both made at the same step, the last values of both.
    """

    result: Result
    text: str
    num_steps: int = 0
    last_step: int = 0
    parted_at: int | None = None
    first_bits: tuple[int, str] | None = None
    largest: tuple[float, str, int] | None = None
    measured: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def compare(first: Path, second: Path) -> Comparison:
    """Compares what two runs recorded.

    Args:
        first: a run directory.
        second: another one.

    Raises:
        DataError: one of them has no manifest or no trace, or it cannot be read.
    """
    facts = [manifest.read(run)["training"] for run in (first, second)]
    before, now = read_trace(first), read_trace(second)
    steps = sorted(before.keys() & now.keys())
    if not steps:
        return Comparison("nothing in common", f"{first} and {second} recorded no step in common: train for longer")
    same_ranks = facts[0].get("num_ranks") == facts[1].get("num_ranks")
    tolerance = max(_tolerance(fact.get("precision")) for fact in facts)
    first_bits, parted, largest = None, None, (0.0, "", 0)
    for step in steps:
        found = list(_differences(before[step], now[step], with_content=same_ranks))
        if found and first_bits is None:
            first_bits = (step, found[0])
        if parted is None and found and found[0] in _DATA:
            parted = (step, found[0])
        for name, difference in _of_metrics(before[step], now[step]):
            largest = max(largest, (difference, name, step))
            if difference > tolerance and parted is None:
                parted = (step, name)
    known = largest if largest[0] else None
    made = partial(Comparison, num_steps=len(steps), last_step=steps[-1], measured=_measured(first, second))
    if first_bits is None:
        num = sum(len(tensors) for tensors in _weights(before[steps[-1]]).values())
        return made("same bits", _same(len(steps), steps[-1], num))
    other = f"the first other bits: {first_bits[1]}, step {first_bits[0]}"
    if parted is None:
        return made(
            "within rounding",
            f"the same within rounding: {_bound(known)}; {other}",
            first_bits=first_bits,
            largest=known,
        )
    step, what = parted
    text = f"parted at step {step}: {what}{_beside(before[step], now[step], what)}"
    text += "" if first_bits == parted else f"; {other}"
    return made("parted", text, parted_at=step, first_bits=first_bits, largest=known)


class Line(TypedDict):
    """A line of trace.jsonl; see `Trace`."""

    step: int
    position: int
    samples: NotRequired[str]
    batch: NotRequired[str]
    metrics: NotRequired[dict[str, float | None]]
    weights: dict[str, dict[str, tuple[str, float]]]


@cache
def _schema() -> TypeAdapter[list[Line]]:
    return TypeAdapter(list[Line])


def read_trace(run_dir: Path) -> dict[int, Line]:
    """Reads trace.jsonl.

    Args:
        run_dir: of the run.

    Returns:
        By step, its line; those of several starts at one step are merged.

    Raises:
        DataError: there is none, or it is none.
    """
    path = run_dir / TRACE_FILE
    if not path.is_file():
        raise DataError(f"{run_dir} has no {TRACE_FILE}, which a run of a Trainer writes: there is nothing to compare")
    try:
        lines = [
            parse_json(line) for line in read_bounded(path, MAX_BYTES).splitlines(keepends=True) if line[-1:] == b"\n"
        ]
        return {line["step"]: line for line in _schema().validate_python(lines)}
    except (OSError, ValueError) as error:  # a ValidationError is a ValueError
        raise DataError(f"{path} is no trace of a run: {error}") from error


_SAMPLES, _BATCH = "other samples were drawn", "the batch has other content"
_DATA = (_SAMPLES, _BATCH)


def _differences(before: Line, now: Line, *, with_content: bool) -> Iterator[str]:
    """What differs after a step, in the order in which it comes about."""
    if {"samples", "batch"} <= before.keys() & now.keys():
        if before["samples"] != now["samples"]:
            yield _SAMPLES
        elif with_content and before["batch"] != now["batch"]:  # ranks may fill up their batches to other lengths
            yield _BATCH
    yield from (name for name, difference in _of_metrics(before, now) if difference)
    first, second = _weights(before), _weights(now)
    for engine in first:
        for name in first[engine]:
            if first[engine][name] != second.get(engine, {}).get(name):
                yield f"{name} of {engine}"


def _of_metrics(before: Line, now: Line) -> Iterator[tuple[str, float]]:
    """The relative difference of each metric; infinite where only one run has a finite one."""
    first, second = before.get("metrics") or {}, now.get("metrics") or {}
    for name in (name for name in first if name in second):
        a, b = first[name], second[name]
        if a is None or b is None:
            yield name, 0.0 if a is b else math.inf
        else:
            yield name, abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


def _weights(line: Line) -> dict[str, dict[str, str]]:
    return {engine: {name: of[0] for name, of in tensors.items()} for engine, tensors in line["weights"].items()}


def _tolerance(precision: Any) -> float:
    return math.sqrt(_EPSILON.get(str(precision), _EPSILON["fp32"]))


def _same(num_steps: int, last: int, num_tensors: int) -> str:
    steps = f"{num_steps} recorded steps up to step {last:,}" if num_steps > 1 else f"step {last:,}"
    return f"the same bits: {steps}, of samples, batches, metrics and {num_tensors} tensors"


def _bound(largest: tuple[float, str, int] | None) -> str:
    if largest is None:
        return "all metrics are the same"
    difference, name, step = largest
    return f"metrics differ by at most {difference:.1e} of their value ({name}, step {step})"


def _beside(before: Line, now: Line, name: str) -> str:
    first, second = (line.get("metrics") or {} for line in (before, now))
    return f" {first[name]} -> {second[name]}" if name in first and name in second else ""


def _measured(first: Path, second: Path) -> dict[str, tuple[float, float]]:
    """The last values of the metrics of evaluations, of the last step at which both were evaluated."""
    found = [_evaluations(run / jsonl.FILE_NAME) for run in (first, second)]
    steps = sorted(found[0].keys() & found[1].keys())
    if not steps:
        return {}
    a, b = (of[steps[-1]] for of in found)
    numbers = (name for name in a if name in b and not name.startswith(("step", "time", "kind")))
    return {name: (a[name], b[name]) for name in numbers if isinstance(a[name], float) and isinstance(b[name], float)}


def _evaluations(path: Path) -> dict[int, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        return {line["step"]: line for line in jsonl.read(path) if line.get("kind") == "evaluation"}
    except (ValueError, KeyError) as error:
        raise DataError(f"{path} is no record of a run: {error}") from error
