"""Page: the report of a run as one HTML file, with its pictures and curves inside."""

import base64
import io
import json
import time
from collections.abc import Iterator, MutableMapping
from html import escape
from pathlib import Path

import numpy as np

from trainkit.tracking.command import as_typed
from trainkit.tracking.console import duration
from trainkit.tracking.report.chart import COLOURS, Chart
from trainkit.tracking.report.record import Record, read_record
from trainkit.tracking.report.style import CSS, SCRIPT
from trainkit.tracking.series import Measured, family_of, panels_of

FILE_NAME = "report.html"
MAX_SIDE = 800  # pixels of a picture; larger ones are scaled down
QUALITY = 88  # of WebP
MAX_TEXT = 4000  # characters of a text
MAX_ROWS = 200  # of a table

Encoded = MutableMapping[tuple[Path, int], str]


def write_report(
    run_dir: Path,
    path: Path | None = None,
    *,
    status: str | None = None,
    num_samples: int | None = None,
    encoded: Encoded | None = None,
) -> bool:
    """Writes the report of a run directory, in one rename.

    Args:
        run_dir: the run directory.
        path: the file; None: report.html in the run directory.
        status: such as `finished`; None: not known.
        num_samples: the position at which the run ends; None: not known.
        encoded: pictures that were encoded before, which are taken from here and added.

    Returns:
        False where the directory has no metrics.jsonl.
    """
    record = read_record(run_dir)
    if record is None:
        return False
    path = path or run_dir / FILE_NAME
    page = "".join(_page(record, run_dir, status, num_samples, {} if encoded is None else encoded))
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return True


def _page(
    record: Record, run_dir: Path, status: str | None, num_samples: int | None, encoded: Encoded
) -> Iterator[str]:
    measured = record.measured
    last_step = max((steps[-1] for steps, _ in [*measured.training.values(), *measured.evaluation.values()]), default=0)
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(record.name)}</title>"
    yield f"<meta name=viewport content='width=device-width'><style>{CSS}</style><main>"
    yield f"<h1>{escape(record.name)}</h1><p class=sub>{escape(_state(measured, last_step, status))}</p>"
    yield from _parts(measured, num_samples)
    yield from _facts(measured)
    yield from _through_time(record, encoded)
    yield from _curves(measured, last_step)
    yield from _tables(record)
    yield from _commands(record, run_dir)
    yield "<h2>The run</h2>"
    for title, text in (
        ("machine, networks, data and messages", "\n".join(record.summary)),
        ("configuration", record.config),
    ):
        if text:
            yield f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"
    yield f"</main><script>{SCRIPT}</script></html>\n"


def _state(measured: Measured, last_step: float, status: str | None) -> str:
    parts = [status] if status else []
    parts += [f"step {last_step:,.0f}", f"{measured.position:,} samples", f"{duration(measured.seconds)} of logs"]
    parts.append(time.strftime("written %Y-%m-%d %H:%M"))
    return " · ".join(parts)


def _parts(measured: Measured, num_samples: int | None) -> Iterator[str]:
    """A bar of the run's parts, in proportion to their samples; what has not been reached is grey."""
    plan = measured.plan
    if len(plan) < 2:
        return
    end = max(num_samples or 0, measured.position, plan[-1][0] + 1)
    yield "<div class=parts>"
    for index, (start, name) in enumerate(plan):
        stop = plan[index + 1][0] if index + 1 < len(plan) else end
        todo = "" if start <= measured.position else " class=todo"
        share = 100 * (stop - start) / end
        yield f'<i{todo} style="width:{share:.2f}%;background:{COLOURS[index % len(COLOURS)]}" '
        yield f'title="{escape(name)}: {start:,} to {stop:,} samples">{escape(name)}</i>'
    yield "</div>"


def _facts(measured: Measured) -> Iterator[str]:
    """The metrics of the last evaluation, beside their baselines."""
    if not measured.evaluation:
        return
    yield "<h2>Last evaluation</h2><div class=row>"
    for name, (_, values) in measured.evaluation.items():
        best = (
            f"<small>lowest {np.nanmin(values):.4g}, highest {np.nanmax(values):.4g}</small>" if len(values) > 1 else ""
        )
        beside = "".join(
            f"<small>{escape(baseline)}: {held[-1]:.4g}</small>"
            for baseline, (_, held) in measured.baselines.get(name, {}).items()
        )
        yield f"<div class='card fact'><span>{escape(name)}</span><b>{values[-1]:.5g}</b>{beside}{best}</div>"
    yield "</div>"


