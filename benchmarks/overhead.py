"""The overhead of a step: Engine + Runtime, and Trainer with all features, over the same raw PyTorch loop.

    python benchmarks/overhead.py                 # both models; about three minutes on two idle cores
    python benchmarks/overhead.py --model mlp
    pip install lightning accelerate              # to measure Fabric and Accelerate beside them

All contenders train the same module on the same batches alternately in one process, so that other load on the machine
affects all of them. They must end with the same weights. The Trainer's time includes its logging and one checkpoint.
Ratios of wall time and of CPU time are printed; other programs disturb the latter less.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

import trainkit
from benchmarks import other_libraries
from benchmarks.case import Case
from trainkit_recipes.bert.model import Architecture, MaskedLanguageModel

RAW = "raw loop, data indexed in memory"
LOADER = "raw loop, DataLoader"
CLIPPED = "raw loop, clip_grad_norm_"
ENGINE = "Engine + Runtime"
TRAINER = "Trainer, everything on"


@dataclass(frozen=True)
class Turn:
    """What a turn took, a step."""

    wall_us: float
    cpu_us: float


class Stopwatch:
    """Times turns of `num_steps` steps."""

    def __init__(self, num_steps: int):
        self._num_steps = num_steps
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Turn:
        per_step = 1e6 / self._num_steps
        return Turn((time.perf_counter() - self._wall) * per_step, (time.process_time() - self._cpu) * per_step)


def mlp() -> Case:
    def make_module() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    return Case(
        title="MLP 64-64-10, batch 8, SGD",
        make_module=make_module,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        loss=lambda forward, samples: F.cross_entropy(forward(samples[0]), samples[1]),
        samples=(torch.randn(4096, 64), torch.randint(10, (4096,))),
        batch_size=8,
        steps_a_turn=1000,
        log_every=50,
        num_turns=21,
        goals={ENGINE: 1.15, TRAINER: 1.25},
    )


def bert_tiny() -> Case:
    vocab_size, length, num_masked = 4096, 64, 10
    tiny = Architecture(
        hidden_size=128, num_layers=2, num_heads=2, feed_forward_size=512, dropout=0.0, attention_dropout=0.0
    )

    def loss(forward: Callable[..., Tensor], samples: Any) -> Tensor:
        tokens_BT, chosen_BK, labels_BK = samples
        return F.cross_entropy(forward(tokens_BT, chosen_BK).flatten(0, 1), labels_BK.flatten())

    return Case(
        title="BERT-tiny (2 layers x 128), 16 x 64 tokens, AdamW",
        make_module=lambda: MaskedLanguageModel(tiny, vocab_size),
        make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
        loss=loss,
        samples=(
            torch.randint(vocab_size, (2048, length)),
            torch.rand(2048, length).argsort(1)[:, :num_masked],
            torch.randint(vocab_size, (2048, num_masked)),
        ),
        batch_size=16,
        steps_a_turn=40,
        log_every=10,
        num_turns=9,
        goals={ENGINE: 1.00, TRAINER: 1.00},
    )


CASES = {"mlp": mlp, "bert": bert_tiny}


class Measured(trainkit.Recipe):
    """The case as a recipe. Between the Trainer's turns it lets the others have theirs."""

    def __init__(self, runtime: trainkit.Runtime, case: Case, others: Callable[[int], None]):
        self.runtime, self.case, self.others = runtime, case, others
        # One step after the last turn: the Trainer asks for its batch when the turn is over, saved and logged.
        self.num_samples = case.batch_size * (case.steps_a_turn * (1 + case.num_turns) + 1)
        self.engine = setup(runtime, case)
        self.turns: list[Turn] = []

    def engines(self) -> dict[str, trainkit.Engine]:
        return {"model": self.engine}

    def batches(self, start: int = 0) -> Iterator[trainkit.data.Batch]:
        batches = self.runtime.batches(self.case.samples, batch_size=self.case.batch_size, start=start)
        for turn in range(1 + self.case.num_turns):
            watch = Stopwatch(self.case.steps_a_turn)
            yield from islice(batches, self.case.steps_a_turn)
            self.turns.append(watch.read())
            self.others(turn)
        yield next(batches)

    def train_step(self, batch: trainkit.data.Batch) -> Mapping[str, Tensor | float | trainkit.Last]:
        self.engine.backward(self.case.loss(self.engine, batch.data))
        return self.engine.step().metrics()

    def evaluate(self) -> dict[str, float]:
        return {}


