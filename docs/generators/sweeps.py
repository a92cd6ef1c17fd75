"""Tables of what was measured of sweeps, for docs.generators.results."""

from collections.abc import Callable, Mapping
from typing import Any

from docs.generators.markdown import table

Results = list[dict[str, Any]]


def _peers(results: Results) -> str:
    parts = []
    for result in results:
        rows = []
        for name, one in result["contenders"].items():
            cpu = one.get("overhead_beyond_evaluation_cpu_s")
            rows.append(
                [
                    name,
                    f"{one['wall_s']:.1f}",
                    f"{one['trials_an_hour']:,.0f}",
                    f"{one['steps_s']['mean']:.2f}",
                    f"{one['evaluation_s']['mean']:.2f}",
                    f"{one['overhead_s']:.2f}",
                    f"{one['overhead_beyond_evaluation_s']:.2f}",
                    "not known" if cpu is None else f"{cpu:.2f}",
                    f"{one['slots_busy']:.0%}",
                ]
            )
        header = [
            "",
            "all trials, s",
            "trials an hour",
            "steps",
            "evaluation",
            "overhead",
            "beyond the evaluation, too",
        ]
        header += ["the same in CPU time", "slots busy"]
        title = f"{result['trials'] * result['rounds']} trials in {result['slots']} slots; mean seconds a trial:"
        goals = [[name, f"{each['goal']:g}", _found(each["found"])] for name, each in result["goals"].items()]
        versions = [f"{name} {number}" for each in result["versions"].values() for name, number in each.items()]
        parts.append(f"{title}\n\n{table(header, rows)}\n\n{table(['', 'goal', 'measured'], goals)}")
        parts.append(f"Peers: {', '.join(dict.fromkeys(versions))}.")
    return "\n\n".join(parts)


def _found(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"


def _search(results: Results) -> str:
    searches = next(result for result in results if "seeds" in result)
    names = [name for name, one in searches["seeds"][0].items() if isinstance(one, dict)]
    rows = [
        [
            each["seed"],
            *(f"{each[name]['best']:.4f}" for name in names),
            *(f"{each[name]['steps']:,}" for name in names),
            f"{each['steps_ratio']:.2f}",
            *(f"{each[name]['wall_s']:.0f}" for name in names),
        ]
        for each in searches["seeds"]
    ]
    header = [f"{what} {name}" for what in ("best:", "steps:") for name in names]
    header = ["seed", *header, "ratio of steps", *(f"seconds: {name}" for name in names)]
    title = f"{searches['trials']} trials each, lowest {searches['metric']}; the goal is a ratio of 1/3:"
    costs = next(result for result in results if "costs" in result)
    calls = ("take_s", "report_s", "finish_s")
    times = [
        [
            one["sampler"],
            f"{one['finished']:,}",
            *(f"{1000 * one[call]:.2f}" for call in calls),
            f"{one['opening_s']:.2f}",
        ]
        for one in costs["costs"]
    ]
    about = f"Milliseconds of each call for a trial (median of {costs['timed']}), and seconds to open the study:"
    columns = ["sampler", "finished trials", "take", "report", "finish", "open, s"]
    return f"{title}\n\n{table(header, rows)}\n\n{about}\n\n{table(columns, times)}"


def _faults(results: Results) -> str:
    header = ["trials", "killed", "starts", "states", "minutes", "best value", "the same configuration alone"]
    rows = [
        [
            f"{result['trials']:,}",
            ", ".join(f"{number} x {what}" for what, number in sorted(result["killed"].items())),
            f"{result['starts']:,}",
            ", ".join(f"{number} {state}" for state, number in result["states"].items()),
            f"{result['seconds'] / 60:.1f}",
            repr(result["best"]),
            repr(result["alone"]),
        ]
        for result in results
    ]
    return table(header, rows)


RENDERERS: Mapping[str, Callable[[Any], str]] = {
    "sweep-faults": _faults,
    "sweep-peers": _peers,
    "sweep-search": _search,
}
