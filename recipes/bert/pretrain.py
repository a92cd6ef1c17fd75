"""MaskedLanguageModelling: the model learns to predict masked words of text."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from trainkit import Engine, Last, Recipe, Runtime, Schedule
from trainkit.data import Batch, Datasets, Mixture, NvidiaBert, Text, WordPiece
from trainkit.errors import CheckpointError, ConfigError, DataError, require_at_least
from trainkit.evaluation import Better, SampleSums
from trainkit.export import Exporter, Sealing
from trainkit_recipes.bert.data import Kind, Masked, Masking, check_masking
from trainkit_recipes.bert.export import to_edge, to_hugging_face, to_onnx
from trainkit_recipes.bert.filled import Filled, fill
from trainkit_recipes.bert.held_out import LOSS, TOKENS, HeldOut
from trainkit_recipes.bert.hugging_face import (
    IMPLIED_KEYS,
    implied_by_weights,
    load_hugging_face,
    require_shape,
    require_vocabulary,
)
from trainkit_recipes.bert.length_warmup import LengthWarmup
from trainkit_recipes.bert.losses import masked_loss, pair_loss
from trainkit_recipes.bert.model import Architecture, Layer, MaskedLanguageModel
from trainkit_recipes.bert.next_sentence import ACCURACY, LABEL, PreTrainingModel, check_pairs, with_pairs
from trainkit_recipes.bert.phases import (
    BatchSizeWarmup,
    Phase,
    Plan,
    Stage,
    load_lengths,
    require_one_length,
    warmup_of,
)
from trainkit_recipes.bert.report import Report, outlook
from trainkit_recipes.bert.samples import Samples, Windows, masked_by, require_uncompiled, samples_of
from trainkit_recipes.bert.text_model import BertOfTexts

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
        mask_share: the fraction of tokens that is masked in training, unless samples are masked already; an evaluation
            masks 15 %, the same ones each time.
        masking: what is masked in training: `tokens`; whole `words`; or `spans` of words, as SpanBERT does. An
            evaluation masks tokens.
        next_sentence: whether the model also learns which of two segments follow one another, as in the paper: `Text`
            is then read with `documents="pairs"`, and the model gets a pooler and two segments. See `pair_loss`.
        evaluation_batch_size: samples in a global batch of an evaluation.
        weights: a Hugging Face directory to start from. A configuration takes `model` and `data.vocab_file` from it; in
            Python, give those of its shape (`read_architecture`) and vocabulary.
        sentences: with [MASK] in them, filled in at the end of a run.
        phases: parts of the run by name, in order, such as one of short and one of long sequences; they replace
            `num_steps` and `num_epochs`. An evaluation measures on windows of the current phase's length.
        batch_size_warmup: smaller batches at the start; None: none.
        length_warmup: shorter sequences at the start; None: none. An evaluation measures on the full length.

    Raises:
        ConfigError: for values out of range or that do not match.
        DataError: for data without a tokenizer, and weights that do not match.
    """

    best_metric: str | None = LOSS
    task_name = "fill-mask"
    better: Mapping[str, Better] = {LOSS: "lower", TOKENS: "higher", ACCURACY: "higher"}
    implied_keys = IMPLIED_KEYS
    start_keys = ("weights",)

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
        masking: Kind = "tokens",
        next_sentence: bool = False,
        evaluation_batch_size: int = 64,
        weights: Path | None = None,
        sentences: tuple[str, ...] = (),
        phases: dict[str, Phase] | None = None,
        batch_size_warmup: BatchSizeWarmup | None = None,
        length_warmup: LengthWarmup | None = None,
    ) -> None:
        counts = {"num_steps": num_steps, "batch_size": batch_size, "evaluation_batch_size": evaluation_batch_size}
        require_at_least(1, "recipe.", **counts, grad_accumulation_steps=grad_accumulation_steps)
        require_one_length(num_steps=num_steps, num_epochs=num_epochs, phases=phases)
        warmup = warmup_of(batch_size_warmup, length_warmup, num_epochs=num_epochs, data=data)
        plan = partial(Plan, phases, batch_size=batch_size, warmup=warmup, schedule=schedule, data=data)
        if num_epochs is None:
            self.plan = plan(num_steps=num_steps or _NUM_STEPS)  # an error is raised before data are read
        check_masking(mask_share, masking)
        _require_norm(max_grad_norm)
        if next_sentence:
            data, model = with_pairs(data, model)
        else:
            _require_no_pooler(model)
        if weights is not None:
            require_shape(model, weights)  # before data are read
        self.runtime, self.batch_size, self.next_sentence = runtime, batch_size, next_sentence
        self.evaluation_batch_size, self.sentences = evaluation_batch_size, sentences
        lengths = [None] if num_epochs is not None else self.plan.lengths
        self._datasets: dict[int | None, Datasets] = runtime.ranks.first_on_host(partial(load_lengths, data, lengths))
        self.datasets: Datasets = self._datasets[lengths[0]]
        if num_epochs is not None:
            self.length_key = "recipe.num_epochs"
            self.plan = plan(num_steps=max(1, math.ceil(num_epochs * len(self.datasets.train) / batch_size)))
        self.plan.require_enough_samples(runtime, grad_accumulation_steps)
        self.num_samples, self.restarts_schedules = self.plan.num_samples, len(self.plan.phases) > 1
        if phases is not None:
            self.length_key = f"recipe.phases.{[*phases][-1]}.num_steps"
        if len({stage.full_length for stage in self.plan.stages}) > 1:
            self.best_metric = None  # losses on sequences of different lengths cannot be compared
        self.tokenizer = self.datasets.tokenizer
        self._evaluations: list[tuple[int, float]] = []
        self._measured: dict[str, float] | None = None  # of the weights as they are
        self._check_data(data, model, masking)
        self.masking = Masking(self.tokenizer, mask_share, runtime.device, masking)
        held_out = partial(HeldOut, runtime, batch_size=evaluation_batch_size, next_sentence=next_sentence)
        self._held_out = {length: held_out(datasets) for length, datasets in self._datasets.items()}
        self.architecture = model
        self.model = self._set_up(optimizer, weights, max_grad_norm, grad_accumulation_steps)

    def _set_up(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        weights: Path | None,
        max_grad_norm: float | None,
        grad_accumulation_steps: int,
    ) -> Engine:
        module = self._module(weights)
        made = optimizer(parameter_groups(module))
        return self.runtime.setup(
            module,
            made,
            name="model",
            blocks=(Layer,),
            max_grad_norm=max_grad_norm,
            schedule=self.plan.schedule(float(made.param_groups[0]["lr"])),
            grad_accumulation_steps=grad_accumulation_steps,
        )

    def _module(self, weights: Path | None) -> MaskedLanguageModel:
        kind = PreTrainingModel if self.next_sentence else MaskedLanguageModel
        module = kind(self.architecture, self.tokenizer.vocab_size)
        if weights is not None:
            require_vocabulary(self.tokenizer, weights)
            load_hugging_face(module, weights)
        return module

    def _check_data(self, data: Any, model: Architecture, masking: Kind) -> None:
        if self.tokenizer is None:
            raise DataError("recipe=bert needs data with a tokenizer: use data=text, or give your Datasets one")
        for datasets in self._datasets.values():
            if len(datasets.train):
                _check_length(datasets.train, model)
                check_pairs(datasets.train, model, self.next_sentence)
                _check_unmasked(datasets.train, masking)
            if getattr(datasets.train, "num_documents", None) is not None:
                require_uncompiled(self.runtime, f"data.documents={getattr(data, 'documents', 'apart')}")

    def engines(self) -> dict[str, Engine]:
        """Returns the engine of the model."""
        return {"model": self.model}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yields batches of the training data, stage by stage; those of the last stage without end."""
        position, last = int(start), self.plan.stages[-1]
        while True:
            stage = self.plan.at(position)
            if len(self.plan.stages) > 1:
                self.runtime.tracker.message(f"training on {stage}")
            datasets = self._datasets_of(stage)
            num_steps = None if stage is last else math.ceil((stage.end - position) / stage.batch_size)
            yield from self.runtime.batches(
                datasets.train,
                batch_size=stage.batch_size,
                start=position,
                num_steps=num_steps,
                collate=datasets.collate,
                shuffle=datasets.shuffle,
            )
            assert num_steps is not None, "batches of the last stage have no end"
            position += num_steps * stage.batch_size

    def dearest_batches(self) -> Iterator[Batch]:
        """Returns batches of the stage whose activations take most memory."""
        dearest = max(self.plan.stages, key=lambda stage: stage.batch_size * self._num_activations(stage))
        return self.batches(dearest.start)

    def _num_activations(self, stage: Stage) -> int:
        """Elements that a sample leaves in a layer for the backward pass (Korthikanti et al., arXiv 2205.05198)."""
        length = stage.sequence_length or 1
        return length * (34 * self.architecture.hidden_size + 5 * self.architecture.num_heads * length)

    def costs(self) -> list[tuple[int, float]]:
        """Returns the multiplications per sample of each phase, where sequences get longer."""
        if len(self._datasets) == 1:
            return []
        model = self.architecture
        num_matrices = 3 if model.feed_forward == "geglu" else 2
        per_layer = 4 * model.hidden_size**2 + num_matrices * model.hidden_size * model.feed_forward_size
        return [
            (stage.end, float(stage.sequence_length * (per_layer + 2 * model.hidden_size * stage.sequence_length)))
            for stage in self.plan.stages
            if stage.sequence_length is not None
        ]

    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        """Masks the batch and updates the model."""
        self._measured = None
        train = self._datasets_of(self.plan.at(batch.position)).train
        for micro in self.model.micro_batches(batch):
            samples = samples_of(micro, train, self.tokenizer.pad)
            masked = masked_by(self.masking, samples.batch, self.runtime, "mask")
            if self.next_sentence:
                self.model.backward(*self._pair_loss(samples, masked))
                continue
            loss, num_masked = masked_loss(*samples.predict(self.model, masked), in_place=True)
            self.model.backward(loss, weight=num_masked)
        return {**self.model.step().metrics(), **self._levels(batch)}

    def _pair_loss(self, samples: Samples, masked: Masked) -> tuple[Tensor, Tensor]:
        assert isinstance(samples, Windows)
        logits, next_B2 = samples.predict_pairs(self.model, masked)
        length, is_static = masked.tokens_BT.shape[1], "masked_positions" in samples.batch.data
        per_sample = masked.labels_BK.shape[1] if is_static else max(1, round(self.masking.share * length))
        labels_B = samples.batch.data[LABEL]
        return pair_loss(*masked_loss(logits, masked.labels_BK, in_place=True), next_B2, labels_B, per_sample)

    def _levels(self, batch: Batch) -> dict[str, Last]:
        """Where a batch is in the plan."""
        levels = {"phase": Last(self.plan.at(batch.position).phase + 1)} if self.restarts_schedules else {}
        levels |= {f"epochs_{name}": Last(num) for name, num in self._epochs_of_sources(batch.position).items()}
        return {**levels, "batch_size": Last(batch.size)} if len(self.plan.stages) > 1 else levels

    def _epochs_of_sources(self, position: int) -> dict[str, float]:
        """The passes over each source of a mixture before a position, those of all phases together."""
        total: dict[str, float] = {}
        for stage in self.plan.stages:
            train = self._datasets_of(stage).train
            if hasattr(train, "epochs"):
                for name, num in train.epochs(max(0, min(position, stage.end) - stage.start)).items():
                    total[name] = total.get(name, 0.0) + num
        return total

    def _datasets_of(self, stage: Stage) -> Datasets:
        return self._datasets[stage.sequence_length]

    @property
    def _trained_stage(self) -> Stage:
        """The stage of the last step; before the first one, that of the first."""
        return self.plan.at(max(0, self.runtime.position - 1))

    @property
    def _evaluated(self) -> HeldOut:
        return self._held_out[self._trained_stage.full_length]

    def evaluate(self) -> dict[str, float]:
        """Returns loss and accuracy on the masked tokens of the held-out data."""
        totals = self._measured = self._evaluated.measure(self.model)
        self._evaluations.append((self.runtime.step, totals["accuracy"]))
        measured = {LOSS: totals["loss"], TOKENS: totals["accuracy"]}
        return {**measured, ACCURACY: totals[ACCURACY]} if self.next_sentence else measured

    def fill(self, sentence: str) -> Filled:
        """Predicts each [MASK] in `sentence`, with the others masked. Collective: every rank must call.

        Args:
            sentence: text with at least one [MASK].

        Returns:
            The sentence and the predictions.

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

    def text_model(self) -> BertOfTexts:
        """Returns what computes losses and embeddings of texts, in this process alone, such as to select some."""
        return BertOfTexts(self)

    def report(self) -> Report:
        """What the model has learnt, measured on the held-out split. Collective: every rank must call."""
        measured = self._measured or self._evaluated.measure(self.model)
        return Report.of(
            self._evaluated.examples,
            accuracy=measured["accuracy"],
            num_masked=int(measured["masked"]),
            tokenizer=self.tokenizer,
            baselines=self._evaluated.baselines()[TOKENS],
            sentences=map(self.fill, self.sentences),
        )

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Returns the loss of token frequencies, the accuracy of counts of neighbours, and for pairs the majority's."""
        return self._evaluated.baselines()

    def held_out_samples(self) -> list[SampleSums]:
        """Returns loss and accuracy by document, or by window of data that do not know documents."""
        return self._evaluated.held_out_samples()

    def held_out(self) -> Iterator[tuple[Batch, Masked, Tensor]]:
        """Yields (batch, masking, logits_BKV) over this rank's held-out windows. Collective: every rank must call."""
        for samples, masked, logits_BKV, _ in self._evaluated.outputs(self.model):
            yield samples.batch, masked, logits_BKV

    def masked_held_out(self) -> Iterator[tuple[Batch, Masked]]:
        """Yields (batch, masking) over this rank's held-out windows, the same each time."""
        return ((samples.batch, masked) for samples, masked in self._evaluated.samples())

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
            elif isinstance(data, Text | NvidiaBert):
                data = replace(data, tokenizer=tokenizer)
            elif isinstance(data, Mixture):
                data = data.with_tokenizer(tokenizer)
        elif data is None:  # not a WordPiece, or older than checkpoints with a tokenizer
            return None
        length = {"num_epochs": None, "num_steps": state["num_steps"]} if "num_steps" in state else {}
        return {"data": data, "weights": None, **length}

    def state_dict(self) -> dict[str, Any]:
        """Returns the tokenizer, the shape of the encoder and the length of the run."""
        stored = {"tokenizer": self.tokenizer.to_json()} if isinstance(self.tokenizer, WordPiece) else {}
        length = {} if self.plan.is_phased else {"num_steps": self.plan.phases[""].num_steps}
        shape = {"architecture": asdict(self.architecture)}
        return {"vocabulary": self.tokenizer.fingerprint, **length, **stored, **shape}

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
        if self._evaluations and not self.plan.is_phased:  # none in a process that started where training had ended
            num_epochs = self.epochs_at(self.runtime.position) or 0.0
            if message := outlook(report.rows, self._evaluations, num_epochs):
                self.runtime.run_log.message(message)

    def epochs_at(self, position: int) -> float | None:
        """Returns the passes over the training data before a position, those of all phases together."""
        parts = [
            (max(0, min(position, stage.end) - stage.start), len(self._datasets_of(stage).train))
            for stage in self.plan.stages
        ]
        return sum(num / length for num, length in parts) if all(length for _, length in parts) else None

    def fingerprints(self) -> dict[str, str]:
        """Returns the fingerprints of the windows of every length."""
        each = [datasets.fingerprints() for datasets in self._datasets.values()]
        return {name: " ".join(dict.fromkeys(one[name] for one in each)) for name in each[0]}

    def next_commands(self, run_dir: Path) -> list[list[str]]:
        """Returns the command that fills in a sentence."""
        sentence = self.sentences[0] if self.sentences else "A sentence with a [MASK] in it."
        return [["python", "-m", "trainkit_recipes.bert.fill", str(run_dir), sentence]]

    def exporters(self) -> dict[str, Exporter]:
        """Returns what writes a directory for transformers, an ONNX file, and a bundle for small devices."""
        return {
            "huggingface": partial(to_hugging_face, self),
            "onnx": partial(to_onnx, self),
            "edge": Sealing(partial(to_edge, self)),
        }


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Returns two groups: matrices, with weight decay, and the rest (biases, LayerNorms, relative biases), without."""
    decayed = {m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    return [
        {"params": [p for p in module.parameters() if p in decayed]},
        {"params": [p for p in module.parameters() if p not in decayed], "weight_decay": 0.0},
    ]


def _require_norm(max_grad_norm: float | None) -> None:
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"recipe.max_grad_norm={max_grad_norm}: must be a norm above 0, or null for no clipping")


def _require_no_pooler(model: Architecture) -> None:
    if model.pooler:
        raise ConfigError("recipe.model.pooler=true: without recipe.next_sentence=true nothing trains it; leave it out")


def _check_length(dataset: Any, model: Architecture) -> None:
    length = getattr(dataset, "sequence_length", None) or len(dataset[0]["tokens"])
    if length > model.max_length:
        raise ConfigError(
            f"data.sequence_length={length} is more than recipe.model.max_length={model.max_length}; "
            f"lower the one or raise the other"
        )


def _check_unmasked(dataset: Any, masking: Kind) -> None:
    if masking != "tokens" and "masked_positions" in dataset[0]:
        raise ConfigError(
            f"recipe.masking={masking}: the samples are masked already, token by token; set data.static_masking=false, "
            f"or leave recipe.masking out"
        )