def _through_time(record: Record, encoded: Encoded) -> Iterator[str]:
    """Pictures and texts of each name, all at the step that a slider shows: the newest that existed then."""
    shown = [*record.pictures.values(), *record.texts.values()]  # a name may have both
    steps = sorted({step for files in shown for step, _ in files})
    if not steps:
        return
    yield "<h2>Through the run</h2>"
    if len(steps) > 1:
        names = [_part_at(record.measured, step) for step in steps]
        yield (
            f"<div class=steps><button>play</button><input type=range min=0 max={len(steps) - 1} "
            f"value={len(steps) - 1} data-steps='{json.dumps(steps)}' data-names='{escape(json.dumps(names))}'>"
            f"<output></output></div>"
        )
    yield "<div class=wide>"
    for name, files in record.pictures.items():
        yield f"<figure class='card picture' data-through>{_caption(name, files[-1][0])}"
        for step, path in files:
            hidden = _hidden(step, files)
            try:
                picture = _picture(path, encoded)
            except OSError:  # another picture may still be shown
                yield f"<p data-step={step}{hidden}>{escape(path.name)} cannot be read as an image</p>"
            else:
                yield f"<img data-step={step} alt='{escape(name)}, step {step}' src='{picture}'{hidden}>"
        yield "</figure>"
    for name, files in record.texts.items():
        yield f"<figure class=card data-through>{_caption(name, files[-1][0])}"
        for step, path in files:
            text = path.read_text(encoding="utf-8", errors="replace")[:MAX_TEXT]
            yield f"<pre class=scroll data-step={step}{_hidden(step, files)}>{escape(text)}</pre>"
        yield "</figure>"
    yield "</div>"


def _caption(name: str, step: int) -> str:
    return f"<figcaption>{escape(name.replace('_', ' '))}<small> step {step:,}</small></figcaption>"


def _hidden(step: int, files: list[tuple[int, Path]]) -> str:
    return "" if step == files[-1][0] else " hidden"


def _part_at(measured: Measured, step: int) -> str:
    reached = [name for start, name in measured.milestones if start <= step]
    return f" · {reached[-1]}" if reached else ""


def _picture(path: Path, encoded: Encoded) -> str:
    """The picture as a data: address; encoded once for all reports of a process."""
    key = path, path.stat().st_mtime_ns
    if key not in encoded:
        from PIL import Image

        with Image.open(path) as opened:
            image = opened.convert("RGB")
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=QUALITY)
        encoded[key] = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return encoded[key]


def _curves(measured: Measured, last_step: float) -> Iterator[str]:
    families = panels_of(measured.training, measured.evaluation)
    others = [family for family in dict.fromkeys(map(family_of, measured.training)) if family not in families]
    for title, shown in (("Curves", families), ("Other curves of training", others)):
        if shown:
            yield f"<h2>{title}</h2><div class=wide>"
            yield from (Chart(family, measured, last_step).svg() for family in shown)
            yield "</div>"


def _tables(record: Record) -> Iterator[str]:
    if record.tables:
        yield "<h2>Tables</h2><div class=wide>"
    for name, (step, rows) in record.tables.items():
        yield f"<figure class=card>{_caption(name, step)}<div class=scroll><table>"
        for number, row in enumerate(rows[: MAX_ROWS + 1]):
            cell = "th" if number == 0 else "td"
            yield "<tr>" + "".join(f"<{cell}>{escape(_number(value))}</{cell}>" for value in row) + "</tr>"
        yield "</table></div></figure>"
    if record.tables:
        yield "</div>"


def _number(text: str) -> str:
    """A number with few digits; other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if value == round(value) else f"{value:.4g}"


def _commands(record: Record, run_dir: Path) -> Iterator[str]:
    again = as_typed(["trainkit", "report", str(run_dir)])
    yield "<h2>What to type next</h2>"
    for command in dict.fromkeys([*record.commands, again]):
        yield f"<pre class=command>{escape(command)}</pre>"
