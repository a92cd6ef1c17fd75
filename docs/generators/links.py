"""Tables of links: plans on the bed, training over them, and predictions beside published figures."""

from collections.abc import Callable, Mapping
from typing import Any

from docs.generators.markdown import Results, table, values


def _links(results: Results) -> str:
    rows = []
    for cell in results:
        plans = cell["plans"]
        shown = {"flat": "flat", "auto, exact": cell.get("auto", {}).get("exact", {}).get("name")}
        for wire in ("exact", "fp16", "int8"):
            of_wire = [name for name in plans if f", {wire}" in name]
            if of_wire:
                shown[f"fastest {wire}"] = min(of_wire, key=lambda name: plans[name]["seconds"])
        rows += [
            [
                f"{cell['cell']}{f', run {run}' if (run := cell.get('run', 1)) > 1 else ''}",
                *(what, plan, f"{one['seconds']:.2f}", f"{one['over_flat']:.2f}"),
                f"{100 * one['bound_share']:.0f}" if one["bound_share"] else "",
            ]
            for what, plan in shown.items()
            if plan in plans and (one := plans[plan])
        ]
    header = [
        "hosts x ranks, links, message, order of ranks",
        "",
        "plan",
        "seconds",
        "times as fast as flat",
    ]
    return table([*header, "% of the bound"], rows)


def _links_training(results: Results) -> str:
    parts = []
    for result in results:
        if "contenders" not in result:
            parts.append(values([result]))
            continue
        link = (
            f"{result['mbit_per_s']} Mb/s between {result['num_hosts']} hosts" if result["mbit_per_s"] else "one host"
        )
        rows = [
            [name, f"{one['step_s'] * 1000:.0f}", f"{one['over_plain'][1]:.2f}"]
            for name, one in result["contenders"].items()
        ]
        title = f"{result['model']}, {result['num_ranks']} ranks, {link}; medians of {result['num_turns']} rounds:"
        parts.append(f"{title}\n\n{table(['', 'step, ms', 'times as fast as DistributedDataParallel'], rows)}")
    return "\n\n".join(parts)


def _predictions(written: Mapping[str, Any]) -> str:
    goals = written["goals_percent"]
    rows = [
        [name, one["rows"], one["median"], one["worst"], " and ".join(f"{goal:g}" for goal in goals.get(name, ()))]
        for name, one in written["summary_percent"].items()
    ]
    return table(["published bus bandwidths", "number", "median error, %", "worst, %", "goals, %"], rows)


RENDERERS: Mapping[str, Callable[[Any], str]] = {
    "links": _links,
    "links-sockets": _links,
    "links-training": _links_training,
    "predictions": _predictions,
}
