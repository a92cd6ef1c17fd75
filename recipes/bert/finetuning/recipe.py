"""FineTuning: a trained encoder learns a task from labelled texts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from trainkit import Engine, Last, Recipe, Runtime, Schedule
from trainkit.data import Batch, Datasets, Example, WordPiece
from trainkit.errors import CheckpointError, ConfigError, require_above_zero, require_at_least
from trainkit.evaluation import HeldOutSamples, SampleSums
from trainkit.export import Exporter, Sealing
from trainkit_recipes.bert.architecture import Architecture
from trainkit_recipes.bert.finetuning.answers import Answering
from trainkit_recipes.bert.finetuning.export import to_edge, to_hugging_face, to_onnx
from trainkit_recipes.bert.finetuning.layers import freeze, make_optimizer, num_frozen_at
from trainkit_recipes.bert.finetuning.lora import add_lora
from trainkit_recipes.bert.finetuning.model import FineTuned, Pooling
from trainkit_recipes.bert.finetuning.samples import Encoder, Samples, text_of
from trainkit_recipes.bert.finetuning.task import Baselines, Groups, Prediction
from trainkit_recipes.bert.finetuning.tasks import TaskName, make_task
from trainkit_recipes.bert.finetuning.weights import Pretrained, check_vocabulary
from trainkit_recipes.bert.finetuning.words import joined
from trainkit_recipes.bert.model import Bert, Layer
from trainkit_recipes.bert.phases import require_one_length
from trainkit_recipes.bert.samples import require_uncompiled


class FineTuning(Recipe):
    """Trains an encoder with a new head on labelled texts.

    Args:
        runtime: of the run.
        data: a specification such as `Examples`, whose data sets are lists of `Example`.
        optimizer: makes one from parameter groups; biases and LayerNorms are in groups without weight decay.
        task: what is learnt.
        weights: a run or a checkpoint of recipe=bert or of this one, or a Hugging Face directory: its shape and its
            vocabulary are used; None: from scratch.
        model: the shape of the encoder from scratch.
        schedule: of the learning rate.
        batch_size: samples in a global batch.
        num_epochs: length of the run in passes over the training data, rounded up to whole batches.
        num_steps: length of the run in global batches, in place of `num_epochs`.
        grad_accumulation_steps: micro-batches per step.
        max_grad_norm: the largest norm of the gradient; None: no clipping.
        max_length: tokens of a text; longer ones are cut, and counted. None: as many as the model takes.
        pooling: of the tokens of a text: `first`, the encoder's pooler on [CLS], or `mean`.
        dropout: of the encoder and the head; None: the encoder's.
        attention_dropout: of the encoder; None: the encoder's own.
        classes: of a classification or the tags, in the order of the outputs; None: those of the training data.
        class_weights: of a classification: `balanced`, or a weight for each class by name; None: all are 1.
        num_layers_frozen: the embeddings and so many first layers are not trained; 0: all are trained.
        unfreeze_every: steps after which one more layer is trained, from the top down; None: the frozen ones stay so.
        layer_decay: the learning rate of a layer is that of the layer above times this.
        lora_rank: of low-rank updates of the encoder's matrices, which are then trained in place of the encoder; None:
            the encoder is trained.
        stride: of question answering, tokens that two windows of a context share.
        max_answer_length: of question answering, in tokens.
        positive_from: of sentence embeddings, the score from which a training pair is similar; None: all are.
        group_size: of sentence embeddings, samples that are told apart from one another.
        temperature: of sentence embeddings, what cosines are divided by.
        evaluation_batch_size: samples in a global batch of an evaluation.

    Raises:
        ConfigError: for values out of range or that do not match.
        DataError: for examples or weights that cannot be used.
    """

    start_keys = ("weights", "model")

    def __init__(
        self,
        runtime: Runtime,
        *,
        data: Any,
        optimizer: Callable[..., torch.optim.Optimizer],
        task: TaskName = "classification",
        weights: Path | None = None,
        model: Architecture | None = None,
        schedule: Schedule | None = None,
        batch_size: int = 32,
        num_epochs: float | None = None,
        num_steps: PositiveInt | None = None,
        grad_accumulation_steps: int = 1,
        max_grad_norm: float | None = 1.0,
        max_length: int | None = None,
        pooling: Pooling = "first",
        dropout: float | None = None,
        attention_dropout: float | None = None,
        classes: tuple[str, ...] | None = None,
        class_weights: Literal["balanced"] | dict[str, float] | None = None,
        num_layers_frozen: int = 0,
        unfreeze_every: PositiveInt | None = None,
        layer_decay: float = 1.0,
        lora_rank: PositiveInt | None = None,
        stride: int = 64,
        max_answer_length: int = 30,
        positive_from: float | None = None,
        group_size: int = 8,
        temperature: float = 0.05,
        evaluation_batch_size: int = 64,
    ) -> None:
        sizes = {"batch_size": batch_size, "evaluation_batch_size": evaluation_batch_size, "num_steps": num_steps}
        more = {"grad_accumulation_steps": grad_accumulation_steps, "max_answer_length": max_answer_length}
        require_at_least(1, "recipe.", **sizes, **more)
        require_at_least(0, "recipe.", num_layers_frozen=num_layers_frozen, stride=stride)
        require_above_zero("recipe.", temperature=temperature, layer_decay=layer_decay, max_grad_norm=max_grad_norm)
        require_one_length(num_steps=num_steps, num_epochs=num_epochs, phases=None)
        self.runtime, self.batch_size, self.evaluation_batch_size = runtime, batch_size, evaluation_batch_size
        require_uncompiled(runtime, "recipe=bert_finetune")
        _check_freezing(num_layers_frozen, unfreeze_every)
        self.pretrained = runtime.ranks.first_on_host(lambda: _pretrained(weights, model))
        loaded: Datasets = runtime.ranks.first_on_host(data.load)
        self._train, self.held_out_examples = loaded.train, loaded.held_out
        self.tokenizer = self._tokenizer(loaded, data)
        self.architecture = self._architecture(task, pooling, dropout, attention_dropout, num_layers_frozen)
        self.encoder = Encoder(self.tokenizer, _length(max_length, self.architecture.max_length))
        of_classes = {"pooling": pooling, "classes": classes, "class_weights": class_weights}
        of_answers = {"stride": stride, "max_answer_length": max_answer_length}
        contrast = {"positive_from": positive_from, "group_size": group_size, "temperature": temperature}
        num_parts = runtime.ranks.world_size * grad_accumulation_steps
        settings: dict[str, Any] = {**of_classes, **of_answers, **contrast}
        self.task = make_task(task, self._train, batch_size=batch_size, num_parts=num_parts, **settings)
        self.best_metric, self.task_name = self.task.best_metric, self.task.hub_name
        self.better = {"held_out_loss": "lower", **self.task.better}
        self.datasets: Datasets = runtime.ranks.first_on_host(lambda: self._encoded(loaded))
        num_steps = self._num_steps(num_steps, num_epochs)
        self.num_samples = batch_size * num_steps
        self._num_layers_frozen, self._unfreeze_every, self._lora_rank = num_layers_frozen, unfreeze_every, lora_rank
        self._setup = partial(
            runtime.setup,
            name="model",
            blocks=(Layer,),
            max_grad_norm=max_grad_norm,
            schedule=schedule.until(num_steps, batch_size) if isinstance(schedule, Schedule) else schedule,
            grad_accumulation_steps=grad_accumulation_steps,
        )
        self._make_optimizer, self._layer_decay = optimizer, layer_decay
        self._baselines: Baselines = {}
        self._guesses: dict[str, Sequence[Any]] = {}
        self._measured: list[Prediction] = []
        self._group_by = getattr(data, "group_by", None)
        self.num_frozen = num_layers_frozen
        self.model = self._engine(self.pretrained.encoder(self.architecture))

    def _num_steps(self, num_steps: int | None, num_epochs: float | None) -> int:
        if num_steps is not None:
            return num_steps
        self.length_key = "recipe.num_epochs"
        return max(1, math.ceil((num_epochs or 3) * len(self.datasets.train) / self.batch_size))

    # -- what a run is made of ---------------------------------------------------------------------------------------

    def engines(self) -> dict[str, Engine]:
        """Returns the engine of the model."""
        return {"model": self.model}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Returns batches of the training data."""
        return self.runtime.batches(self.datasets.train, batch_size=self.batch_size, start=start)

    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float | Last]:
        """Updates the model; before it, trains one more layer where it is time."""
        self._thaw(num_frozen_at(self._num_layers_frozen, self._unfreeze_every, batch.position // self.batch_size))
        for micro in self.model.micro_batches(batch):
            loss, weight = self.task.loss(self.model, micro)
            self.model.backward(loss, weight=weight)
        return self.model.step().metrics()

    def evaluate(self) -> dict[str, float]:
        """Returns the task's metrics on the held-out data, and the mean loss where the task has one."""
        predictions = self._measured = self.predictions(self.datasets.held_out)
        metrics = self.task.measured(self.held_out_examples, self.task.values(predictions, self.datasets.held_out))
        if weight := sum(prediction.weight for prediction in predictions):
            metrics = {"held_out_loss": sum(prediction.loss for prediction in predictions) / weight, **metrics}
        return metrics

    def baselines(self) -> Baselines:
        """Returns the metrics of baselines without a network. Rank 0 computes them, once."""
        if not self._baselines:
            found, error = {}, None
            if self.runtime.ranks.is_main:
                try:
                    found = self.task.guesses(self._train, self.held_out_examples)
                except Exception as caught:
                    error = caught
            self.runtime.ranks.raise_first(error)
            self._guesses = self.runtime.ranks.broadcast_object(found)
            self._baselines = self.task.baselines(self._guesses, self.held_out_examples)
        return self._baselines

    def held_out_samples(self) -> list[HeldOutSamples]:
        """Returns the predictions of the last evaluation beside those of baselines, by example or group of them."""
        self.baselines()
        samples, groups = self.datasets.held_out, self._groups()
        values: dict[str | None, Sequence[Any]] = {None: self.task.values(self._measured, samples)}
        values |= {name: guesses for name, guesses in self._guesses.items()}
        found = self.task.held_out_samples(self.held_out_examples, values, groups)
        if any(prediction.weight for prediction in self._measured):
            found.append(self._losses(samples, groups))
        return found

    def _groups(self) -> Groups:
        if self._group_by is None:
            return self.task.groups(self.held_out_examples)
        found = [example.entry(self._group_by).group for example in self.held_out_examples]
        keys = [number if group is None else group for number, group in enumerate(found)]  # a row without is by itself
        return Groups.by(keys, f"groups by {self._group_by}")

    def _losses(self, samples: Samples, groups: Groups) -> SampleSums:
        examples = self.task.examples_of(self._measured, samples)
        rows = [[prediction.loss, prediction.weight] for prediction in self._measured]
        losses = SampleSums(rows=rows, of_sums=lambda sums: {"held_out_loss": sums[..., 0] / sums[..., 1]})
        return losses.of_groups(examples if groups.numbers is None else groups.numbers[examples], groups.unit)

    @torch.no_grad()
    def predictions(self, samples: Samples) -> list[Prediction]:
        """Predicts samples, each once, in their order. Collective: every rank must call."""
        own: list[Prediction] = []
        self.model.module.eval()
        try:
            for batch in self.runtime.evaluation_batches(samples, batch_size=self.evaluation_batch_size):
                own += self.task.predictions(self.model, batch, samples)
        finally:
            self.model.module.train()
        everyone = self.runtime.ranks.all_gather_object(own)
        return sorted(
            (prediction for predictions in everyone for prediction in predictions),
            key=lambda prediction: prediction.index,
        )

    def predict(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Predicts examples, whose labels are not used. Collective: every rank must call.

        Returns:
            A row for each: its texts, the prediction, and what belongs to it, by column.

        Raises:
            DataError: naming an example without the texts that the task needs.
        """
        samples = self.task.samples(examples, self.encoder, "predict")
        rows = self.task.rows(self.predictions(samples), samples)
        texts = [{"text": text_of(e.text), **({} if e.pair is None else {"pair": text_of(e.pair)})} for e in examples]
        return [{**text, **row} for text, row in zip(texts, rows, strict=True)]

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @classmethod
    def restored_arguments(cls, state: Mapping[str, Any], data: Any) -> dict[str, Any]:
        """Returns the checkpoint's tokenizer, shape and classes; nothing is read from the weights it started from."""
        tokenizer = WordPiece.from_json(state["tokenizer"])
        data = Datasets((), (), tokenizer=tokenizer) if data is None else replace(data, tokenizer=tokenizer)
        kept = {"classes": tuple(state["task"]["classes"])} if "classes" in state["task"] else {}
        length = {"num_epochs": None, "num_steps": state["num_steps"]}
        model = Architecture(**{**state["architecture"], "pooler": False})
        return {"data": data, "weights": None, "model": model, **kept, **length}

    def state_dict(self) -> dict[str, Any]:
        """Returns the tokenizer, the shape, the classes, the length of the run, and the layers that are frozen."""
        return {
            "tokenizer": self.tokenizer.to_json(),
            "architecture": asdict(self.architecture),
            "task": {"name": self.task.name, **self.task.state_dict()},
            "num_steps": self.num_samples // self.batch_size,
            "num_frozen": self.num_frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Freezes the layers that were frozen in the checkpoint, and checks that it is of this task."""
        now = {"name": self.task.name, **self.task.state_dict()}
        if isinstance(self.task, Answering):  # other training data may have other questions
            self.task.has_unanswerable = now["has_unanswerable"] = state["task"]["has_unanswerable"]
        if now != state["task"]:
            raise CheckpointError(
                f"the checkpoint was trained for {state['task']}, and this run for {now}: give the data, recipe.task "
                f"and recipe.classes that it was trained with, or a new run_dir"
            )
        if WordPiece.from_json(state["tokenizer"]).meaning != self.tokenizer.meaning:
            raise CheckpointError("the checkpoint has another vocabulary: give the recipe.weights that it started from")
        self._thaw(state["num_frozen"])

    def next_commands(self, run_dir: Path) -> list[list[str]]:
        """Returns the command that predicts a text."""
        example = self.held_out_examples[0]
        words = " ".join(text_of(example.text).split()[:12])
        pair = [] if example.pair is None else [" ".join(text_of(example.pair).split()[:12])]
        return [["python", "-m", "trainkit_recipes.bert.finetuning.predict", str(run_dir), words, *pair]]

    def exporters(self) -> dict[str, Exporter]:
        """Returns what writes a directory for transformers, an ONNX file, and a bundle for small devices."""
        return {
            "huggingface": partial(to_hugging_face, self),
            "onnx": partial(to_onnx, self),
            "edge": Sealing(partial(to_edge, self)),
        }

    # -- inside ------------------------------------------------------------------------------------------------------

    def _tokenizer(self, loaded: Datasets, data: Any) -> WordPiece:
        given = loaded.tokenizer or self.pretrained.tokenizer
        if given is None and self.pretrained.path is not None:
            raise ConfigError(
                f"recipe.weights={self.pretrained.path} has no vocab.txt or tokenizer.json: set data.vocab_file"
            )
        if given is None:
            texts = [joined(example) for example in self._train]
            given = WordPiece.learn(
                texts, getattr(data, "vocab_size", 4096), lowercase=getattr(data, "lowercase", None)
            )
        if self.pretrained.path is not None:
            check_vocabulary(given, self.pretrained, getattr(data, "vocab_file", None))
        # Not as many rows as the weights have: a checkpoint, which knows the tokenizer alone, must fit later.
        self.pretrained = replace(self.pretrained, vocab_size=given.vocab_size)
        return given

    def _architecture(
        self,
        task: TaskName,
        pooling: Pooling,
        dropout: float | None,
        attention_dropout: float | None,
        num_layers_frozen: int,
    ) -> Architecture:
        own = self.pretrained.architecture
        if num_layers_frozen > own.num_layers:
            raise ConfigError(
                f"recipe.num_layers_frozen={num_layers_frozen}: must be 0 to {own.num_layers}, the layers"
            )
        return replace(
            own,
            pooler=pooling == "first" and task in ("classification", "regression"),
            dropout=own.dropout if dropout is None else dropout,
            attention_dropout=own.attention_dropout if attention_dropout is None else attention_dropout,
        )

    def _encoded(self, loaded: Datasets) -> Datasets:
        facts = dict(loaded.facts)
        if not self._train:  # only the trained engines are needed
            return Datasets((), (), tokenizer=self.tokenizer)
        train = self.task.samples(self._train, self.encoder, "train")
        held_out = self.task.samples(self.held_out_examples, self.encoder, "held_out")
        return Datasets(train, held_out, tokenizer=self.tokenizer, facts={**facts, **self.encoder.facts()})

    def _module(self, encoder: Bert) -> FineTuned:
        module = FineTuned(
            encoder,
            self.task.num_outputs,
            self.task.pooling,
            centre=self.task.centre,
            scale=self.task.scale,
        )
        if self._lora_rank is not None:
            add_lora(module, self._lora_rank)
        freeze(module, self.architecture.num_layers, self.num_frozen)
        return module

    def _engine(self, encoder: Bert, inherit: Engine | None = None) -> Engine:
        module = self._module(encoder)
        optimizer = make_optimizer(self._make_optimizer, module, self.architecture.num_layers, self._layer_decay)
        return self._setup(module, optimizer, inherit=inherit)

    def _thaw(self, num_frozen: int) -> None:
        """Makes the engine again where another number of layers is frozen; the weights stay. Collective."""
        if num_frozen != self.num_frozen:
            self.num_frozen = num_frozen
            # A new module: not every strategy can train another set of the parameters that it has spread.
            blank = replace(self.pretrained, path=None)
            self.model = self._engine(blank.encoder(self.architecture), inherit=self.model)


def _pretrained(weights: Path | None, model: Architecture | None) -> Pretrained:
    if weights is not None:
        return Pretrained.find(Path(weights))
    if model is None:
        raise ConfigError("recipe.weights=null trains from scratch, which needs a recipe.model; or give recipe.weights")
    return Pretrained(model, 0, None, None)


def _check_freezing(num_layers_frozen: int, unfreeze_every: int | None) -> None:
    if unfreeze_every is not None and not num_layers_frozen:
        raise ConfigError(
            f"recipe.unfreeze_every={unfreeze_every} with recipe.num_layers_frozen=0: nothing is frozen; set "
            f"num_layers_frozen, or leave unfreeze_every out"
        )


def _length(max_length: int | None, longest: int) -> int:
    if max_length is not None and not 8 <= max_length <= longest:
        raise ConfigError(f"recipe.max_length={max_length}: must be 8 to {longest}, the length that the model takes")
    return max_length or longest
