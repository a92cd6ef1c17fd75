"""Model card: what a model is made of, as the README.md of its directory."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from trainkit.export.export import RunFacts


def model_card(run: RunFacts, *, title: str, text: str, tags: Iterable[str], **head: str) -> str:
    """Makes the text of a model card.

    Args:
        run: facts about the checkpoint.
        title: the heading.
        text: what it is, and how it is used, in Markdown.
        tags: for the site that shows it.
        head: further keys of the head, such as `pipeline_tag`.

    Returns:
        Markdown, with a YAML head as Hugging Face reads it. It states no license: that is the user's.
    """
    front = yaml.safe_dump({**head, "tags": list(tags)}, sort_keys=False)
    parts = [
        f"---\n{front}---",
        f"# {title}",
        text,
        "No license is stated: add `license: ...` to the head of this file before it is published.",
        "## Training",
        _table({"run": run.name, "steps": f"{run.step:,}", "samples": f"{run.position:,}"}),
        "## Evaluation",
        _evaluation(run),
    ]
    if run.data:
        parts += ["## Data", _table(run.data)]
    config = yaml.safe_dump(_public(run.config), sort_keys=False, allow_unicode=True)
    parts += ["## Configuration", f"```yaml\n{config}```", "## Versions", _table(run.versions)]
    return "\n\n".join(parts) + "\n"


def _public(config: Mapping[str, Any]) -> Any:
    """The configuration without what is of one machine only; of an absolute path, the name."""
    left_out = ("run_dir", "resume", "tracking", "comm", *(key for key in config.get("recipe") or {} if key in config))
    return {key: _named(value) for key, value in config.items() if key not in left_out}


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _named(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _evaluation(run: RunFacts) -> str:
    if not run.metrics:
        return f"Not evaluated at step {run.step:,}: `trainkit evaluate` on the run measures it."
    rows = []
    for name, value in run.metrics.items():
        rows.append(f"| {name} | **{value:.4g}** |")
        rows += [f"| {name} of: {other} | {score:.4g} |" for other, score in run.baselines.get(name, {}).items()]
    return "\n".join(["On held-out data:", "", "| | |", "|---|---|", *rows])


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows.items())])


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
