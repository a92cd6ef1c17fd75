"""Tables of the dated files in benchmarks/results: for each question and each hardware, of the newest file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import gan_small_data
from docs.generators import (
    curation,
    data_peers,
    from_a_store,
    links,
    same_batches,
    scale,
    shards,
    shuffling,
    start,
    sweeps,
    workers,
)
from docs.generators.markdown import Results, number, svg, values
from docs.generators.markdown import table as _table

FOLDER = Path(__file__).parent.parent.parent / "benchmarks" / "results"
_SIDES = ("samples", "held out")


def questions() -> set[str]:
    """What was measured: the first part of the files' names."""
    return {path.name.split("_")[0] for path in FOLDER.iterdir()}


def newest(question: str) -> list[Path]:
    """The newest file of each hardware, `.md` before `.json` where there are both."""
    found: dict[str, Path] = {}
    for path in sorted(FOLDER.glob(f"{question}_*"), key=lambda path: (path.stem.split("_")[-1], path.suffix)):
        found[path.stem.removeprefix(question).rpartition("_")[0]] = path
    return list(found.values())


def table(question: str) -> str:
    """Markdown: for each hardware what it was, which file, and the numbers."""
    paths = newest(question)
    assert paths, f"benchmarks/results holds no {question}_*"
    return "\n\n".join(_one(question, path) for path in paths)


def _one(question: str, path: Path) -> str:
    written = json.loads(path.with_suffix(".json").read_text())
    head = f"{_machine(written)} (`benchmarks/results/{path.name}`)"
    if path.suffix == ".md":
        lines = path.read_text().splitlines()
        return "\n".join([f"*{head}*", *(line for line in lines if not line.startswith("# "))])
    return f"*{head}*\n\n{RENDERERS.get(question, values)(written.get('results', written))}"


def _machine(written: Mapping[str, Any]) -> str:
    machine, date = written.get("machine", {}), str(written["time"])[:10]
    if not machine:
        return date
    name = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('num_cpus')} CPUs"
    load = machine.get("load_average")
    busy = f", load average {load[0]:.1f} at the start" if load else ""
    return f"{name}, torch {machine.get('torch')}, {date}{busy}"


def _overhead(results: Results) -> str:
    parts = []
    for result in results:
        where = f", {result['num_ranks']} processes" if "num_ranks" in result else ""
        rows = [
            [name, f"{_ms(one['step_us'])}", f"{_range(one['over_raw'])}", f"{_range(one['over_raw_in_cpu_time'])}"]
            for name, one in result["contenders"].items()
        ]
        header = ["loop", "step, ms", "times the first, by the clock", "in CPU time"]
        title = f"{result['model']}{where}; median and quartiles of {result['num_turns']} rounds:"
        parts.append(f"{title}\n\n{_table(header, rows)}")
    return "\n\n".join(parts)


def _start_and_end(results: Results) -> str:
    names = {
        "start_s": "start, s",
        "start_cpu_s": "in CPU time",
        "start_over_plain_in_cpu_time": "times plain, in CPU time",
        "end_s": "end, s",
        "end_cpu_s": "in CPU time",
    }
    parts = []
    for result in results:
        rows = [
            [name, *(_range(one[key]) if key in one else "" for key in names), result["goals"].get(name, "")]
            for name, one in result["commands"].items()
        ]
        title = f"Median and quartiles of {result['num_rounds']} rounds; CPU time of the first process:"
        parts.append(f"{title}\n\n{_table(['', *names.values(), 'goal'], rows)}")
    return "\n\n".join(parts)


def _peers(results: Results) -> str:
    parts = []
    for result in results:
        about = f"{result['title']}{', ' + result['unit'] if 'unit' in result else ''}"
        if "precisions" in result:
            parts.append(f"{about}:\n\n{values([result['precisions']])}")
            continue
        contenders, goals = result["contenders"], result["goals"]
        names = {
            "cpu_us_a_token": "CPU µs per token",
            "over_ours_in_cpu_time": "ratio to trainkit, CPU time",
            "over_ours": "ratio, wall time",
            "value": "median (quartiles)",
            "ours_over_it": "trainkit / this",
        }
        shown = {key: name for key, name in names.items() if key in next(iter(contenders.values()))}
        rows = [[name, *(_range(one[key]) for key in shown), goals.get(name, "")] for name, one in contenders.items()]
        rows += [[name, why, *[""] * len(shown)] for name, why in result.get("missing", {}).items()]
        parts.append(f"{about}:\n\n{_table(['', *shown.values(), 'goal'], rows)}")
    return "\n\n".join(parts)


