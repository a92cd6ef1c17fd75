"""`trainkit benchmark`: the grid of models x precisions x processes by which people choose a machine."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, say, writing
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainkit.benchmark.grid import Cell
    from trainkit.benchmark.machines import Machine
    from trainkit.benchmark.measurement import Settings
    from trainkit.benchmark.results import Results

EXAMPLES = """\
examples:
  trainkit benchmark                                      the models of conf/ that need no data of yours
  trainkit benchmark recipe=bert --precision fp32,bf16 --processes 1,2 --strategy ddp,fsdp --steps 20 --warmup 5
  trainkit benchmark experiment=bert_base,glyphs --batch-size 32 --to a100.json
  trainkit benchmark --show --to a100.json --compare h100.json --price this=1.8 --price h100=3.5
typed again, it goes on where it was interrupted; --again measures everything again
exit code: 0, or 1 if no cell could be measured
"""
TASK = ("-m", "trainkit.cli.benchmark_task")


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `benchmark` to `commands`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "benchmark",
        help="measure a grid of models, precisions and processes on this machine",
        description="Measure the training speed of models x precisions x strategies x numbers of processes on this "
        "machine: samples, tokens or images per second, MFU, peak memory, joules, scaling efficiency. Each cell runs "
        "in processes of its own; one that fails is a line with its reason. Writes a JSON file and a page with graphs, "
        "and compares machines, by price too.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="recipe=a,b and experiment=c,d are models of the grid; other keys hold for all of them",
    )
    add = parser.add_argument
    add("--precision", metavar="LIST", help="default: fp32,bf16; on a GPU tf32,bf16, or fp32,fp16 if it is older")
    add("--processes", metavar="LIST", help="of each job; default: powers of two up to the GPUs, or 1,2 on the CPU")
    add("--strategy", metavar="LIST", default="ddp", help="default: ddp")
    add("--steps", type=int, default=20, metavar="N", help="steps of a repeat; default: 20")
    add("--warmup", type=int, default=5, metavar="N", help="steps before them that do not count; default: 5")
    add("--repeats", type=int, default=3, metavar="N", help="repeats within a job; default: 3")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="samples of each process in a step; default: on a GPU the largest that fits, on the CPU as configured",
    )
    add("--threads", type=int, metavar="N", help="of each process on the CPU; default: cores / most processes")
    add("--timeout", type=float, default=30.0, metavar="MINUTES", help="of one measurement; default: 30")
    add("--to", type=Path, default=Path("benchmark.json"), metavar="FILE", help="default: benchmark.json")
    add("--page", type=Path, metavar="FILE", help="default: that name with .html")
    add("--again", action="store_true", help="measure also what the file holds")
    add("--show", action="store_true", help="measure nothing: show what the file holds")
    add("--compare", type=Path, action="append", default=[], metavar="FILE", help="of another machine; repeatable")
    add(
        "--price",
        action="append",
        default=[],
        metavar="NAME=USD_PER_HOUR",
        help="of a machine: `this`, or the name of a --compare file without .json; repeatable",
    )
    parser.set_defaults(run=_run, from_here=True)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from trainkit.benchmark.machines import THIS, Machine, name_of, prices_of
    from trainkit.benchmark.results import Results

    names = [THIS, *map(name_of, arguments.compare)]
    if len(set(names)) < len(names):
        raise ConfigError(f"--compare: the files must have different names, not {', '.join(names[1:])}")
    prices = prices_of(arguments.price, names)
    others = [Results.read(path.expanduser()) for path in arguments.compare]
    page, path = _page(arguments), arguments.to.expanduser()
    if arguments.show and arguments.again:
        raise ConfigError("--show measures nothing: leave out --again, or --show")
    results = Results.read(path) if arguments.show else _measure(arguments, path)
    machines = [
        Machine(name=name, results=found, usd_per_hour=prices.get(name))
        for name, found in zip(names, [results, *others], strict=True)
    ]
    _print(machines)
    from trainkit.benchmark.page import write_page

    with writing(page):
        write_page(machines, page)
    say(f"the figures are in {results.path}, and as a page in {page}")
    return 0 if results.measured else 1


def _page(arguments: argparse.Namespace) -> Path:
    page: Path = (arguments.page or arguments.to.with_suffix(".html")).expanduser()
    if page.resolve() == arguments.to.expanduser().resolve():
        raise ConfigError(f"--page={arguments.page}: is the file of --to, which the page would replace")
    if page.parent.exists() and not page.parent.is_dir():
        raise ConfigError(f"--page={page}: {page.parent} is no directory")
    return page


# -- measuring ---------------------------------------------------------------------------------------------------------


def _measure(arguments: argparse.Namespace, path: Path) -> "Results":
    from trainkit.benchmark.measurement import Measurement, check
    from trainkit.benchmark.results import Results
    from trainkit.benchmark.runner import Runner
    from trainkit.distributed.processes import require_no_job

    require_no_job("trainkit benchmark")
    if not arguments.timeout > 0:
        raise ConfigError(f"--timeout={arguments.timeout:g}: must be minutes above 0")
    cells, settings = _grid(arguments)
    check(cells, settings)
    results = Results.open(path)
    results.write()  # whether it can be written shows before any work
    runner = Runner([sys.executable, *TASK], threads=settings.threads, timeout_s=60 * arguments.timeout)
    with _progress(len(cells)) as (report, done):
        measurement = Measurement(results, runner, settings, again=arguments.again, report=report)
        for cell in cells:
            if measurement.is_known(cell):
                done(f"{cell.words}: is in {path} already")
            else:
                done(f"{cell.words}: {_outcome(measurement.measure(cell))}")
    results.write()
    return results


def _grid(arguments: argparse.Namespace) -> "tuple[list[Cell], Settings]":
    """The cells and their settings, from what was typed and what this machine has."""
    import torch

    from trainkit.benchmark import grid, machine
    from trainkit.benchmark.measurement import Settings
    from trainkit.config import groups
    from trainkit.precision import NAMES, Precision

    length = grid.Length(steps=arguments.steps, warmup=arguments.warmup, repeats=arguments.repeats)
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise ConfigError(f"--batch-size={arguments.batch_size}: must be 1 or more")
    has_gpu = torch.cuda.is_available() and "device=cpu" not in arguments.overrides
    device = torch.device("cuda" if has_gpu else "cpu")
    num_gpus = torch.cuda.device_count() if has_gpu else None
    strategies = grid.listed(arguments.strategy, groups(arguments.config_dir)["strategy"], "--strategy")
    if arguments.precision is None:
        precisions = _able(("tf32", "bf16"), device) or ["fp32", "fp16"] if has_gpu else ["fp32", "bf16"]
    else:
        precisions = grid.listed(arguments.precision, NAMES, "--precision")
    for name in precisions:
        Precision(name=name).check(device)  # type: ignore[arg-type]
    if arguments.processes is not None:
        processes = grid.counts(arguments.processes, "--processes", most=num_gpus, of="the GPUs of this machine")
    else:
        processes = grid.powers_up_to(num_gpus if num_gpus is not None else min(2, grid.num_cores()))
    threads = None if has_gpu else grid.threads_of(processes, arguments.threads)
    if has_gpu and arguments.threads is not None:
        raise ConfigError(f"--threads={arguments.threads}: is for device=cpu; leave it out on a GPU")
    models = grid.models(arguments.overrides, has_gpu=has_gpu)
    settings = Settings(
        length=length,
        batch_size=arguments.batch_size,
        threads=threads,
        device=device.type,
        versions=machine.versions(),
        config_dir=arguments.config_dir,
    )
    return [*grid.cells(models, precisions, strategies, processes)], settings


def _able(names: Sequence[str], device: Any) -> list[str]:
    from trainkit.precision import Precision

    found = []
    for name in names:
        try:
            Precision(name=name).check(device)  # type: ignore[arg-type]
        except ConfigError:
            continue
        found.append(name)
    return found


def _outcome(cell: dict[str, Any]) -> str:
    from trainkit.benchmark import words

    if "figures" not in cell:
        return f"not measured: {cell['reason']}"
    found = cell["figures"]["samples"]
    return f"{words.number(found['median'])} samples/s, spread {words.percent(found['spread'])}"


@contextmanager
def _progress(num_cells: int) -> "Iterator[tuple[Callable[[str], None], Callable[[str], None]]]":
    """Functions to call when something begins, and when a cell is done: a bar on a terminal, else lines on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    out = Console(stderr=True, highlight=False, markup=False)
    if not out.is_terminal:
        number, began = 0, time.monotonic()

        def done(text: str) -> None:
            nonlocal number
            number += 1
            say(f"{number} of {num_cells}, {time.monotonic() - began:.0f} s: {text}")

        yield lambda text: say(f"measuring {text} ..."), done
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=num_cells)

        def printed(text: str) -> None:
            bar.console.print(f"trainkit: {text}", soft_wrap=True)
            bar.advance(task)

        yield lambda text: bar.update(task, description=text), printed


