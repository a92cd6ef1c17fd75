"""Checkpoints saved by one strategy and loaded by another on other ranks: the same state, and the same later losses.

Two models, at the most difficult moments:

  bert  BERT-tiny with dropout, AdamW and averaged weights, in the middle of an epoch;
  gan   the progressive GAN with its gradient penalty, Adam and an averaged generator, in the middle of the fade from
        4x4 to 8x8: saved by engines that have grown, loaded into engines that were created at 8x8.

The gradient penalty weighs 0.05, not 10. Its value jumps where a unit's input crosses zero, and whether one does within
the ten steps is decided by the last bit of fp32, and so by the processor: with 1, ZeRO differed from FSDP by 4e-6 on
one and by 5e-4 on another, by 1e-7 before the jump.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

import trainkit
from trainkit.precision import Name
from trainkit.strategy import by_name
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.bert.model import TINY, Layer, MaskedLanguageModel
from trainkit_recipes.bert.pretrain import parameter_groups
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, Widths

WHERE = (
    ("single", 1),
    ("ddp", 2),
    ("ddp", 4),
    ("fsdp", 2),
    ("fsdp", 4),
    ("zero1", 2),
    ("zero2", 2),
    ("zero3", 2),
)
NUM_BEFORE, NUM_AFTER = 5, 10
LOSS = Loss(penalty=0.05, drift=0.1)
# Of the GAN in fp32, whose convolutions by Winograd's algorithm have some 1e-5 of the largest value as error.
GOALS = {"fp64": {"bert": 1e-9, "gan": 1e-9}, "fp32": {"bert": 2e-6, "gan": 1e-4}}

Place = tuple[str, int]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One handover, and what came of it.

    losses: the largest |a - b| / max(1, |b|) of the losses of the next ten steps, b those that the writer went on with.
    num_tensors, num_different: of the consolidated state after loading; how many were compared with those that were
        saved, and how many are not the same to the last bit.
    """

    model: str
    wrote: Place
    reads: Place
    losses: float | None = None
    num_tensors: int = 0
    num_different: int = 0
    error: str | None = None

    @property
    def precision(self) -> str:
        """DeepSpeed computes in fp32 whatever it is given."""
        return precision_of(self.wrote, self.reads)

    @property
    def goal(self) -> float:
        """Nothing at all where neither ranks nor strategy change."""
        return 0.0 if self.wrote == self.reads else GOALS[self.precision][self.model]

    @property
    def misses(self) -> bool:
        is_within = self.losses is not None and self.losses <= self.goal
        return self.error is not None or not is_within or self.num_different > 0 or self.num_tensors == 0


def precision_of(*places: Place) -> str:
    return "fp32" if any(strategy.startswith("zero") for strategy, _ in places) else "fp64"


class Model(Protocol):
    """A model, its engines, and the losses of some of its steps."""

    engines: dict[str, trainkit.Engine]

    def __init__(self, runtime: trainkit.Runtime, *, is_resumed: bool) -> None: ...

    def losses(self, start: int, num_steps: int) -> list[float]: ...