def _ms(step_us: Mapping[str, float]) -> str:
    return f"{step_us['median'] / 1000:.3g}"


def _range(quartiles: Mapping[str, float]) -> str:
    return f"{quartiles['median']:.2f} ({quartiles['lower_quartile']:.2f} to {quartiles['upper_quartile']:.2f})"


def _memory(results: Results) -> str:
    kinds = list(results[0]["counted_bytes"])
    rows = [[r["strategy"], *(f"{r['counted_bytes'][kind] / 1e6:.0f}" for kind in kinds)] for r in results]
    first = results[0]
    title = f"{first['num_parameters'] / 1e6:.0f} million parameters, {first['num_ranks']} processes; MB on rank 0:"
    return f"{title}\n\n{_table(['strategy', *kinds], rows)}"


def _saving(results: Results) -> str:
    rows = [
        [name, f"{one['median']:.2f} ({one['lower_quartile']:.2f} to {one['upper_quartile']:.2f})"]
        for result in results
        for name, one in {
            **{f"seconds: {name}": one for name, one in result["seconds"].items()},
            **{f"ratio: {name}": one for name, one in result["ratios"].items()},
        }.items()
    ]
    title = (
        f"A checkpoint of {results[0]['num_bytes'] / 1e9:.1f} GB, median and quartiles of {results[0]['num_turns']}:"
    )
    return f"{title}\n\n{_table(['', 'median (quartiles)'], rows)}"


def _encryption(results: Results) -> str:
    parts = []
    for result in results:
        title = f"A file of {result['num_bytes'] / 1e9:.1f} GB, median and quartiles of {result['num_turns']}:"
        rows = [
            [name, _range(one), _range(result["cpu_seconds"][name]), "", ""] for name, one in result["seconds"].items()
        ]
        for name, ratio in result["ratios"].items():
            goal = f"; goal: at most {result['goals'][name]}" if name in result["goals"] else ""
            rows.append([name, "", "", f"{ratio['of the medians']:.2f}{goal}", f"{ratio['of the fastest']:.2f}"])
        header = ["", "seconds", "CPU seconds", "ratio of the medians", "of the fastest"]
        grown = ", ".join(f"{name} {value:.0f} MB" for name, value in result["memory_mb"].items())
        parts.append(f"{title}\n\n{_table(header, rows)}\n\nMemory by which the process grows: {grown}.")
    return "\n\n".join(parts)


def _edge(results: Results) -> str:
    parts = []
    for result in results:
        for length, contenders in result["texts"].items():
            rows = [
                [name, _range(one["ms_a_text"]), _range(one["times_as_fast"]), f"{one['largest_difference']:.1g}"]
                for name, one in contenders.items()
            ]
            header = ["", "ms a text", "times as fast as PyTorch", "largest difference of a logit"]
            largest = next(iter(contenders.values()))["largest_output"]
            about = f"{length}, {result['num_threads']} thread{'s' if result['num_threads'] > 1 else ''}"
            title = f"{about}; median (quartiles) of {result['num_turns']} turns; the largest logit is {largest:.2g}:"
            parts.append(f"{title}\n\n{_table(header, rows)}")
        rows = [[name, f"{one['seconds']:.1f}", f"{one['memory_mb']:.0f}"] for name, one in result["processes"].items()]
        header = ["a process that predicts one text", "seconds", "MB of memory at most"]
        parts.append(_table(header, rows))
        sizes = ", ".join(f"{kind} {value:.1f} MB" for kind, value in result["bundle_mb"].items())
        accuracy = ", ".join(f"{kind} {value:.4f}" for kind, value in result["accuracy"].items())
        parts.append(f"Size of the bundle: {sizes}. Held-out accuracy: {accuracy}.")
    return "\n\n".join(parts)


def _steps_of_ops(results: Results) -> str:
    names = list(dict.fromkeys(name for result in results for name in result["median_ms"]))
    rows = [
        [
            result["case"],
            *(f"{ms[name]:.0f} ({result['over_fused'][name]:.2f})" if name in ms else "not measured" for name in names),
        ]
        for result in results
        if (ms := result["median_ms"])
    ]
    return "Median ms of a step (times `fused`):\n\n" + _table(["model", *names], rows)


