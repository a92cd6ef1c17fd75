"""ProgressiveGAN: two engines that train against each other while their networks grow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainkit import Engine, Last, Recipe, Runtime, Schedule, Stage
from trainkit.data import Batch, Datasets
from trainkit.errors import ConfigError, require_above_zero
from trainkit.export import Exporter, Sealing
from trainkit.ops import downsample, fade_in
from trainkit_recipes.progressive_gan.augment import Augmentation, Augmenter
from trainkit_recipes.progressive_gan.classes import require_same_classes
from trainkit_recipes.progressive_gan.end import (
    DISTANCES,
    TRAINING_IMAGES,
    UNTRAINED,
    log_measured,
    measure_all,
    untrained,
)
from trainkit_recipes.progressive_gan.evaluation import Evaluation, Evaluator
from trainkit_recipes.progressive_gan.export import to_edge, to_onnx
from trainkit_recipes.progressive_gan.grids import Grids
from trainkit_recipes.progressive_gan.growth import Phase, images_of, phase_at, plan, require_next, require_resolutions
from trainkit_recipes.progressive_gan.image_sets import Generate, GeneratedImages, ImageSet
from trainkit_recipes.progressive_gan.latents import Sampler
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.micro_batches import MicroBatches
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, LowPrecision, Widths
from trainkit_recipes.progressive_gan.pictures import as_pixels
from trainkit_recipes.progressive_gan.real_images import at_resolution, labels_of, real_images, require_fitting
from trainkit_recipes.progressive_gan.scores import Score, Scorer
from trainkit_recipes.progressive_gan.transfer import (
    IMPLIED_KEYS,
    Restored,
    Start,
    Transfer,
    implied_by_weights,
    take_average,
)


class ProgressiveGAN(Recipe):
    """Trains a generator of images, from 4x4 up to `resolution`.

    Args:
        runtime: of the run.
        data: a specification such as `Images`, or data sets whose items are images: uint8, or floats of -1 .. 1.
        optimizer: makes one from parameter groups; each network gets its own, new at the start and the end of each
            fade.
        schedule: of the learning rates.
        resolution: the last one, in pixels.
        latent_dim: elements of a latent.
        fmap_base: see `networks.Widths`.
        fmap_max: the most channels of a layer.
        channels: of an image.
        batch_size: samples in a global batch; a number or a mapping from resolution (see `growth.plan`).
        stable_images: samples of a stable phase; a number or a mapping from resolution.
        fade_images: samples of a fade; a number or a mapping from resolution.
        num_epochs: passes over the training data in the whole run, in proportion to `stable_images` and `fade_images`;
            None: these are the numbers.
        learning_rates: by resolution, where they differ from the optimizer's.
        grad_accumulation_steps: micro-batches per step; a number or a mapping from resolution (see `MicroBatches`).
        ema_decay: of the averaged generator, per step.
        loss: what the networks minimize; None: the defaults of `Loss`.
        stddev_group: samples that share a minibatch standard deviation; a local batch must contain whole groups.
        low_precision_resolutions: in bf16 and fp16, how many of the highest resolutions up to `resolution` compute in
            low precision; all below are fp32 (see `networks.LowPrecision`).
        clamp: the largest magnitude of an activation there.
        augment: how images are augmented before D sees them; None: not at all.
        evaluation: what an evaluation measures and shows; None: the defaults of `Evaluation`.
        transfer: the trained networks that these start from; None: random weights.

    Raises:
        ConfigError: for values out of range or that do not match.
        CheckpointError: for weights to start from that cannot be read.
        DataError: for images of another shape.
    """

    best_metric: str | None = None  # distances at different resolutions cannot be compared
    ideals = (TRAINING_IMAGES,)
    task_name = "unconditional-image-generation"
    implied_keys = IMPLIED_KEYS
    start_keys = ("transfer",)

    def __init__(
        self,
        runtime: Runtime,
        *,
        data: Any,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule | None = None,
        resolution: int = 32,
        latent_dim: int = 512,
        fmap_base: int = 8192,
        fmap_max: int = 512,
        channels: int = 3,
        batch_size: int | dict[int, int] = 16,
        stable_images: int | dict[int, int] = 600_000,
        fade_images: int | dict[int, int] = 600_000,
        num_epochs: float | None = None,
        learning_rates: dict[int, float] | None = None,
        grad_accumulation_steps: int | dict[int, int] = 1,
        ema_decay: float = 0.999,
        loss: Loss | None = None,
        stddev_group: int = 4,
        low_precision_resolutions: int = 4,
        clamp: float = 256.0,
        augment: Augmentation | None = None,
        evaluation: Evaluation | None = None,
        transfer: Transfer | None = None,
    ) -> None:
        self.runtime, self.optimizer, self.schedule = runtime, optimizer, schedule
        self.widths = Widths(
            latent_dim=latent_dim, fmap_base=fmap_base, fmap_max=fmap_max, channels=channels, stddev_group=stddev_group
        )
        self.low = LowPrecision.highest(low_precision_resolutions, resolution, clamp)
        require_above_zero("recipe.", num_epochs=num_epochs)
        if not 0 <= ema_decay < 1:
            raise ConfigError(f"recipe.ema_decay={ema_decay}: must be 0 or more, and below 1")
        require_resolutions("learning_rates", learning_rates or {})
        self.start = Start(transfer or Transfer())
        plan_of = partial(plan, resolution, stable_images=stable_images, fade_images=fade_images, batch_size=batch_size)
        plan_of = partial(plan_of, start=self.start.resolution)
        self.phases = plan_of()
        self.micro_batches = MicroBatches(grad_accumulation_steps, self.phases, runtime.ranks.world_size, stddev_group)
        self.learning_rates = learning_rates or {}
        self.ema_decay, self.loss = ema_decay, loss or Loss()
        self.datasets: Datasets = runtime.ranks.first_on_host(data.load)
        self.widths = replace(self.widths, num_classes=len(self.datasets.classes))
        self.num_epochs = num_epochs
        if num_epochs is not None and len(self.datasets.train):
            self.phases = plan_of(num_images=num_epochs * len(self.datasets.train))
        self.num_samples = self.phases[-1].end
        self.length_key = None if num_epochs else f"recipe.stable_images at {resolution}x{resolution}"
        if len(self.datasets.train):
            require_fitting(self.datasets, resolution, channels)
        self.evaluator = Evaluator(runtime, evaluation or Evaluation(), self.datasets)
        self.better = self.evaluator.better()
        self._distances_untrained: dict[int, dict[str, float]] = {}
        self.grids = Grids(runtime, self.datasets, resolution)
        self.scorer = Scorer(runtime, self.datasets)
        self.augmenter = Augmenter(runtime, augment or Augmentation(), loss=self.loss.name, datasets=self.datasets)
        self._augment_before: dict[str, Any] = {}
        self.phase = self.phases[0]
        self.G, self.D = self._engines_of(self.phase)

    # -- growth ------------------------------------------------------------------------------------------------------

    def engines(self) -> dict[str, Engine]:
        """Returns the engines of the generator and the discriminator."""
        return {"G": self.G, "D": self.D}

    def costs(self) -> list[tuple[int, float]]:
        """Returns the multiplications per image of each phase."""
        return [(phase.end, float(self.widths.num_products(phase.resolution))) for phase in self.phases]

    def milestones(self) -> list[tuple[int, str]]:
        """Returns where each phase begins."""
        return [(phase.start, phase.name) for phase in self.phases]

    @classmethod
    def restored_arguments(cls, state: Mapping[str, Any], data: Any) -> dict[str, Any]:
        """Returns the number of images of each phase as in the checkpoint, and no data if only engines are needed."""
        length: dict[str, Any] = {"transfer": Restored(**state["transfer"])} if "transfer" in state else {}
        if "images" in state:  # num_epochs refers to the data that it was trained on
            length["num_epochs"] = None
            for name, images in state["images"].items():
                length[name] = {int(resolution): num for resolution, num in images.items()}
        nothing = Datasets(train=(), held_out=(), classes=tuple(state.get("classes", ())))
        return {"data": nothing if data is None else data, **length}

    @classmethod
    def implied_arguments(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the shape of the networks that `weights` hold."""
        return implied_by_weights(given)

    def state_dict(self) -> dict[str, Any]:
        """Returns the phase, with `num_epochs` the samples of each, and what classes and `transfer` were given."""
        state: dict[str, Any] = {"phase": self.phase.number, **self.micro_batches.state_dict()}
        if self.start.transfer != Transfer():
            state["transfer"] = self.start.state_dict()
        if augment := self.augmenter.state_dict():
            state["augment"] = augment
        if self.datasets.classes:
            state["classes"] = list(self.datasets.classes)
        if self.num_epochs is None:
            return state
        return {**state, "images": images_of(self.phases)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the networks of the checkpoint's phase. Raises ConfigError for other phases or classes."""
        require_same_classes(state.get("classes", ()), self.datasets.classes)
        if state["phase"] >= len(self.phases):
            raise ConfigError(
                f"the checkpoint is in phase {state['phase']} of growth, and recipe.resolution, stable_images and "
                f"fade_images make only {len(self.phases)}"
            )
        for engine in self.engines().values():
            engine.retire()
        self.micro_batches.load_state_dict(state)
        self.phase = self.phases[state["phase"]]
        self.augmenter.load_state_dict(state.get("augment", {}))
        self.G, self.D = self._engines_of(self.phase)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yields batches of each phase, and grows the networks between them."""
        position = int(start)
        if not position and (line := self.start.describe(self.datasets.classes)):
            self.runtime.tracker.message(line)
        while position < self.num_samples:
            phase = phase_at(self.phases, position)
            if phase != self.phase:
                require_next(self.phase, phase, position)
                self._grow(phase)
            self.runtime.tracker.message(f"growth: {phase}, from position {position:,} to {phase.end:,}")
            num_steps = -(-(phase.end - position) // phase.batch_size)
            yield from self._batches_of(phase, position, num_steps)
            position += num_steps * phase.batch_size

    def _batches_of(self, phase: Phase, start: int, num_steps: int) -> Iterator[Batch]:
        return self.runtime.batches(
            at_resolution(self.datasets.train, phase.resolution),
            batch_size=phase.batch_size,
            start=start,
            num_steps=num_steps,
            collate=self.datasets.collate,
            shuffle=self.datasets.shuffle,
        )

    def stages(self) -> dict[int, Stage]:
        """Returns the batch and the micro-batches of each resolution."""
        return self.micro_batches.stages()

    def dearest_batches_of(self, stage: int) -> Iterator[Batch]:
        """Returns batches of the fade to a resolution, and makes the networks of that phase."""
        phase = next(phase for phase in self.phases if phase.resolution == stage)
        self.load_state_dict({**self.state_dict(), "phase": phase.number})
        self.augmenter.assume_dearest()
        return self._batches_of(phase, phase.start, 1 + self.loss.penalty_every)

    def may_outgrow_memory(self, batch: Batch) -> bool:
        """Whether the batch is one of the first of a phase, up to the second with a penalty and the first augmented."""
        return self.phase.step(batch.position) <= max(self.loss.penalty_every, self.augmenter.steps_between)

    def split_further(self) -> None:
        """Makes the networks anew, with more micro-batches at this resolution. Collective."""
        self.runtime.tracker.message(self.micro_batches.split(self.phase.resolution))
        # The attempt may have adapted the augmentation, on some ranks or on all, and is made again.
        self.load_state_dict({**self.state_dict(), "augment": self._augment_before})

    def _grow(self, phase: Phase) -> None:
        """Makes the networks of `phase`, which inherit weights and averages from the current ones."""
        old_G, old_D = self.G, self.D
        self.G, self.D = self._engines_of(phase, old_G, old_D)
        self.phase = phase

    def _engines_of(self, phase: Phase, old_G: Engine | None = None, old_D: Engine | None = None) -> tuple[Engine, ...]:
        engines = []
        for name, network, old in (("G", Generator, old_G), ("D", Discriminator, old_D)):
            with torch.random.fork_rng(devices=[]):
                # The new layers of a resolution do not depend on the run before it.
                torch.manual_seed(self.runtime.seed + phase.resolution)
                module = network(self.widths, phase.resolution, phase.is_fading, self.low)
            averages = self.start.prepare(module, name, self.datasets.classes)
            engine = self.runtime.setup(
                module,
                self._optimizer_of(phase),
                name=name,
                schedule=self.schedule,
                ema_decay=self.ema_decay if name == "G" else None,
                grad_accumulation_steps=self.micro_batches.at(phase.resolution),
                inherit=old,
                inherit_optimizer=False,
            )
            take_average(engine, averages)
            engines.append(engine)
        return tuple(engines)

    def _optimizer_of(self, phase: Phase) -> Callable[..., torch.optim.Optimizer]:
        rate = self.learning_rates.get(phase.resolution)
        if rate is None:
            return self.optimizer
        return lambda groups: self.optimizer([{**group, "lr": rate} for group in groups])

    # -- a step ------------------------------------------------------------------------------------------------------

    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        """Updates D, then G."""
        fade = self.phase.fade(batch.position)
        step = self.phase.step(batch.position)
        self._augment_before = self.augmenter.state_dict()
        # A batch that is examined for what is not finite was trained on before.
        if self.augmenter.is_due(step) and not self.runtime.guard.is_examining:
            with self.D.frozen():
                scores = self.scorer.of_step(batch, *self._critic(fade), self.phase.resolution, self.D)
            self.augmenter.adapt(scores, batch.size)
        weight = self.loss.penalty_weight(step)
        for micro in self.D.micro_batches(batch):
            labels = self._labels(micro)
            real, fake = self._seen_real(micro, fade), self._seen_fake(micro, fade)
            mix = self.runtime.rand(micro, name="mix")
            loss, penalty = self.loss.of_discriminator(
                self.D, real, fake, mix, fade=fade, penalty_weight=weight, labels_B=labels
            )
            self.D.backward(loss)
        d_result = self.D.step()
        for micro in self.G.micro_batches(batch):
            labels = self._labels(micro)
            with self.D.frozen():
                fake = self.G(self._latents(micro, "G's latents"), fade, labels)
                scores = self.D(self.augmenter(fake, micro, "G's fake"), fade, labels)
                self.G.backward(self.loss.of_generator(scores))
        g_result = self.G.step()
        return {
            "d_loss": d_result.loss,
            "g_loss": g_result.loss,
            **({} if penalty is None else {"penalty": penalty}),
            "d_grad_norm": d_result.grad_norm,
            "g_grad_norm": g_result.grad_norm,
            "lr": Last(d_result.lr),
            "skipped": float(d_result.skipped or g_result.skipped),
            "resolution": Last(self.phase.resolution),
            "fade": Last(fade),
            **{name: Last(value) for name, value in self.augmenter.metrics().items()},
        }

    def _latents(self, batch: Batch, name: str) -> Tensor:
        return self.runtime.randn(batch, self.widths.latent_dim, name=name)

    def _seen_real(self, batch: Batch, fade: float) -> Tensor:
        """Returns real images as D sees them in its turn."""
        images = self._faded(real_images(batch.data, self.phase.resolution, self.runtime.dtype), fade)
        return self.augmenter(self.augmenter.flipped(images, batch), batch, "D's real")

    def _seen_fake(self, batch: Batch, fade: float) -> Tensor:
        """Returns generated images as D sees them in its turn."""
        with torch.no_grad():
            fake = self.G(self._latents(batch, "D's latents"), fade, self._labels(batch))
            return self.augmenter(fake, batch, "D's fake")

    def _labels(self, batch: Batch) -> Tensor | None:
        """The classes [len(batch)] of the batch's images; of a batch without data they take turns by position."""
        if not self.widths.num_classes:
            return None
        if batch.data is None:
            return (batch.positions % self.widths.num_classes).to(self.runtime.device)
        return labels_of(batch.data)

    def _faded(self, images: Tensor, fade: float) -> Tensor:
        """Blurs real images as much as the generator's are while it fades in."""
        return images if fade == 1.0 else fade_in(downsample(images), images, fade)

    # -- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Returns the `recipe.evaluation.metrics` against held-out images, and logs grids of fakes and real images."""
        with self.G.averaged() as module:
            distances = self.evaluator.distances(self._generate(module), self.phase.resolution)
            shown, columns = self.sampler(module).shown(self.evaluator.settings.num_shown)
        distances |= self._scores()
        self.grids.log_samples(shown, columns)
        self.grids.log_real(self.phase.resolution, self.evaluator.settings.num_shown)
        return distances

    def _critic(self, fade: float) -> tuple[Score, Score]:
        """Returns what scores real images, and generated ones, as D sees them in its turn."""
        return (
            lambda batch: self.D(self._seen_real(batch, fade), fade, self._labels(batch)),
            lambda batch: self.D(self._seen_fake(batch, fade), fade, self._labels(batch)),
        )

    def _scores(self) -> dict[str, float]:
        """Measures D's scores, and warns if it overfits."""
        critic = self._critic(self.phase.fade(self.runtime.position))
        with self.D.frozen():
            scores = self.scorer.of_evaluation(*critic, self.phase.resolution, self.phase.batch_size)
        if (warning := self.augmenter.warning(scores)) is not None:
            self.runtime.tracker.message(warning)
        return {**({} if scores is None else scores.metrics()), **self.augmenter.metrics()}

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Returns the distances of an untrained generator, and as ideals the metrics of training images."""
        found: dict[str, dict[str, float]] = {}
        measured = {UNTRAINED: self._untrained(), TRAINING_IMAGES: self.evaluator.floors(self.phase.resolution)}
        for baseline, values in measured.items():
            for name, value in values.items():
                if not name.startswith("swd_"):
                    found.setdefault(name, {})[baseline] = value
        return found

    def _untrained(self) -> dict[str, float]:
        """Distances of a generator with random weights, measured once at each resolution."""
        resolution = self.phase.resolution
        if resolution not in self._distances_untrained:
            held_out = self.evaluator.held_out(resolution)
            module = untrained(self.runtime, self.widths, resolution)
            # Faded in, whatever the fade is now: the baseline of a resolution stays.
            metrics = [name for name in self.evaluator.settings.metrics if name in DISTANCES]
            images = GeneratedImages(self._generate(module, fade=1.0), held_out, len(held_out))
            self._distances_untrained = {resolution: self.evaluator.measure(images, resolution, metrics)}
        return self._distances_untrained[resolution]

    def _generate(self, module: torch.nn.Module, fade: float | None = None) -> Generate:
        """Returns what makes images of a generator for a batch that is measured; at a fade, or at the present one."""
        fade = self.phase.fade(self.runtime.position) if fade is None else fade
        return lambda batch: module(self._latents(batch, "measured"), fade, self._labels(batch))

    def images(self, module: torch.nn.Module) -> ImageSet:
        """Returns as many images of a generator as there are held-out ones, to be measured."""
        held_out = self.evaluator.held_out(self.phase.resolution)
        return GeneratedImages(self._generate(module), held_out, len(held_out))

    def sampler(self, module: torch.nn.Module) -> Sampler:
        """Returns what makes images of fixed latents, the same throughout a run, with a generator."""
        fade, size = self.phase.fade(self.runtime.position), self.evaluator.settings.batch_size
        return Sampler(runtime=self.runtime, module=module, widths=self.widths, fade=fade, batch_size=size)

    def generate(self, numbers: Sequence[int], labels: Sequence[int] | None = None) -> Tensor:
        """Generates images of numbered latents with the averaged generator; see `Recipe.generate`."""
        with self.G.averaged() as module:
            sampler = self.sampler(module)
            pixels_BHWC = as_pixels(sampler.images(sampler.latents(numbers), labels))
            return torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)

    def finish(self) -> None:
        """Measures the generator beside an untrained one, logs tables and pictures, and writes an animation."""
        resolution = self.phase.resolution
        sets = {UNTRAINED: self.images(untrained(self.runtime, self.widths, resolution))}
        with self.G.averaged() as trained:
            sets["trained generator"] = self.images(trained)
            measured = measure_all(self.evaluator, sets, resolution)
        log_measured(measured, self.runtime)
        self.grids.animate()

    def next_commands(self, run_dir: Path) -> list[list[str]]:
        """Returns the command that samples images."""
        return [["python", "-m", "trainkit_recipes.progressive_gan.sample", str(run_dir), "--output", "samples.png"]]

    def exporters(self) -> dict[str, Exporter]:
        """Returns what writes an ONNX file of the generator, and a bundle for small devices."""
        return {"onnx": partial(to_onnx, self), "edge": Sealing(partial(to_edge, self))}
