"""How far is each strategy from one process on the whole batch?

Two models, for every strategy, on 1, 2 and 4 ranks, without accumulation and with four micro-batches:

  bert  BERT-tiny, AdamW, dropout 0, a mean over masked tokens of which every share has another number;
  gan   the progressive GAN with its gradient penalty, SGD, from 4x4 into the fade of 8x8 after five of the ten steps.

A figure is max|a - b| / max|b| over all weights of the model after 10 steps, b being the single process with the whole
batch. "rounding" is the same figure for the single process when its batch is merely split into four micro-batches. For
the GAN there is a second figure, of the gradients of the first step: the largest norm|a - b| / norm|b| of a tensor.
They are read from the momentum buffers of SGD, which hold just them after one step. A tensor whose gradient is a small
difference of large terms, such as a critic's last bias, cannot be held to such a figure in fp32: where splitting the
batch alone moves it by more than the goal, it is left out and named.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import trainkit
from recipes.bert.model import Architecture, Layer, MaskedLanguageModel
from recipes.bert.pretrain import masked_loss, parameter_groups
from recipes.progressive_gan.losses import discriminator_loss, generator_loss, gradient_penalty
from recipes.progressive_gan.networks import Discriminator, Generator, Widths

STRATEGIES = ("single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3")
RANKS, ACCUMULATIONS = (1, 2, 4), (1, 4)
NUM_STEPS, BATCH = 10, 32
GOALS = {"fp64": 1e-10, "fp32": 5e-6, "first gradients": 5e-5}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One run: of which model, how, and what came of it."""

    model: str
    strategy: str
    precision: str
    ranks: int
    accumulation: int
    weights: float | None = None
    first_gradients: float | None = None
    error: str | None = None


# -- the two models ----------------------------------------------------------------------------------------------------


def strategy_of(name: str, world_size: int) -> trainkit.Strategy | str:
    if name == "hsdp":
        return trainkit.HSDP(shard_size=min(2, world_size))
    return trainkit.Zero3(keep_below=16) if name == "zero3" else name


