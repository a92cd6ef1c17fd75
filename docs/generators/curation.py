"""The table of benchmarks/data_selection.py: held-out loss with and without selection."""

from collections.abc import Callable, Mapping
from typing import Any

from docs.generators.markdown import table


def _selection(results: list[dict[str, Any]]) -> str:
    (result,) = results
    documents = dict(result["documents"])
    clean, held_out = documents.pop("clean"), documents.pop("held out")
    planted = ", ".join(f"{num:,} {name}" for name, num in documents.items())
    whole = clean + sum(documents.values())
    rows = []
    for arm in result["arms"]:
        kept = arm["kept"]["after"]["documents"] if arm["kept"] else whole
        losses = arm["losses"]
        rows.append(
            [
                arm["name"],
                f"{kept:,}",
                ", ".join(f"{loss:.3f}" for loss in losses),
                f"{sum(losses) / len(losses):.3f}",
            ]
        )
    said = (
        f"{clean:,} documents and, beside them, {planted}; {held_out:,} others to evaluate on, half of them are used; "
        f"{result['num_steps']:,} steps in each arm:"
    )
    return f"{said}\n\n{table(['trained on', 'documents', 'held-out loss by seed', 'mean'], rows)}"


RENDERERS: Mapping[str, Callable[[Any], str]] = {"data-selection": _selection}
