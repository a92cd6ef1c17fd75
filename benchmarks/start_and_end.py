"""The time from a command to its first optimizer step, and from its last step to the prompt.

    python benchmarks/start_and_end.py              # the quickstart of BERT, five steps long; about four minutes
    python benchmarks/start_and_end.py --rounds 2

Beside it, plain PyTorch: the import of torch and the first forward and backward pass of an encoder of that size, and
the same with an optimizer's first step. Each round runs every command once; the first one fills the caches and is left
out. CPU time is that of rank 0; other programs disturb it less. The end contains the evaluation and the checkpoint.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from trainkit import Last
from trainkit.data import Batch
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

ROOT = Path(__file__).resolve().parent.parent
MARKS = "TRAINKIT_BENCHMARK_MARKS"  # names the file that rank 0 writes
PLAIN, PLAIN_STEP = "plain PyTorch, import, forward and backward", "plain PyTorch, also an AdamW step"
ALONE, WITHOUT, TORCHRUN = "one process", "one process, tracking.wandb=null", "torchrun, 2 processes"
GOALS = {ALONE: 1.6, WITHOUT: 1.6}
OVERRIDES = ("experiment=bert_quickstart", "recipe.num_steps=5", "schedule.warmup=1")
TIMED = "recipe._target_=benchmarks.start_and_end.Timed"
ENCODER = """\
import torch
from torch import nn

layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
module = nn.ModuleList([nn.Embedding(4096, 128), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)])
embedding, encoder = module
hidden = encoder(embedding(torch.randint(4096, (16, 64))))[:, :16]
loss = nn.functional.cross_entropy((hidden @ embedding.weight.T).flatten(0, 1), torch.randint(4096, (256,)))
loss.backward()
"""
STEP = "torch.optim.AdamW(module.parameters(), fused=True).step()\n"
MARK = f"""\
import json, os, time

used = os.times()
with open(os.environ[{MARKS!r}], "a") as file:
    file.write(json.dumps([time.time(), used.user + used.system]) + "\\n")
"""


class Timed(MaskedLanguageModelling):
    """The recipe of the quickstart, which notes when its steps end."""

    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        """Trains, then marks the time."""
        metrics = super().train_step(batch)
        if self.runtime.ranks.is_main:
            exec(MARK, {})
        return metrics


@dataclass(frozen=True)
class Run:
    """Seconds of one command. Without steps of its own, its start is all of it."""

    start_s: float
    start_cpu_s: float
    end_s: float
    end_cpu_s: float


def run(command: list[str], marks: Path) -> Run:
    marks.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.time()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, MARKS: str(marks), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    end, after = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    noted = [json.loads(line) for line in marks.read_text().splitlines()]
    (first, first_cpu_s), (last, last_cpu_s) = noted[0], noted[-1]
    return Run(first - begin, first_cpu_s, end - last, cpu_s - last_cpu_s)


def commands(directory: Path, round_number: int) -> dict[str, list[str]]:
    python = [sys.executable]
    torchrun = [*python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    def train(*more: str) -> list[str]:
        run_dir = directory / f"{round_number}-{len(more)}{'-'.join(more)}"
        return ["launch/train.py", *OVERRIDES, TIMED, f"run_dir={run_dir}", *more]

    return {
        PLAIN: [*python, "-c", ENCODER + MARK],
        PLAIN_STEP: [*python, "-c", ENCODER + STEP + MARK],
        ALONE: [*python, *train()],
        WITHOUT: [*python, *train("tracking.wandb=null")],
        TORCHRUN: [*torchrun, *train("strategy=ddp")],
    }


def measure(num_rounds: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(1 + num_rounds):
            for name, command in commands(Path(directory), number).items():
                runs.setdefault(name, []).append(run(command, Path(directory) / "marks"))
            print(f"\rround {number} of {num_rounds} ", end="\n" * (number == num_rounds), file=sys.stderr, flush=True)
    return {name: measured[1:] for name, measured in runs.items()}


def summarise(runs: Mapping[str, list[Run]]) -> dict[str, Any]:
    from benchmarks.overhead import spread

    rows = {}
    for name, measured in runs.items():
        pairs = list(zip(measured, runs[PLAIN], strict=True))
        rows[name] = {
            "start_s": spread([one.start_s for one in measured]),
            "start_cpu_s": spread([one.start_cpu_s for one in measured]),
            "start_over_plain_in_cpu_time": spread([one.start_cpu_s / plain.start_cpu_s for one, plain in pairs]),
            "end_s": spread([one.end_s for one in measured]),
        }
        if name != TORCHRUN:  # the CPU time of all processes together
            rows[name]["end_cpu_s"] = spread([one.end_cpu_s for one in measured])
    return {"num_rounds": len(runs[PLAIN]), "overrides": [*OVERRIDES], "goals": dict(GOALS), "commands": rows}


def table(result: Mapping[str, Any]) -> str:
    from benchmarks.overhead import in_words

    columns = ("start, s", "start, CPU s", "over plain in CPU time", "end, s", "end, CPU s")
    lines = [f"{result['num_rounds']} rounds; median (quartiles)"]
    lines += [f"  {'':<46}" + "".join(f"{column:<26}" for column in columns)]
    for name, figures in result["commands"].items():
        goal = f"goal {result['goals'][name]:.1f}" if name in result["goals"] else ""
        cells = "".join(f"{in_words(values, 2):<26}" for values in figures.values())
        lines.append(f"  {name:<46}{cells}{goal}".rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="after one that fills the caches; at least 2"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    from benchmarks.overhead import machine, write  # not by a run whose start is measured

    facts = {**machine(), "threads": 1}
    result = summarise(measure(arguments.rounds))
    print(table(result))
    write("start-and-end", facts, [result], arguments.output)


if __name__ == "__main__":
    main()
