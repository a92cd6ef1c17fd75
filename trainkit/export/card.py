"""Model card: what a model is made of and how good it is, as the README.md of its directory."""

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trainkit.evaluation import Assessment
from trainkit.export.export import RunFacts
from trainkit.export.markdown import block, code, escaped, grid, table
from trainkit.tracking.console import number

LICENSE = "No license is stated: add `license: ...` to the head of this file before it is published."
_INTENDED = """\
TODO: say what it is for, for whom, and what it must not be used for. The numbers below are of held-out data that \
resemble the training data: on others they may be worse."""
_SEEDS = """\
An interval is one over held-out samples, of this one trained model: another seed gives another model. \
`trainkit seeds` trains several."""


def model_card(run: RunFacts, *, title: str, text: str, tags: Iterable[str], **head: str) -> str:
    """Makes the text of a model card.

    Args:
        run: facts about the checkpoint.
        title: the heading.
        text: what it is, and how it is used, in Markdown.
        tags: for the site that shows it.
        head: further keys of the head, such as `pipeline_tag`.

    Returns:
        Markdown, with a YAML head as Hugging Face reads it, and the results in it. It states no license: that is the
        user's.
    """
    head = {**({"pipeline_tag": run.task} if run.task else {}), **head}
    front = yaml.safe_dump({**head, "tags": list(tags), **_index(run, head)}, sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", f"# {escaped(title)}", *_verdict(run), text, LICENSE]
    parts += ["## Intended use", _INTENDED, "## Evaluation", *_evaluation(run)]
    if data := {**run.data, **{f"fingerprint of {name}": value for name, value in run.fingerprints.items()}}:
        parts += ["## Data", table(data)]
    training = {"run": run.name, "steps": run.step, "samples": run.position, **run.training}
    config = yaml.safe_dump(public_configuration(run.config), sort_keys=False, allow_unicode=True)
    parts += ["## Training", table(training), "## Configuration", block(config, "yaml")]
    parts += ["## Versions", table({**run.versions, **run.environment})]
    return "\n\n".join(parts) + "\n"


def run_card(run: RunFacts, *, recipe: str, reproducible: bool) -> str:
    """Makes the model card of a run directory.

    Args:
        run: facts about its newest checkpoint.
        recipe: the class of the recipe.
        reproducible: whether the directory says how to train again, in its manifest.

    Returns:
        Markdown; see `model_card`.
    """
    name = shlex.quote(_on_one_line(run.name))
    use = [f"trainkit evaluate {name}", f"trainkit export {name} --to FORMAT TARGET"]
    again = (
        f"`trainkit reproduce` on {code(run.name)} trains it again, from its manifest.json."
        if reproducible
        else "The configuration below, with the same data and versions, trains it again: `trainkit train` takes each "
        "key as `key=value`. On the same hardware, number of ranks and `deterministic: true` it gives the same bits."
    )
    text = "\n\n".join(
        [
            f"Trained with trainkit by the recipe {code(recipe)}.",
            "## How to use",
            "The model is in the checkpoints of its run directory. From the directory that holds it:",
            block("\n".join(use), "sh"),
            "## How to reproduce",
            again,
        ]
    )
    return model_card(run, title=run.name, text=text, tags=["trainkit"], library_name="trainkit")


def _verdict(run: RunFacts) -> Iterator[str]:
    if run.metrics:
        yield f"**{escaped(_sentence(_assessment(run).verdict().text))}**"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _assessment(run: RunFacts) -> Assessment:
    return Assessment.of(run.metrics, {"baselines": run.baselines, **run.assessment})


def _evaluation(run: RunFacts) -> Iterator[str]:
    if not run.metrics:
        yield f"Not evaluated at step {run.step:,}: `trainkit evaluate` on the run measures it."
        return
    found = _assessment(run)
    rows = []
    for name, value in found.metrics.items():
        interval = found.intervals.get(name)
        ends = f"{number(interval.low)} to {number(interval.high)}" if interval else "none"
        rows.append((escaped(name), f"**{value:.4g}**", ends))
        rows += [
            (f"{escaped(name)} of: {escaped(other)}", f"{score:.4g}", "")
            for other, score in found.baselines.get(name, {}).items()
        ]
    yield "On held-out data:"
    yield grid(("metric", "value", "95 % interval"), rows)
    sources = dict.fromkeys(interval.source() for interval in found.intervals.values())
    yield f"Intervals: {escaped('; '.join(sources))}. {_SEEDS}" if sources else "No metric has an interval."
    yield f"Leakage between training and held-out data: {escaped(run.audit or 'not looked for')}."


def _index(run: RunFacts, head: Mapping[str, str]) -> dict[str, Any]:
    """The results as Hugging Face's `model-index`; empty without any."""
    finite = {name: value for name, value in run.metrics.items() if math.isfinite(value)}
    if not finite:
        return {}
    data = run.config.get("data") or {}
    name = _on_one_line(_name_of(data))
    measured = [
        {"type": _on_one_line(metric), "value": float(value), "name": _on_one_line(metric)}
        for metric, value in finite.items()
    ]
    dataset = {"name": name, "type": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "data", "split": "held-out"}
    result = {"task": {"type": head.get("pipeline_tag", "other")}, "dataset": dataset, "metrics": measured}
    return {"model-index": [{"name": _on_one_line(run.name), "results": [result]}]}


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _name_of(data: Any) -> str:
    """What a data set is called: its file or folder, without the path, or its class."""
    if not isinstance(data, Mapping):
        return "data"
    path = data.get("path")
    return Path(path).name if isinstance(path, str) and Path(path).name else str(data.get("_target_", "data"))


def public_configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what is of one machine only; of an absolute path, the name."""
    left_out = (
        "run_dir",
        "copy_to",
        "resume",
        "tracking",
        "comm",
        *(key for key in config.get("recipe") or {} if key in config),
    )
    return {key: _named(value) for key, value in config.items() if key not in left_out}


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _named(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