def _parity(results: Results) -> str:
    rows = []
    for result in results:
        ran = [cell for cell in result["cells"] if cell["error"] is None]
        worst = max((cell["weights"] for cell in ran), default=0.0)
        goal = result["goals"]["weights"]
        refused = len(result["cells"]) - len(ran)
        rows.append([result["model"], result["precision"], len(ran), refused, f"{worst:.1e}", f"{goal:.0e}"])
    header = ["model", "precision", "combinations", "refused", "largest difference of a weight", "goal"]
    return _table(header, rows)


def _handovers(results: Results) -> str:
    cells = [cell for result in results for cell in result["cells"]]
    differing = sum(cell["num_different"] > 0 for cell in cells)
    failed = sum(cell["error"] is not None for cell in cells)
    worst = max(cell["losses"] for cell in cells if cell["error"] is None)
    rows = [[len(cells), differing, failed, f"{worst:.1e}"]]
    return _table(
        ["pairs (writer, reader)", "with a tensor that differs", "failed", "largest difference of a loss"], rows
    )


def _fine_tuning(results: Results) -> str:
    rows = [
        [
            f"{one['set']}, from {one['start']}",
            f"{one['num_train']:,} / {one['num_held_out']:,}",
            len(one["accuracy"]["values"]),
            _mean(one["accuracy"]),
            f"{one['beside']['name']}: {_mean(one['beside'])}",
            f"{one['difference_over_deviation']:.1f}",
            f"{one['linear']:.3f}",
        ]
        for one in results
    ]
    columns = ("examples, train / held out", "seeds", "accuracy", "beside", "difference / deviation", "TF-IDF")
    return _table(["", *columns], rows)


def _mean(side: Mapping[str, Any]) -> str:
    deviation = f" ({side['standard_deviation']:.3f})" if len(side["values"]) > 1 else ""
    return f"{side['mean']:.3f}{deviation}"


def _small_data(results: Results) -> str:
    kinds = {"none": "without", "ada": "with augmentation"}
    rows = [
        [
            one["seed"],
            f"{one['images']:,}",
            *(f"{one['distance'][kind]:.1f} (lowest {one['lowest'][kind]:.1f})" for kind in kinds),
            f"{one['ratio']:.2f}",
            f"at most {one['goal']:g}",
        ]
        for one in results
    ]
    columns = ["seed", "images shown", *(f"distance {kind}" for kind in kinds.values()), "ratio", "goal"]
    return f"{_table(columns, rows)}\n\n{svg(gan_small_data.figure(results), 'Distance by evaluation')}"


def _gan_peers(results: Results) -> str:
    parts = []
    for result in results:
        first = next(iter(result["contenders"].values()))
        rows = [
            [name, *(_range(value) if isinstance(value, Mapping) else number(value) for value in one.values())]
            for name, one in result["contenders"].items()
        ]
        columns = [name.replace("_", " ").replace("mib", "MiB").replace("pro gan pth", "pro-gan-pth") for name in first]
        parts.append(f"{result['title']} (goal {result['goal']:g}):\n\n{_table(['', *columns], rows)}")
    return "\n\n".join(parts)


def _small_pictures(results: Results) -> str:
    sides = ("untrained generator", "trained generator", "as many training images")
    rows = [
        [
            f"{one['set']}, {one['resolution']}x{one['resolution']}",
            f"{one['images']:,}",
            f"{one['seconds'] / 60:.1f}",
            *(f"{one['distance'][side]:.1f}" for side in sides),
            f"{one['ratio']:.2f}",
            f"at most {one['goal']:g}",
            " / ".join(f"{one['nearest_training_image']['50% are nearer than'][side]:.1f}" for side in _SIDES),
            " / ".join(f"{one['nearest_training_image']['1% are nearer than'][side]:.1f}" for side in _SIDES),
            f"{one['copying']['copied']:.3f}",
        ]
        for one in results
    ]
    header = ["set", "images shown", "minutes", *sides, "trained / untrained", "goal"]
    header += ["nearest training image, median: samples / held out", "the same, nearest 1 %", "`copied`"]
    return _table(header, rows)