def setup(runtime: trainkit.Runtime, case: Case) -> trainkit.Engine:
    module = made(case)
    return runtime.setup(module, case.make_optimizer(module.parameters()))


def engine_turns(case: Case, engine: trainkit.Engine, runtime: trainkit.Runtime) -> Iterator[None]:
    batches = runtime.batches(case.samples, batch_size=case.batch_size)
    while True:
        for batch in islice(batches, case.steps_a_turn):
            engine.backward(case.loss(engine, batch.data))
            engine.step()
        yield


def raw_turns(
    case: Case, module: nn.Module, batches: Iterator[Any], *, max_grad_norm: float | None = None
) -> Iterator[None]:
    optimizer = case.make_optimizer(module.parameters())
    while True:
        for samples in islice(batches, case.steps_a_turn):
            loss = case.loss(module, samples)
            optimizer.zero_grad()
            loss.backward()
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
            optimizer.step()
        yield


def made(case: Case) -> nn.Module:
    """The case's module; the same weights at every call."""
    torch.manual_seed(0)
    return case.make_module()


def from_memory(case: Case, runtime: trainkit.Runtime) -> Iterator[tuple[Tensor, ...]]:
    """The batches that a runtime makes, their indices known beforehand."""
    num_steps = case.steps_a_turn * (1 + case.num_turns)
    numbers = torch.arange(len(case.samples[0]))
    indices = [batch.data for batch in runtime.batches(numbers, batch_size=case.batch_size, num_steps=num_steps)]
    return (tuple(tensor[index] for tensor in case.samples) for index in indices)


def from_loader(case: Case) -> Iterator[Any]:
    while True:
        yield from DataLoader(TensorDataset(*case.samples), batch_size=case.batch_size, shuffle=True, drop_last=True)


def measure(case: Case, directory: Path) -> dict[str, list[Turn]]:
    """The turns of every contender; the first warms up and is left out."""
    own = trainkit.Runtime(strategy="single", device="cpu")
    engine = setup(own, case)
    orders = trainkit.Runtime(strategy="single", device="cpu")
    libraries, _ = other_libraries.installed()
    modules = {name: made(case) for name in (RAW, LOADER, CLIPPED, *libraries)}
    contenders = {
        RAW: raw_turns(case, modules[RAW], from_memory(case, orders)),
        LOADER: raw_turns(case, modules[LOADER], from_loader(case)),
        CLIPPED: raw_turns(case, modules[CLIPPED], from_memory(case, orders), max_grad_norm=1e9),
        ENGINE: engine_turns(case, engine, own),
        **{name: turns(case, modules[name], from_memory(case, orders)) for name, turns in libraries.items()},
    }
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}

    def others(turn: int) -> None:
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            watch = Stopwatch(case.steps_a_turn)
            next(contenders[name])
            turns[name].append(watch.read())
        print(f"\r{case.title}: turn {turn} of {case.num_turns} ", end="", file=sys.stderr, flush=True)

    runtime = trainkit.Runtime(strategy="single", device="cpu", run_dir=directory, log_every=case.log_every)
    recipe = Measured(runtime, case, others)
    trainer = trainkit.Trainer(recipe, save_every=case.steps_a_turn)
    with (directory / "console.log").open("w") as console, contextlib.redirect_stdout(console):
        trainer.fit()
    print(file=sys.stderr)
    for name in modules.keys() - {LOADER}:  # that has an order of its own
        require_same_weights(engine.module.parameters(), modules[name].parameters())
    turns[TRAINER] = recipe.turns
    return {name: turns[name][1:] for name in turns}