# -- showing -----------------------------------------------------------------------------------------------------------


def _print(machines: "Sequence[Machine]") -> None:
    from rich.table import Table

    from trainkit.benchmark.figures import is_measured
    from trainkit.benchmark.rows import alike, columns_of, row_of

    cells = [(one, cell) for one in machines for cell in one.results.cells]
    out = console()
    for one in machines:
        out.print(f"{one.name}: {one.words}, measured until {one.results.value['date'][:16].replace('T', ' ')}")
    measured = [(one, cell) for one, cell in cells if is_measured(cell)]
    names, rows = columns_of(measured, is_one=len(machines) == 1), [row_of(one, cell) for one, cell in measured]
    same = alike(names, rows)
    if same:
        out.print(f"in all cells: {', '.join(f'{name} {value}' for name, value in same.items())}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown = [name for name in names if name not in same]
    for name in shown:
        is_text = name in ("model", "machine", "precision", "strategy")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name == "model")
    for row in rows:
        table.add_row(*(row.get(name, "") for name in shown))
    if measured:
        out.print(table)
    for one, cell in cells:
        if not is_measured(cell):
            whose = f"{one.name}: " if len(machines) > 1 else ""
            name = f"{cell['model']}, {cell['precision']}, {cell['strategy']}, {cell['processes']}"
            out.print(f"{whose}{name}: not measured: {cell.get('reason')}", soft_wrap=True)
    for one in machines:
        for line in one.notes():
            out.print(line if len(machines) == 1 else f"{one.name}: {line}", soft_wrap=True)