def run(model: str, strategy: str, precision: str, accumulation: int) -> tuple[Tensors, Tensors]:
    """(weights after all steps, gradients of the first step), float64, on every rank. Collective: every rank calls."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    runtime = trainkit.Runtime(
        strategy=strategy_of(strategy, world_size), precision=precision, device="cpu", tracker=trainkit.Tracker()
    )
    engines, first = MODELS[model](runtime, accumulation)
    final = tensors_of(engines, "module")
    runtime.close()
    return final, first


def tensors_of(engines: dict[str, trainkit.Engine], part: str) -> Tensors:
    """A part of all engines' states, on every rank. Collective: every rank calls."""
    found = {f"{e}.{name}": t.double() for e, engine in engines.items() for name, t in engine.state()[part].items()}
    box = [{name: tensor.clone() for name, tensor in sorted(found.items())}]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def bert(runtime: trainkit.Runtime, accumulation: int) -> tuple[dict[str, trainkit.Engine], Tensors]:
    torch.manual_seed(0)
    tiny = Architecture(
        hidden_size=128, num_layers=2, num_heads=2, feed_forward_size=512, max_length=16, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    module = MaskedLanguageModel(tiny, 512)
    engine = runtime.setup(
        module,
        torch.optim.AdamW(parameter_groups(module), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        blocks=(Layer,),
        clip=1.0,
        accumulation=accumulation,
    )
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(512, (256, 16), generator=generator)
    # The first of four slots is always masked, the others now and then.
    labels = torch.where(
        torch.rand(256, 4, generator=generator) < 0.3, torch.randint(512, (256, 4), generator=generator), -100
    )
    labels[:, 0] = tokens[:, 0]
    for batch in runtime.batches({"tokens": tokens, "labels": labels}, batch_size=BATCH, num_steps=NUM_STEPS):
        for micro in engine.micro_batches(batch):
            chosen = torch.arange(4).expand(len(micro), 4)
            loss, num_masked = masked_loss(engine(micro.tokens, chosen), micro.labels)
            engine.backward(loss, weight=num_masked)
        engine.step()
    return {"model": engine}, {}


def gan(runtime: trainkit.Runtime, accumulation: int) -> tuple[dict[str, trainkit.Engine], Tensors]:
    widths = Widths(latent_dim=16, fmap_base=128, fmap_max=32, channels=3, stddev_group=2)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(256, 3, 8, 8, generator=generator) * 2.0 - 1.0
    engines: dict[str, trainkit.Engine] = {}
    first: Tensors = {}
    for step, batch in enumerate(runtime.batches(images, batch_size=BATCH, num_steps=NUM_STEPS)):
        if step in (0, NUM_STEPS // 2):
            engines = _networks(runtime, widths, 4 if step == 0 else 8, accumulation, engines)
        _gan_step(runtime, engines, batch, widths, fade=0.1 * step)
        if step == 0:
            first = tensors_of(engines, "optimizer")
    return engines, first


def _networks(
    runtime: trainkit.Runtime, widths: Widths, resolution: int, accumulation: int, old: dict[str, trainkit.Engine]
) -> dict[str, trainkit.Engine]:
    torch.manual_seed(resolution)
    return {
        name: runtime.setup(
            network(widths, resolution, resolution == 8),
            # A little momentum, because its buffer holds the gradient of the first step.
            lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.1),
            name=name,
            accumulation=accumulation,
            inherit=old.get(name),
        )
        for name, network in (("G", Generator), ("D", Discriminator))
    }


def _gan_step(
    runtime: trainkit.Runtime, engines: dict[str, trainkit.Engine], batch: Any, widths: Widths, fade: float
) -> None:
    G, D = engines["G"], engines["D"]
    resolution = D.module.resolution
    for micro in D.micro_batches(batch):
        images = micro.data.to(runtime.dtype)
        real = torch.nn.functional.avg_pool2d(images, images.shape[-1] // resolution)
        with torch.no_grad():
            fake = G(runtime.randn(micro, widths.latent_dim, name="D"), fade)
        penalty = gradient_penalty(D, real, fake, runtime.rand(micro, name="mix"), fade)
        D.backward(discriminator_loss(D(real, fade), D(fake, fade), 0.001) + 10.0 * penalty)
    D.step()
    for micro in G.micro_batches(batch):
        with D.frozen():
            G.backward(generator_loss(D(G(runtime.randn(micro, widths.latent_dim, name="G"), fade), fade)))
    G.step()


MODELS: dict[str, Callable[..., tuple[dict[str, trainkit.Engine], Tensors]]] = {"bert": bert, "gan": gan}


# -- figures -----------------------------------------------------------------------------------------------------------


def distance(a: Tensors, b: Tensors) -> float:
    """max|a - b| / max|b| over the whole model."""
    if a.keys() != b.keys():
        raise RuntimeError(f"the runs hold different tensors: {sorted(a.keys() ^ b.keys())[:3]}")
    return max(float((a[n] - b[n]).abs().max()) for n in b) / max(float(b[n].abs().max()) for n in b)


def distances_by_tensor(a: Tensors, b: Tensors) -> dict[str, float]:
    """norm|a - b| / norm|b| of each tensor whose b is more than rounding."""
    scale = max((float(t.norm()) for t in b.values()), default=0.0)
    return {n: float((a[n] - b[n]).norm() / b[n].norm()) for n in b if float(b[n].norm()) > 1e-6 * scale}


@dataclass(frozen=True)
class Reference:
    """The single process with the whole batch, and what merely splitting its batch does to it."""

    model: str
    precision: str
    whole: tuple[Tensors, Tensors]
    split: tuple[Tensors, Tensors]

    @property
    def left_out(self) -> dict[str, float]:
        """Tensors that rounding alone moves beyond the goal for gradients, and by how much."""
        goal = GOALS["first gradients"]
        return {n: v for n, v in distances_by_tensor(self.split[1], self.whole[1]).items() if v > goal}

    def measured(self, cell: Cell, result: tuple[Tensors, Tensors]) -> Cell:
        by_tensor = distances_by_tensor(result[1], self.whole[1])
        kept = [value for name, value in by_tensor.items() if name not in self.left_out]
        figures = {"weights": distance(result[0], self.whole[0]), "first_gradients": max(kept, default=None)}
        return Cell(**{**asdict(cell), **figures})

    def rounding(self) -> Cell:
        return self.measured(Cell(self.model, "single", self.precision, 1, 4), self.split)


# -- processes ---------------------------------------------------------------------------------------------------------


class Ranks:
    """Processes of a group that are kept, because starting Python and torch takes most of the time."""

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.directory = tempfile.TemporaryDirectory()
        self.pipes, self.processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            store = str(Path(self.directory.name) / "store")
            process = context.Process(target=_work, args=(theirs, rank, world_size, store), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, *arguments: Any) -> tuple[tuple[Tensors, Tensors] | None, str | None]:
        """Rank 0's result, or the error that a user sees."""
        for pipe in self.pipes:
            pipe.send(arguments)
        answers = [pipe.recv() for pipe in self.pipes]
        errors = [error for _, error in answers if error is not None]
        return answers[0][0], errors[0] if errors else None

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=30)
        self.directory.cleanup()


def _work(pipe: Any, rank: int, world_size: int, store: str) -> None:
    names = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            dist.destroy_process_group()
            return
        try:
            pipe.send((run(*arguments), None))
        except trainkit.errors.TrainkitError as error:  # before any rank waits for another
            pipe.send((None, f"{type(error).__name__}: {error}"))


# -- the table ---------------------------------------------------------------------------------------------------------


def cells(models: list[str], strategies: list[str], ranks: list[int]) -> Iterator[Cell]:
    for model in models:
        for precision in ("fp64", "fp32"):
            for strategy in strategies:
                for world_size in ranks:
                    for accumulation in ACCUMULATIONS:
                        yield Cell(model, strategy, precision, world_size, accumulation)


def measure(wanted: list[Cell]) -> tuple[list[Cell], list[Reference]]:
    """The cells with their figures, and what they are held against."""
    pools: dict[int, Ranks] = {}
    references: dict[tuple[str, str], Reference] = {}
    done = []
    try:
        for number, cell in enumerate(wanted, start=1):
            key = (cell.model, cell.precision)
            alone = pools.get(1) or pools.setdefault(1, Ranks(1))
            if key not in references:
                whole, split = (alone.run(cell.model, "single", cell.precision, n)[0] for n in (1, 4))
                assert whole is not None and split is not None
                references[key] = Reference(*key, whole, split)
            pool = pools.get(cell.ranks) or pools.setdefault(cell.ranks, Ranks(cell.ranks))
            result, error = pool.run(cell.model, cell.strategy, cell.precision, cell.accumulation)
            refused = Cell(**{**asdict(cell), "error": error})
            done.append(refused if result is None else references[key].measured(cell, result))
            print(f"\r{number} of {len(wanted)}: {cell.model} {cell.strategy:<8}", end="", file=sys.stderr, flush=True)
    finally:
        for pool in pools.values():
            pool.end()
        print(file=sys.stderr)
    return done, list(references.values())


def table(done: list[Cell], references: list[Reference]) -> str:
    lines = []
    for reference in references:
        mine = [cell for cell in done if (cell.model, cell.precision) == (reference.model, reference.precision)]
        columns = sorted({(cell.ranks, cell.accumulation) for cell in mine})
        goal = f"goal {GOALS[reference.precision]:.0e}"
        own = reference.rounding()
        if own.first_gradients is not None:
            goal += f" / gradients of the first step, worst tensor: goal {GOALS['first gradients']:.0e}"
        lines.append(f"{reference.model}, {reference.precision}: weights after {NUM_STEPS} steps ({goal})")
        lines.append(f"  rounding's own size (one process, its batch split in four): {figure(own)}")
        for name, value in reference.left_out.items():
            lines.append(f"  left out of the gradients: {name}, which rounding alone moves by {value:.0e}")
        lines.append("  " + "ranks x micro-batches".ljust(22) + "".join(f"{r} x {a}".ljust(17) for r, a in columns))
        for strategy in dict.fromkeys(cell.strategy for cell in mine):
            row = {(cell.ranks, cell.accumulation): cell for cell in mine if cell.strategy == strategy}
            lines.append("  " + strategy.ljust(22) + "".join(figure(row[at]).ljust(17) for at in columns).rstrip())
        lines.append("")
    lines += [f"refused: {error}" for error in dict.fromkeys(cell.error for cell in done if cell.error)]
    return "\n".join(lines)


def figure(cell: Cell) -> str:
    if cell.weights is None:
        return "refused"
    first = f" / {cell.first_gradients:.0e}" if cell.first_gradients is not None else ""
    return f"{cell.weights:.1e}{first}"


def misses(done: list[Cell]) -> list[Cell]:
    """Cells beyond their goal."""
    return [
        cell
        for cell in done
        if cell.weights is not None
        and (cell.weights > GOALS[cell.precision] or (cell.first_gradients or 0.0) > GOALS["first gradients"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=list(RANKS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    models = list(MODELS) if arguments.model == "all" else [arguments.model]
    done, references = measure(list(cells(models, arguments.strategies, arguments.ranks)))
    print(table(done, references))
    beyond = misses(done)
    print(f"{len(beyond)} of {len(done)} cells are beyond their goal" + "".join(f"\n  {cell}" for cell in beyond))
    path = write(arguments.output, done, references)
    print(f"written to {path}")


def write(output: Path, done: list[Cell], references: list[Reference]) -> Path:
    now = datetime.now(UTC)
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    machine = {
        "cpu": models[0] if models else platform.processor(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }
    hardware = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['num_cpus']} cpus".lower()).strip("-")
    path = output / f"parity_{hardware}_{now:%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "goals": GOALS,
        "rounding": [{**asdict(each.rounding()), "left_out": each.left_out} for each in references],
        "cells": [asdict(cell) for cell in done],
    }
    everything = {"time": now.isoformat(), "machine": machine, **results}
    path.write_text(json.dumps(everything, indent=1) + "\n")
    return path


if __name__ == "__main__":
    main()
