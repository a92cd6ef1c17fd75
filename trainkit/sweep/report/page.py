"""Page: the report of a sweep as one HTML file, with all its trials inside."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainkit.sweep import best as best_module
from trainkit.sweep import table
from trainkit.sweep.report.document import MAX_CURVES, addresses, document
from trainkit.sweep.report.importance import LEAST, importances, share_of_best
from trainkit.sweep.study import Study
from trainkit.sweep.trial import Trial
from trainkit.tracking.command import as_typed
from trainkit.tracking.report.markup import LIBRARIES, STYLES, Markup, page, tag
from trainkit.whole_file import write_text

FILE_NAME = "report.html"
ASSETS = Path(__file__).parent / "assets"
MOST_ROWS, MOST_FAILURES = 20, 200  # of what is there without a script


def write_report(study: Study, path: Path, config_dir: Path | None = None) -> None:
    """Writes the report of a sweep, in one rename.

    Args:
        study: of the sweep.
        path: the file.
        config_dir: of the sweep, for the commands on the page.

    Raises:
        OSError: the file cannot be written.
    """
    trials = table.ordered(study.trials(), study.signs)
    best = table.front(trials, study.signs)
    written = page(
        study.directory.name,
        _body(study, trials, best, path, config_dir),
        document(study, trials, best, path),
        styles=(*STYLES, ASSETS / "sweep.css"),
        scripts=(*LIBRARIES, ASSETS / "sweep.js"),
    )
    write_text(path, written)


def _body(
    study: Study, trials: Sequence[Trial], best: Sequence[Trial], path: Path, config_dir: Path | None
) -> Iterator[Markup]:
    sections = {
        "head": _head(study, trials, best),
        "best": _best(study, best),
        "charts": _charts(study, trials, best),
        "importance": _importance(study, trials),
        "trials": _trials(study, trials, path),
        "failures": _failures(trials),
        "next": _next(study, best, config_dir),
    }
    for name, made in sections.items():
        yield tag("section", made, id=name)


def _head(study: Study, trials: Sequence[Trial], best: Sequence[Trial]) -> Iterator[Markup]:
    if best and len(study.metrics) == 1:
        yield tag("p", f"best: {table.named(best[0], study.metrics)}", class_="verdict good")
    elif best:
        words = f"{len(best):,} of the trials are on the Pareto front of {', '.join(study.metrics)}"
        yield tag("p", words, class_="verdict good")
    yield tag("h1", study.directory.name)
    written = time.strftime("written %Y-%m-%d %H:%M", time.localtime())
    settings = study.settings
    parts = [f"{table.counts(trials)} of {study.num_trials:,}", table.times(trials), f"sampler {settings.sampler}"]
    parts += [f"pruner {settings.pruner}"] if settings.pruner != "none" else []
    yield tag("p", " · ".join([*parts, written]), class_="sub")


def _best(study: Study, best: Sequence[Trial]) -> Iterator[Markup]:
    """The values of the keys of the best trial, or of each on the front."""
    if not best:
        yield tag("p", "No trial has finished yet.", class_="sub")
        return
    names = ["trial", *study.metrics, *study.varied]
    rows = [
        [
            trial.number,
            *map(table.number, trial.values or ()),
            *(table.number(trial.params.get(k)) for k in study.varied),
        ]
        for trial in best[:MOST_ROWS]
    ]
    yield tag("h2", "Best configuration" if len(study.metrics) == 1 else "Pareto front")
    if len(rows) == 1:
        num_steps = table.steps(study.run_dir(best[0].number))
        pairs = [*zip(names, rows[0], strict=True), *([("steps", f"{num_steps:,}")] if num_steps is not None else [])]
        made = tag("tbody", [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in pairs])
        yield tag("div", tag("table", made), class_="card across best")
        past = best_module.history(study, best[0])
        if past is not None:
            yield tag("p", past, class_="note")
        return
    made = tag("tbody", [tag("tr", [tag("td", value) for value in row]) for row in rows])
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in names]))
    yield _across(tag("table", head, made), "the best trials")
    if len(best) > len(rows):
        yield tag("p", f"{len(best) - len(rows):,} more are in the table of all trials, marked ★", class_="note")


def _charts(study: Study, trials: Sequence[Trial], best: Sequence[Trial]) -> Iterator[Markup]:
    """Places that the script fills."""
    if not any(table.last(trial) is not None for trial in trials):
        return
    yield tag("div", id="controls", role="group", aria_label="all charts")
    yield tag("noscript", tag("p", "The charts need JavaScript. The best trials are below.", class_="problem"))
    if len(study.metrics) > 1:
        yield _place("front", "Pareto front")
    yield _place("history", "Best so far")
    curved = sum(bool(trial.reported) for trial in trials)
    if any(table.evaluations(trial) > 1 for trial in trials):
        yield _place("curves", "Curves of the trials")
        if curved > MAX_CURVES:
            num_others, num_drawn = curved - MAX_CURVES // 2, MAX_CURVES - MAX_CURVES // 2
            text = (
                f"{MAX_CURVES:,} of {curved:,} curves are drawn: those of the best {MAX_CURVES // 2:,} trials, and of "
                f"every {num_others / num_drawn:.3g}th of the others in their order"
            )
            yield tag("p", text, class_="note")
    if best:
        yield _place("parallel", "All keys together")
        yield _place("slices", "Each key by itself")


def _place(name: str, title: str) -> Markup:
    return tag("div", tag("h2", title), tag("div", class_="wide"), id=f"charts-{name}", hidden=True)


def _importance(study: Study, trials: Sequence[Trial]) -> Iterator[Markup]:
    finished = sum(trial.state == "finished" for trial in trials)
    yield tag("h2", "Importance of the keys")
    found = importances(trials, study.signs, study.varied)
    if found is None:
        words = f"{finished:,} trial{' has' if finished == 1 else 's have'} finished, and it takes {LEAST}"
        yield tag("p", f"Too few trials for it: {words}.", class_="sub")
        return
    rows = [
        tag(
            "tr",
            tag("th", key, scope="row"),
            tag("td", f"{share:.0%}"),
            tag("td", _bar(share), aria_hidden="true", class_="bar"),
        )
        for key, share in found.items()
    ]
    head = tag("tr", tag("th", "key", scope="col"), tag("th", "importance", scope="col"), tag("td"))
    yield tag("div", tag("table", tag("thead", head), tag("tbody", rows)), class_="card importance")
    best = round(share_of_best(finished) * finished)
    yield tag(
        "p",
        f"By PED-ANOVA: how far the values of a key among the best {best:,} of {finished:,} finished trials are from "
        f"those among all. Not what a change of the key by itself would do.",
        class_="note",
    )


def _bar(share: float) -> Markup:
    rect = tag("rect", width=f"{100 * share:.2f}%", height="100%", rx=3, class_="c0")
    return tag("svg", rect, width="100%", height=14)


def _trials(study: Study, trials: Sequence[Trial], path: Path) -> Iterator[Markup]:
    """The best of them; the script lists all in their place."""
    yield tag("h2", "Trials")
    names = table.headings(study.metrics, [*study.varied])
    rows = []
    for trial, texts in zip(trials, table.rows(trials[:MOST_ROWS], study.metrics, [*study.varied]), strict=False):
        names_of_links = [texts[0], "report"]
        links = [(" ", tag("a", names_of_links[i], href=href)) for i, href in enumerate(addresses(study, trial, path))]
        rows.append(tag("tr", tag("td", links or texts[0]), [tag("td", text) for text in texts[1:]]))
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in names]))
    yield tag("div", id="filter")
    yield _across(tag("table", head, tag("tbody", rows), class_="list", id="table"), "all trials")
    if len(trials) > len(rows):
        words = f"The best {len(rows)} of {len(trials):,} trials; `trainkit sweep export` writes all into a file."
        yield tag("noscript", tag("p", words, class_="note"))


def _across(content: Markup, label: str) -> Markup:
    return tag("div", content, class_="card across", tabindex=0, role="region", aria_label=label)


def _failures(trials: Sequence[Trial]) -> Iterator[Markup]:
    failed = table.failures(trials)
    if not failed:
        return
    yield tag("h2", f"Failed trials: {len(failed):,}")
    lines = [
        tag("li", tag("span", f"trial {number}", class_="at"), why, class_="kind-failure")
        for number, why in failed[:MOST_FAILURES]
    ]
    yield tag("ul", lines, class_="events card")
    if len(failed) > MOST_FAILURES:
        yield tag("p", f"{len(failed) - MOST_FAILURES:,} more are in the table of all trials", class_="note")


def _next(study: Study, best: Sequence[Trial], config_dir: Path | None) -> Iterator[Markup]:
    directory, lines = str(study.directory), []
    typed = [["show", directory, "--all"], ["export", directory, f"{study.directory.name}.csv"]]
    if best and len(study.metrics) == 1:
        lines = [best_module.command(study, best[0], config_dir)]
        found = Path(config_dir or "conf") / "experiment" / f"{study.directory.name}.yaml"
        given = ["--config-dir", str(config_dir)] if config_dir is not None else []
        typed.insert(0, ["best", directory, *given, "--write", str(found)])
    lines += [as_typed(["trainkit", "sweep", *words]) for words in typed]
    yield tag("h2", "What to type next")
    yield tag("div", [tag("pre", line, class_="command") for line in lines])