def _audit(results: Results) -> str:
    planted = [result for result in results if "recall" in result]
    kinds = list(dict.fromkeys(kind for result in planted for kind in result["recall"]))
    rows = [
        [
            result["question"],
            *(f"{result['recall'][kind]:.2f}" if kind in result["recall"] else "" for kind in kinds),
            f"{result['precision']:.3f}",
            f"{result['found_beside']} ({result['of_these_near']})",
            f"{result['seconds']:.0f}",
        ]
        for result in planted
    ]
    header = ["", *(f"recall: {kind}" for kind in kinds), "precision", "found beside (of these near)", "seconds"]
    parts = [f"100 planted leaks of each kind:\n\n{_table(header, rows)}"]
    public = [result for result in results if "share" in result]
    rows = [
        [
            result["question"],
            f"{result['train']:,}",
            f"{result['held_out']:,}",
            f"{result['leaking'].get('exact', 0)}",
            f"{result['leaking'].get('near', 0)}",
            f"{result['share']:.2%}",
            f"{result['seconds']:.0f}",
        ]
        for result in public
    ]
    header = ["split", "training", "test", "exactly in training", "nearly", "of the test set", "seconds"]
    parts += [f"Public splits as they are:\n\n{_table(header, rows)}"] if public else []
    parts += [
        f"{result['question']} ({result['gb_of_text']:.2f} GB): {result['seconds']:.0f} s "
        f"({result['cpu_seconds']:.0f} s of CPU time), {result['peak_gb']:.2f} GB of memory at most; "
        f"goal {result['goal'][0]} s and {result['goal'][1]:g} GB."
        for result in results
        if "peak_gb" in result
    ]
    return "\n\n".join(parts)


def _intervals(results: Results) -> str:
    times = [
        [
            f"{row['num']:,}",
            f"{row['seconds']:.3f}",
            f"{row['scipy_seconds']:.3f}" if "scipy_seconds" in row else "not measured",
            f"{row['scipy_seconds'] / row['seconds']:.3g}" if "scipy_seconds" in row else "",
            f"{row['width_of_normal']:.3f}",
            f"{row['peak_mb']:.0f}",
        ]
        for row in results
        if "num" in row
    ]
    header = ["samples", "trainkit, s", "scipy, s", "scipy / trainkit", "width / that of a normal interval", "peak, MB"]
    rows = [
        [
            row["case"],
            f"{100 * row['covered']:.1f} %",
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %",
            row["of"],
        ]
        for row in results
        if "case" in row
    ]
    coverage = _table(["95 % intervals of", "cover the truth", "with 95 % confidence", "repetitions"], rows)
    return f"{_table(header, times)}\n\n{coverage}"


def _report_page(results: Results) -> str:
    rows = [
        [
            result["question"],
            f"{result['gb_of_metrics']:.2f}",
            f"{result['report_s']:.1f} ({result['report_cpu_s']:.1f})",
            f"{result['report_peak_gb']:.2f}",
            f"{result['page_mb']:.2f}",
            f"{result['opened_s']:.2f} ({result['opened_worst_s']:.2f})",
        ]
        for result in results
    ]
    header = [
        "",
        "metrics.jsonl, GB",
        "`trainkit report`, s (CPU)",
        "memory at most, GB",
        "page, MB",
        "opened, s (worst of 5)",
    ]
    return _table(header, rows)


RENDERERS: Mapping[str, Callable[[Any], str]] = {
    "overhead": _overhead,
    "overhead-distributed": _overhead,
    "start-and-end": _start_and_end,
    "memory": _memory,
    "saving": _saving,
    "edge": _edge,
    "encryption": _encryption,
    "start": start.starts,
    "billion": start.many_samples,
    "ops-steps": _steps_of_ops,
    "parity": _parity,
    "parity-kinds": _parity,
    "faults-handovers": _handovers,
    "finetuning": _fine_tuning,
    "gan-small-data": _small_data,
    "gan-peers": _gan_peers,
    "gan-small-pictures": _small_pictures,
    "bert-peers": _peers,
    "audit": _audit,
    "intervals": _intervals,
    "report-page": _report_page,
    "scale": scale.many_ranks,
    "data-peers": data_peers.samples,
    "from-a-store-at-1000-mbit": from_a_store.rates,
    "from-a-store": from_a_store.rates,
    "same-batches": same_batches.equal_batches,
    "workers": workers.handing_over,
    **curation.RENDERERS,
    "shuffling": shuffling.orders,
    **links.RENDERERS,
    **shards.RENDERERS,
    **sweeps.RENDERERS,
}
