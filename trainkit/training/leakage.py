"""Leakage: the audit at the start of a run, and what is done about what it finds."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from trainkit import checkpoint
from trainkit.audit import Report, audit
from trainkit.audit.corpus import corpus_of, run_config, texts_of
from trainkit.audit.memory import recall, remember
from trainkit.cache import cache_root
from trainkit.data.datasets import Datasets
from trainkit.data.sides import LeftOut
from trainkit.errors import ConfigError, DataError, require_above_zero
from trainkit.public_url import is_url, redacted
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime

AUDIT_FILE = "audit.json"

OnLeak = Literal["warn", "error", "drop", "ignore"]
Make = Callable[..., Recipe]


@dataclass(frozen=True)
class Looked:
    """What was done.

    Args:
        make_recipe: makes the recipe, of data without what was dropped.
        found: for the checkpoints and the result of the run; empty where nothing was looked at.
    """

    make_recipe: Make
    found: dict[str, Any] = field(default_factory=dict)


def look(
    runtime: Runtime,
    make_recipe: Make,
    *,
    on_leak: OnLeak = "warn",
    audit_minutes: float = 1.0,
    audit_corpus: Path | None = None,
) -> Looked:
    """Audits the data that a recipe will be made with, on rank 0. Collective: every rank must call.

    Args:
        runtime: of the run; `audit.json` in its directory gets the pairs.
        make_recipe: a partial with the specification of the data as its keyword `data`.
        on_leak: `warn` says how many held-out examples the training data give away; `error` refuses to train; `drop`
            leaves the leaking training examples out; `ignore` does not look.
        audit_minutes: after which it says how much it has compared. With `drop` it compares all: what is trained on
            does not depend on the speed of the machine.
        audit_corpus: text that the model was pre-trained on, or a run that was: held-out texts in it are counted; None:
            that of the run in `weights`, where there is one.

    Returns:
        What makes the recipe, and what was found.

    Raises:
        ConfigError: on all ranks, for `drop` of data that cannot leave anything out.
        DataError: on all ranks, for a leak with `error`, and where `drop` would leave out more than half.
    """
    require_above_zero(audit_minutes=audit_minutes)
    given = getattr(make_recipe, "keywords", {})
    data = given.get("data")
    if on_leak == "ignore" or data is None or _is_empty(data):
        return Looked(make_recipe)
    corpus, unchecked = (audit_corpus, None) if audit_corpus is not None else _corpus_of_weights(given.get("weights"))
    report, error = None, None
    if runtime.ranks.is_main:
        try:
            report = _report(data, None if on_leak == "drop" else 60 * audit_minutes, corpus)
            _write(runtime, report)
        except Exception as caught:
            error = caught
    runtime.ranks.raise_first(error)
    report = runtime.ranks.broadcast_object(None if report is None else replace(report, leaks=()))
    if report is None:
        line = _with(_not_looked_at(data, on_leak), unchecked)
        return Looked(make_recipe, {"audit": {"on_leak": on_leak, "line": line}})
    where = runtime.run_dir / AUDIT_FILE if runtime.run_dir is not None else None
    found = {"on_leak": on_leak, **report.counts(), "line": _with(_line(report, on_leak, where), unchecked)}
    if on_leak == "error" and not report.is_clean:
        raise DataError(_refusal(report, where))
    if on_leak == "drop" and report.num_leaking:
        make_recipe = partial(make_recipe, data=_without(data, report))
        found["train_dropped"] = report.num_leaking
    return Looked(make_recipe, {"audit": found})


def _report(data: Any, seconds: float | None, corpus: Path | None) -> Report | None:
    sides = data.sides() if callable(getattr(data, "sides", None)) else None
    if sides is None:
        return None
    found = None if corpus is None else corpus_of(corpus.expanduser())
    root, fingerprint = cache_root(getattr(data, "cache_dir", None)), None
    if sides.fingerprint is not None:
        of_corpus = "" if found is None else found.fingerprint(root)
        fingerprint = hashlib.blake2b(f"{sides.fingerprint} {of_corpus}".encode(), digest_size=16).hexdigest()
        if (known := recall(root, fingerprint)) is not None:
            return known
    report = audit(sides, seconds=seconds, corpus=None if found is None else texts_of(found))
    if fingerprint is not None:
        remember(root, fingerprint, report)
    return report


def _is_empty(data: Any) -> bool:
    """Whether it is that of a checkpoint that is used without data."""
    return isinstance(data, Datasets) and hasattr(data.train, "__len__") and not len(data.train)


def _not_looked_at(data: Any, on_leak: OnLeak) -> str:
    path = getattr(data, "path", None)
    if is_url(path):
        name = f"data.path={redacted(str(path))}"
        why = "all of it would be downloaded: audit what the shards are made from"
    else:
        name, why = type(data).__name__, "it has no `sides` to compare in memory"
    if on_leak in ("error", "drop"):
        raise ConfigError(f"on_leak={on_leak}: {name} cannot be audited, as {why}; set on_leak=warn")
    return f"{name} was not looked at: {why}"


def _corpus_of_weights(weights: Any) -> tuple[Path | None, str | None]:
    """The run that weights are of, where its text is still there; where it is not, why what it read is not known."""
    if not isinstance(weights, str | Path):
        return None, None
    path = Path(weights).expanduser()
    if run_config(path) is None:
        return None, f"weights={weights} is no run, which would say what it read"
    try:
        corpus_of(path)
    except DataError as error:
        return None, f"of weights={weights}, {str(error).partition(';')[0]}"  # the rest is advice for another key
    return path, None


def _with(line: str, unchecked: str | None) -> str:
    """The line of a run, which also says where held-out texts could not be looked for in a pre-training corpus."""
    if unchecked is None:
        return line
    what = "held-out texts were not looked for in the text of pre-training"
    return f"{line}; {what}: {unchecked}; set audit_corpus=PATH to that text to look"


def _without(data: Any, report: Report) -> Any:
    if not callable(getattr(data, "without", None)):
        raise ConfigError(
            f"on_leak=drop: {type(data).__name__} cannot leave examples out; set on_leak=warn, or give it a `without`"
        )
    if not report.can_be_dropped:
        raise DataError(
            f"on_leak=drop would leave out {report.num_leaking:,} of {report.num_train:,} training examples, more than "
            f"half: split the data by what they share, or set on_leak=warn"
        )
    return data.without(LeftOut(report.keys))


def _line(report: Report, on_leak: OnLeak, where: Path | None) -> str:
    line = report.line()
    if on_leak == "drop" and report.num_leaking:
        line += f"; {report.num_leaking:,} training examples are left out"
    elif not report.is_clean and report.can_be_dropped:
        line += "; set on_leak=drop to train without the examples that leak"
    if not report.is_complete:
        line += "; set audit_minutes higher to compare all"
    return line if report.is_clean or where is None else f"{line}; pairs: {where}"


def _refusal(report: Report, where: Path | None) -> str:
    told = f"; the pairs are in {where}" if where is not None else ""
    others = "set on_leak=drop to train without them, or on_leak=warn" if report.can_be_dropped else "set on_leak=warn"
    return f"on_leak=error: {report.line()}{told}; remove them, {others}"


def _write(runtime: Runtime, report: Report | None) -> None:
    if report is None or runtime.run_dir is None:
        return
    try:
        checkpoint.write_text(runtime.run_dir / AUDIT_FILE, json.dumps(report.facts(), indent=2) + "\n")
    except OSError as error:  # the numbers are in the checkpoints, too
        runtime.tracker.message(f"{AUDIT_FILE} could not be written: {error.strerror or error}")
