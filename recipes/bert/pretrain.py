"""MaskedLanguageModelling: the model learns to predict masked words of text."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from trainkit import Engine, Last, Recipe, Runtime, Schedule
from trainkit.data import Batch, Datasets, Text, WordPiece
from trainkit.errors import CheckpointError, ConfigError, DataError, require_above_zero, require_at_least
from trainkit.export import Exporter
from trainkit.ops import cross_entropy
from trainkit_recipes.bert.data import IGNORED, Masked, Masking, check_share
from trainkit_recipes.bert.export import to_hugging_face, to_onnx
from trainkit_recipes.bert.filled import Filled, fill
from trainkit_recipes.bert.hugging_face import implied_by_weights, load_hugging_face, require_shape, require_vocabulary
from trainkit_recipes.bert.model import Architecture, Layer, MaskedLanguageModel
from trainkit_recipes.bert.report import NUM_EXAMPLES, Report, guessed, outlook
from trainkit_recipes.bert.samples import Samples, samples_of

_NUM_STEPS = 2000


class MaskedLanguageModelling(Recipe):
    """Pre-trains a BERT on text.

    Args:
        runtime: of the run.
        data: a specification such as `Text`, whose data sets give {"tokens": int64 [T]} and which has a tokenizer.
        model: the shape of the encoder.
        optimizer: makes one from parameter groups; biases and LayerNorms are in a group without weight decay.
        schedule: of the learning rate.
        batch_size: samples in a global batch.
        num_steps: length of the run in global batches; None: see `num_epochs`.
        num_epochs: length of the run in passes over the training data, rounded up to whole batches. At most one of the
            two may be given; without both, the run has 2,000 steps.
        grad_accumulation_steps: micro-batches per step.
        max_grad_norm: the largest norm of the gradient; None: no clipping.
        mask_share: the fraction of tokens that is masked in training; an evaluation masks 15 %, the same ones each
            time.
        evaluation_batch_size: samples in a global batch of an evaluation.
        weights: a Hugging Face directory to start from. A configuration takes `model` and `data.vocab_file` from it; in
            Python, give those of its shape (`read_architecture`) and vocabulary.
        sentences: with [MASK] in them, filled in at the end of a run.

    Raises:
        ConfigError: for values out of range or that do not match.
        DataError: for data without a tokenizer, and weights that do not match.
    """

    best_metric: str | None = "held_out_loss"
    _EVALUATION_MASK_SHARE = 0.15

    def __init__(
        self,
        runtime: Runtime,
        *,
        data: Any,
        model: Architecture,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule | None = None,
        batch_size: int = 32,
        num_steps: PositiveInt | None = None,  # checked before the schedule is made, whose messages refer to its total
        num_epochs: float | None = None,
        grad_accumulation_steps: int = 1,
        max_grad_norm: float | None = 1.0,
        mask_share: float = 0.15,
        evaluation_batch_size: int = 64,
        weights: Path | None = None,
        sentences: tuple[str, ...] = (),
    ) -> None:
        counts = {"num_steps": num_steps, "batch_size": batch_size, "evaluation_batch_size": evaluation_batch_size}
        require_at_least(1, "recipe.", **counts, grad_accumulation_steps=grad_accumulation_steps)
        if num_steps is not None and num_epochs is not None:
            raise ConfigError(
                f"recipe.num_steps={num_steps} and recipe.num_epochs={num_epochs:g} are two lengths: give one, as "
                f"recipe.num_steps=null recipe.num_epochs={num_epochs:g}"
            )
        require_above_zero("recipe.", num_epochs=num_epochs)
        if num_epochs is None:
            num_steps = num_steps or _NUM_STEPS
            schedule = _until(schedule, num_steps, batch_size)  # an error is raised before data are read
        check_share(mask_share)
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ConfigError(f"recipe.max_grad_norm={max_grad_norm}: must be a norm above 0, or null for no clipping")
        if model.pooler:
            raise ConfigError("recipe.model.pooler=true: masked language modelling does not train one; leave it out")
        if weights is not None:
            require_shape(model, weights)  # before data are read
        self.runtime, self.batch_size = runtime, batch_size
        self.evaluation_batch_size, self.sentences = evaluation_batch_size, sentences
        self.datasets: Datasets = runtime.ranks.first_on_host(data.load)
        if num_epochs is not None:
            self.length_key = "recipe.num_epochs"
            num_steps = max(1, math.ceil(num_epochs * len(self.datasets.train) / batch_size))
            schedule = _until(schedule, num_steps, batch_size)
        assert num_steps is not None
        self.num_samples = batch_size * num_steps
        self.tokenizer = self.datasets.tokenizer
        self._evaluations: list[tuple[int, float]] = []
        self._measured: dict[str, float] | None = None  # of the weights as they are
        self._guessed: dict[str, float] = {}
        if self.tokenizer is None:
            raise DataError("recipe=bert needs data with a tokenizer: use data=text, or give your Datasets one")
        if len(self.datasets.train):
            _check_length(self.datasets.train, model)
        self.masking = Masking(self.tokenizer, mask_share, runtime.device)
        self.evaluation_masking = Masking(self.tokenizer, self._EVALUATION_MASK_SHARE, runtime.device)
        self.architecture = model
        module = MaskedLanguageModel(model, self.tokenizer.vocab_size)
        if weights is not None:
            require_vocabulary(self.tokenizer, weights)
            load_hugging_face(module, weights)
        self.model = runtime.setup(
            module,
            optimizer(parameter_groups(module)),
            name="model",
            blocks=(Layer,),
            max_grad_norm=max_grad_norm,
            schedule=schedule,
            grad_accumulation_steps=grad_accumulation_steps,
        )

    def engines(self) -> dict[str, Engine]:
        """Returns the engine of the model."""
        return {"model": self.model}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Returns batches of the training data."""
        return self.runtime.batches(
            self.datasets.train, batch_size=self.batch_size, start=start, collate=self.datasets.collate
        )

    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        """Masks the batch and updates the model."""
        self._measured = None
        for micro in self.model.micro_batches(batch):
            samples = samples_of(micro, self.datasets.train, self.tokenizer.pad)
            masked = self._masked(samples.batch, self.masking, "mask")
            loss, num_masked = masked_loss(*samples.predict(self.model, masked), in_place=True)
            self.model.backward(loss, weight=num_masked)
        return self.model.step().metrics()

    def evaluate(self) -> dict[str, float]:
        """Returns loss and accuracy on the masked tokens of the held-out data."""
        totals = self._measured = self._measure()
        self._evaluations.append((self.runtime.step, totals["accuracy"]))
        return {"held_out_loss": totals["loss"], "held_out_accuracy": totals["accuracy"]}

    def _measure(self) -> dict[str, float]:
        sums: dict[str, Tensor | float] = {"loss": 0.0, "correct": 0.0, "masked": 0.0}
        for _, masked, logits_BKV in self.held_out():
            loss, num_masked = masked_loss(logits_BKV, masked.labels_BK)
            sums["loss"] += loss.double() * num_masked
            sums["correct"] += (logits_BKV.argmax(dim=-1) == masked.labels_BK).sum()
            sums["masked"] += num_masked
        totals = self.runtime.ranks.all_reduce_sum(sums)
        num = totals["masked"]
        return {"loss": totals["loss"] / num, "accuracy": totals["correct"] / num, "masked": num}

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Returns the accuracy of the counts of neighbours."""
        return {"held_out_accuracy": self.guessed()}

    def guessed(self) -> dict[str, float]:
        """Returns the accuracies of the baselines by name. Collective: every rank must call."""
        if not self._guessed:
            self._guessed = guessed(
                self.datasets, self.masked_held_out(), tokenizer=self.tokenizer, runtime=self.runtime
            )
        return self._guessed

    def fill(self, sentence: str) -> Filled:
        """Guesses each [MASK] in `sentence`, with the others masked. Collective: every rank must call.

        Args:
            sentence: text with at least one [MASK].

        Returns:
            The sentence and the guesses.

        Raises:
            DataError: for a sentence without [MASK], or one that is too long.
        """
        self.model.module.eval()
        try:
            return fill(
                self.model,
                self.tokenizer,
                sentence,
                max_length=self.architecture.max_length,
                device=self.runtime.device,
            )
        finally:
            self.model.module.train()

    def report(self) -> Report:
        """What the model has learnt, measured on the held-out split. Collective: every rank must call."""
        measured = self._measured or self._measure()
        num_batches = -(-len(self.datasets.held_out) // self.evaluation_batch_size)
        every = max(1, num_batches // NUM_EXAMPLES)  # examples from all over the split
        return Report.of(
            islice(self.held_out(every), NUM_EXAMPLES),
            accuracy=measured["accuracy"],
            num_masked=int(measured["masked"]),
            tokenizer=self.tokenizer,
            baselines=self.guessed(),
            sentences=map(self.fill, self.sentences),
        )

    @torch.no_grad()
    def held_out(self, every: int = 1) -> Iterator[tuple[Batch, Masked, Tensor]]:
        """Yields (batch, masking, logits_BKV) over this rank's held-out windows. Collective: every rank must call.

        Args:
            every: yields each so many-th global batch, from the first one on.
        """
        self.model.module.eval()
        try:
            for samples, masked in self._held_out_samples(every):
                yield samples.batch, *samples.predict_slots(self.model, masked)
        finally:
            self.model.module.train()

    def masked_held_out(self) -> Iterator[tuple[Batch, Masked]]:
        """Yields (batch, masking) over this rank's held-out windows, the same each time."""
        return ((samples.batch, masked) for samples, masked in self._held_out_samples(every=1))

    def _held_out_samples(self, every: int) -> Iterator[tuple[Samples, Masked]]:
        batches = self.runtime.evaluation_batches(
            self.datasets.held_out, batch_size=self.evaluation_batch_size, collate=self.datasets.collate
        )
        for batch in islice(batches, 0, None, every):
            samples = samples_of(batch, self.datasets.held_out, self.tokenizer.pad)
            yield samples, self._masked(samples.batch, self.evaluation_masking, "held-out mask")

    @classmethod
    def implied_arguments(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the shape and the vocabulary of the weights."""
        return implied_by_weights(Path(given["weights"]).expanduser(), given)

    @classmethod
    def restored_arguments(cls, state: Mapping[str, Any], data: Any) -> dict[str, Any] | None:
        """Returns data with the checkpoint's tokenizer, and its length; weights come from the checkpoint."""
        if "tokenizer" in state:
            tokenizer = WordPiece.from_json(state["tokenizer"])
            if data is None:
                data = Datasets(train=(), held_out=(), tokenizer=tokenizer)
            elif isinstance(data, Text):
                data = replace(data, tokenizer=tokenizer)
        elif data is None:  # not a WordPiece, or older than checkpoints with a tokenizer
            return None
        length = {"num_epochs": None, "num_steps": state["num_steps"]} if "num_steps" in state else {}
        return {"data": data, "weights": None, **length}

    def state_dict(self) -> dict[str, Any]:
        """Returns the tokenizer and the length of the run."""
        stored = {"tokenizer": self.tokenizer.to_json()} if isinstance(self.tokenizer, WordPiece) else {}
        num_steps = self.num_samples // self.batch_size
        return {"vocabulary": self.tokenizer.fingerprint, "num_steps": num_steps, **stored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checks that the checkpoint was trained with the same vocabulary."""
        self._measured = None
        known = state["vocabulary"]
        if "tokenizer" in state:  # other versions of the tokenizers library may write the same one differently
            known = WordPiece.from_json(state["tokenizer"]).fingerprint
        if known != self.tokenizer.fingerprint:
            raise CheckpointError(
                "the checkpoint was trained with another vocabulary: set the data, data.vocab_file and "
                "data.vocab_size that it was trained with, or a new run_dir"
            )

    def finish(self) -> None:
        """Logs held-out text and sentences with predicted words, and a table of accuracies."""
        report = self.report()
        tracker, step = self.runtime.tracker, self.runtime.step
        tracker.text(step, "held-out text, filled in", report.examples)
        if report.sentences:
            tracker.text(step, "sentences, filled in", report.sentences)
        tracker.table(step, "held-out accuracy", report.columns, report.rows)
        if self._evaluations:  # empty in a process that started where training had ended
            num_epochs = self.runtime.position / len(self.datasets.train)
            if message := outlook(report.rows, self._evaluations, num_epochs):
                self.runtime.run_log.message(message)

    def next_commands(self, run_dir: Path) -> list[list[str]]:
        """Returns the command that fills in a sentence."""
        sentence = self.sentences[0] if self.sentences else "A sentence with a [MASK] in it."
        return [["python", "-m", "trainkit_recipes.bert.fill", str(run_dir), sentence]]

    def exporters(self) -> dict[str, Exporter]:
        """Returns what writes a directory for transformers, and an ONNX file."""
        return {"huggingface": partial(to_hugging_face, self), "onnx": partial(to_onnx, self)}

    def _masked(self, batch: Batch, masking: Masking, name: str) -> Masked:
        num_draws = masking.num_draws(batch.tokens.shape[1])
        return masking(batch.tokens, self.runtime.rand(batch, num_draws, name=name))


def _until(schedule: Callable[[int, int], float] | None, num_steps: int, batch_size: int) -> Any:
    return schedule.until(num_steps, batch_size) if isinstance(schedule, Schedule) else schedule


def masked_loss(logits: Tensor, labels: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Computes the mean cross-entropy over the slots in use.

    Args:
        logits: predictions [..., V].
        labels: int64 [...], IGNORED for unused slots.
        in_place: whether the backward pass may overwrite the logits.

    Returns:
        The mean, 0 without slots in use, and the number of slots in use.
    """
    num_masked = (labels != IGNORED).sum()
    total = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, in_place=in_place)
    return total / num_masked.clamp(min=1), num_masked


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Returns two groups: matrices, with weight decay, and the rest (biases, LayerNorms, relative biases), without."""
    decayed = {m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    return [
        {"params": [p for p in module.parameters() if p in decayed]},
        {"params": [p for p in module.parameters() if p not in decayed], "weight_decay": 0.0},
    ]


def _check_length(dataset: Any, model: Architecture) -> None:
    length = getattr(dataset, "sequence_length", None) or len(dataset[0]["tokens"])
    if length > model.max_length:
        raise ConfigError(
            f"data.sequence_length={length} is more than recipe.model.max_length={model.max_length}; "
            f"lower the one or raise the other"
        )