def require_same_weights(a: Iterable[Tensor], b: Iterable[Tensor]) -> None:
    pairs = list(zip(a, b, strict=True))
    largest = max(float(y.detach().abs().max()) for _, y in pairs)
    difference = max(float((x - y).detach().abs().max()) for x, y in pairs) / largest
    if difference > 1e-4:
        raise RuntimeError(f"the contenders did not do the same work: weights differ by {difference:.1e}")


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")  # the other goes beyond few values
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def summarise(case: Case, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    cadence = {
        "log_every_steps": case.log_every,
        "checkpoint_every_steps": case.steps_a_turn,
        "num_turns": case.num_turns,
    }
    return {"model": case.title, **cadence, "goals": dict(case.goals), "contenders": compare(turns, RAW)}


def compare(turns: Mapping[str, list[Turn]], raw: str) -> dict[str, Any]:
    """Each contender's time a step, and its ratio to that of the contender called `raw` in the same round of turns."""
    contenders = {}
    for name in turns:
        pairs = list(zip(turns[name], turns[raw], strict=True))
        contenders[name] = {
            "step_us": spread([turn.wall_us for turn in turns[name]]),
            "over_raw": spread([turn.wall_us / other.wall_us for turn, other in pairs]),
            "over_raw_in_cpu_time": spread([turn.cpu_us / other.cpu_us for turn, other in pairs]),
        }
    return contenders


def table(result: dict[str, Any]) -> str:
    title = (
        f"{result['model']}; Trainer: console, metrics.jsonl and curve.png, logs every {result['log_every_steps']} "
        f"steps, saves every {result['checkpoint_every_steps']}; {result['num_turns']} turns; median (quartiles)"
    )
    return "\n".join([title, *rows(result["contenders"], result["goals"])])


def rows(contenders: Mapping[str, Any], goals: Mapping[str, float]) -> list[str]:
    lines = [f"  {'':<34}{'us a step':<32}{'over the raw loop':<28}the same in processor time"]
    for name, figures in contenders.items():
        cells = [in_words(values, digits) for values, digits in zip(figures.values(), (0, 3, 3), strict=True)]
        goal = f"goal {goals[name]:.2f}" if name in goals else ""
        lines.append(f"  {name:<34}{cells[0]:<32}{cells[1]:<28}{cells[2]:<28}{goal}".rstrip())
    return lines


def in_words(values: dict[str, float], digits: int) -> str:
    low, middle, high = (f"{values[key]:.{digits}f}" for key in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle} ({low} to {high})"


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return {
        "cpu": models[0] if models else platform.processor(),
        "num_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }


def write(what: str, facts: dict[str, Any], results: list[dict[str, Any]], directory: Path) -> Path:
    """A file that is named after `what` was measured, the machine (its GPU, if `facts` has one) and the day."""
    now = datetime.now(UTC)
    hardware = facts.get("gpu") or f"{facts['cpu']} {facts['num_cpus']} cpus"
    hardware = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    path = directory / f"{what}_{hardware}_{now:%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"time": now.isoformat(), "machine": facts, "results": results}, indent=2) + "\n")
    print(f"written to {path}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*CASES, "all"], default="all")
    parser.add_argument("--turns", type=int, help="of every contender, after one that warms up")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts, results = machine(), []
    for name, make in CASES.items():
        if arguments.model in (name, "all"):
            torch.manual_seed(0)
            case = make()
            if arguments.turns is not None:
                case = replace(case, num_turns=arguments.turns)
            with tempfile.TemporaryDirectory() as directory:
                results.append(summarise(case, measure(case, Path(directory))))
            print(table(results[-1]), flush=True)
    write("overhead", facts, results, arguments.output)


if __name__ == "__main__":
    main()
