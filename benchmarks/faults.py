"""Measures how runs survive kills, changes of strategy and damaged checkpoints.

    python benchmarks/faults.py                       # everything; about twenty minutes on two idle cores
    python benchmarks/faults.py --part kills --kills 10

  kills      a run on two ranks, deterministic and saving every few steps, is killed at random moments (all, or one
             rank and then the rest) and restarted, until it ends: are the bits those of an uninterrupted run?
  handovers  saved under each of eight strategies and numbers of ranks, loaded under each: is the state bit-identical,
             and the losses of the next ten steps? BERT in the middle of an epoch, a GAN in the middle of a fade.
  damage     every file of a checkpoint is truncated, has one bit flipped, is deleted: is it reported by name, and does
             the run resume from the checkpoint before?

The exit status is 1 if anything is lost, different or silent.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks import damage, handover, kills
from benchmarks.overhead import machine, write
from benchmarks.processes import Pools, RankError


def progress(what: str, total: int) -> Callable[[int], None]:
    """Shows on stderr how many of `total` are done."""

    def report(done: int) -> None:
        print(f"\r{what}: {done} of {total} ", end="\n" * (done == total), file=sys.stderr, flush=True)

    return report


def run_kills(num_kills: int) -> tuple[dict[str, Any], list[str], bool]:
    with tempfile.TemporaryDirectory() as directory:
        result = kills.measure(num_kills, 2, Path(directory), report=progress("kills", num_kills))
    lines = [
        f"{result['kills']} kills of {result['runs']} runs on {result['ranks']} ranks "
        f"({in_words(result['of'])}; {in_words(result['found'])})",
        f"  {result['restarts from a checkpoint']} restarts from a checkpoint; {result['lost']} lost",
        f"  {result['differing']} runs ended with other bits than the run that was left alone",
    ]
    return result, lines, result["lost"] + result["differing"] == 0


def run_damage() -> tuple[dict[str, Any], list[str], bool]:
    strategy, ranks = damage.WROTE
    pools = Pools()
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        try:
            pools.run(ranks, damage.write_two, strategy, run_dir)
        finally:
            pools.end()
        num_faults = (ranks + 1) * sum(1 for _ in damage.faults(b" " * 100, 0))
        result = damage.measure(run_dir, progress("faults", num_faults))
    lines = [
        f"{result['faults']} faults in {len(result['files'])} files ({in_words(result['of'])})",
        f"  {result['named']} named when loaded; {result['fell back']} passed over by the run, which took the "
        f"checkpoint before; {result['silent']} silent",
    ]
    return result, lines, result["named"] == result["fell back"] == result["faults"] and not result["silent"]


def run_handovers(models: list[str]) -> tuple[dict[str, Any], list[str], bool]:
    wanted = list(handover.cells(models, handover.everything()))
    pools, done, report = Pools(), [], progress("handovers", len(wanted))
    with tempfile.TemporaryDirectory() as directory:
        handovers = handover.Handovers(pools.run, Path(directory))
        try:
            for cell in wanted:
                try:
                    done.append(handovers.measured(cell))
                except RankError as error:
                    done.append(replace(cell, error=str(error)))
                report(len(done))
        finally:
            pools.end()
    missed = [cell for cell in done if cell.misses]
    lines = [line for model in models for line in table(model, [cell for cell in done if cell.model == model])]
    lines += [f"  [{number}] {cell.error}" for number, cell in enumerate(missed, 1) if cell.error]
    lines.append(
        f"  {sum(cell.num_tensors for cell in done)} tensors compared, {sum(cell.num_different for cell in done)} "
        f"different; {len(missed)} of {len(done)} handovers miss their goal, and are marked with an exclamation mark"
    )
    result = {
        "goals": handover.GOALS,
        "cells": [{**asdict(cell), "precision": cell.precision, "goal": cell.goal} for cell in done],
    }
    return result, lines, not missed


def table(model: str, done: list[handover.Cell]) -> list[str]:
    """The largest difference of a loss; a row for who wrote, a column for who reads."""
    by_pair = {(cell.wrote, cell.reads): cell for cell in done}
    goals = ", ".join(f"{goals[model]:.0e} in {precision}" for precision, goals in handover.GOALS.items())
    return [
        f"{model}: largest difference of the next {handover.NUM_AFTER} losses (goal: {goals}; 0 on the diagonal)",
        _row("saved under", [_name(reads) for reads in handover.WHERE]),
        *(_row(_name(wrote), [_figure(by_pair[wrote, reads]) for reads in handover.WHERE]) for wrote in handover.WHERE),
    ]


def _row(name: str, shown: list[str]) -> str:
    return "  " + "".join(f"{text:<11}" for text in [name, *shown])


def _name(place: handover.Place) -> str:
    return f"{place[0]} x{place[1]}"


def _figure(cell: handover.Cell) -> str:
    return ("error" if cell.losses is None else f"{cell.losses:.0e}" if cell.losses else "0") + "!" * cell.misses


def in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["kills", "handovers", "damage", "all"], default="all")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="default: 100")
    parser.add_argument("--model", choices=[*handover.MODELS, "all"], default="all", help="of the handovers")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine()
    models = list(handover.MODELS) if arguments.model == "all" else [arguments.model]
    parts: dict[str, Callable[[], tuple[dict[str, Any], list[str], bool]]] = {
        "kills": lambda: run_kills(arguments.kills),
        "damage": run_damage,
        "handovers": lambda: run_handovers(models),
    }
    is_fine = True
    for name in parts if arguments.part == "all" else [arguments.part]:
        began = time.monotonic()
        result, lines, has_held = parts[name]()
        print("\n".join(lines))
        write(f"faults-{name}", facts, [{"seconds": round(time.monotonic() - began), **result}], arguments.output)
        is_fine = is_fine and has_held
    if not is_fine:
        sys.exit(1)


if __name__ == "__main__":
    main()