class Bert:
    """Epochs of 6 1/4 batches."""

    batch_size = 32

    def __init__(self, runtime: trainkit.Runtime, *, is_resumed: bool) -> None:
        self.runtime = runtime
        torch.manual_seed(int(is_resumed))  # what is read must come from the checkpoint
        module = MaskedLanguageModel(replace(TINY, max_length=16), 256)
        self.engine = runtime.setup(
            module,
            torch.optim.AdamW(parameter_groups(module), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
            name="model",
            blocks=(Layer,),
            max_grad_norm=1.0,
            ema_decay=0.9,
        )
        self.engines = {"model": self.engine}
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(256, (200, 16), generator=generator)
        labels = torch.where(
            torch.rand(200, 4, generator=generator) < 0.3, torch.randint(256, (200, 4), generator=generator), -100
        )
        labels[:, 0] = tokens[:, 0]
        self.data = {"tokens": tokens, "labels": labels}

    def losses(self, start: int, num_steps: int) -> list[float]:
        found = []
        batches = self.runtime.batches(self.data, batch_size=self.batch_size, start=start, num_steps=num_steps)
        for batch in batches:
            chosen = torch.arange(4).expand(len(batch), 4)
            loss, num_masked = masked_loss(self.engine(batch.tokens, chosen), batch.labels)
            self.engine.backward(loss, weight=num_masked)
            found.append(float(self.engine.step().loss))
        return found


class Gan:
    """4x4 for two steps; then 8x8, which fades in over ten."""

    batch_size = 32
    grows_at = 2 * batch_size
    widths = Widths(latent_dim=16, fmap_base=128, fmap_max=32, channels=3, stddev_group=4)

    def __init__(self, runtime: trainkit.Runtime, *, is_resumed: bool) -> None:
        self.runtime = runtime
        self.engines: dict[str, trainkit.Engine] = {}
        self.images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0
        self._make(8 if is_resumed else 4)

    def _make(self, resolution: int) -> None:
        torch.manual_seed(resolution + len(self.engines))
        for name, network in (("G", Generator), ("D", Discriminator)):
            self.engines[name] = self.runtime.setup(
                network(self.widths, resolution, resolution == 8),
                # The usual eps makes whole steps of what gradients near zero are rounded to, other on each processor.
                lambda groups: torch.optim.Adam(groups, lr=1e-3, betas=(0.0, 0.99), eps=0.1),
                name=name,
                ema_decay=0.9 if name == "G" else None,
                inherit=self.engines.get(name),
                inherit_optimizer=False,  # as the recipe does: Adam restarts with each resolution
            )

    def losses(self, start: int, num_steps: int) -> list[float]:
        found: list[float] = []
        batches = self.runtime.batches(self.images, batch_size=self.batch_size, start=start, num_steps=num_steps)
        for batch in batches:
            if batch.position == self.grows_at and start < self.grows_at:
                self._make(8)
            fade = max(0.0, (batch.position - self.grows_at) / (10 * self.batch_size))
            found += self._step(batch, min(fade, 1.0))
        return found

    def _step(self, batch: Any, fade: float) -> tuple[float, float]:
        G, D = self.engines["G"], self.engines["D"]
        images = batch.data.to(self.runtime.dtype)
        real = torch.nn.functional.avg_pool2d(images, images.shape[-1] // D.module.resolution)
        with torch.no_grad():
            fake = G(self.runtime.randn(batch, self.widths.latent_dim, name="D"), fade)
        mix = self.runtime.rand(batch, name="mix")
        D.backward(LOSS.of_discriminator(D, real, fake, mix, fade=fade, penalty_weight=LOSS.penalty)[0])
        d_loss = float(D.step().loss)
        with D.frozen():
            latent = self.runtime.randn(batch, self.widths.latent_dim, name="G")
            G.backward(LOSS.of_generator(D(G(latent, fade), fade)))
        return d_loss, float(G.step().loss)


MODELS: dict[str, type[Model]] = {"bert": Bert, "gan": Gan}


# -- run on ranks ------------------------------------------------------------------------------------------------------


def save_and_go_on(model: str, strategy: str, precision: str, path: Path) -> tuple[Tensors, list[float]]:
    """The state that was saved at `path`, and the losses of the steps after it. Collective: every rank calls."""
    runtime = _runtime(strategy, precision)
    scene = MODELS[model](runtime, is_resumed=False)
    scene.losses(0, NUM_BEFORE)
    engines: dict[str, Any] = {**scene.engines}
    runtime.save(path, **engines)
    state = _state(scene)
    losses = scene.losses(runtime.position, NUM_AFTER)
    runtime.close()
    return state, losses


def load_and_go_on(model: str, strategy: str, precision: str, path: Path) -> tuple[Tensors, list[float]]:
    """The state after loading `path`, and the losses of the steps after it. Collective: every rank calls."""
    runtime = _runtime(strategy, precision)
    scene = MODELS[model](runtime, is_resumed=True)
    start = runtime.load(path, **scene.engines).position
    state = _state(scene)
    losses = scene.losses(start, NUM_AFTER)
    runtime.close()
    return state, losses


def _runtime(strategy: str, precision: str) -> trainkit.Runtime:
    chosen = trainkit.Zero3(keep_below=16) if strategy == "zero3" else by_name(strategy)
    return trainkit.Runtime(
        strategy=chosen, precision=cast(Name, precision), deterministic=True, device="cpu", tracker=trainkit.Tracker()
    )


def _state(scene: Model) -> Tensors:
    """Everything that an engine is, by name; on other ranks than the first what they hold whole."""
    found: Tensors = {}
    for name, engine in scene.engines.items():
        state = engine.state_dict()
        for part in ("module", "optimizer", "average"):
            found |= {f"{name}.{part}/{key}": tensor.clone() for key, tensor in _flat(state[part])}
        scalars = state["scalars"]
        found[f"{name}.num_updates"] = torch.tensor(scalars["num_updates"])
    return found


def _flat(entries: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for key, value in entries.items():
        if isinstance(value, Tensor):
            yield key, value
        else:
            yield from ((f"{key}/{inner}", tensor) for inner, tensor in _flat(value))


# -- cells -------------------------------------------------------------------------------------------------------------


def cells(models: list[str], pairs: list[tuple[Place, Place]]) -> Iterator[Cell]:
    for model in models:
        for wrote, reads in pairs:
            yield Cell(model, wrote, reads)


def everything() -> list[tuple[Place, Place]]:
    """All 64."""
    return [(wrote, reads) for wrote in WHERE for reads in WHERE]


class Handovers:
    """Checkpoints that were written once, read as often as is asked.

    run: as `benchmarks.processes.Pools.run`.
    """

    def __init__(self, run: Callable[..., list[Any]], directory: Path) -> None:
        self.run, self.directory = run, directory
        self._written: dict[tuple[str, Place, str], tuple[Path, list[tuple[Tensors, list[float]]]]] = {}

    def measured(self, cell: Cell) -> Cell:
        """The cell with its figures."""
        path, wrote = self._write(cell)
        strategy, ranks = cell.reads
        read = self.run(ranks, load_and_go_on, cell.model, strategy, cell.precision, path)
        state, losses = wrote[0]
        if any(tensors.keys() - state.keys() for tensors, _ in read) or read[0][0].keys() != state.keys():
            raise RuntimeError(f"{cell}: the states hold different tensors")
        pairs = [(tensor, state[name]) for tensors, _ in read for name, tensor in tensors.items()]
        far = [abs(a - b) / max(1.0, abs(b)) for _, theirs in read for a, b in zip(theirs, losses, strict=True)]
        return replace(
            cell,
            losses=max(far),
            num_tensors=len(pairs),
            num_different=sum(not torch.equal(a, b.to(a.dtype)) for a, b in pairs),
        )

    def _write(self, cell: Cell) -> tuple[Path, list[tuple[Tensors, list[float]]]]:
        key = (cell.model, cell.wrote, cell.precision)
        if key not in self._written:
            strategy, ranks = cell.wrote
            path = self.directory / "_".join((cell.model, strategy, str(ranks), cell.precision))
            result = self.run(ranks, save_and_go_on, cell.model, strategy, cell.precision, path)
            self._written[key] = path, result
        return self._written[key]
