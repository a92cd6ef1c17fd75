"""Bed: one text, one vocabulary and one set of weights, and the loops of every library on them."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import trainkit
from benchmarks.peer_loops import LR, MASK_SHARE, MAX_GRAD_NORM, Inputs, Loop, Peer, own_steps
from trainkit.data import Examples, Text
from trainkit_recipes.bert.data import IGNORED, Masking
from trainkit_recipes.bert.finetuning.recipe import FineTuning
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.bert.model import Architecture
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling
from trainkit_recipes.bert.samples import samples_of

NUM_TEXTS = 20_000
SHAPE = Architecture(hidden_size=256, num_layers=4, num_heads=4, feed_forward_size=1024)
LENGTH, LONGEST = 128, 512
Form = Literal["joined", "apart", "padded"]


@dataclass
class Bed:
    """Text, vocabulary and weights in a folder; what is there already is used again.

    Args:
        folder: to write into.
        text: a file or folder of text; None: the built-in documentation.
        vocab_size: of the vocabulary that is learnt from the text.
    """

    folder: Path
    text: Path | None
    vocab_size: int

    @cached_property
    def texts(self) -> Path:
        """A .jsonl file of documents, of at most LONGEST tokens."""
        path = self.folder / "texts.jsonl"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            source = Text(path=self.text, vocab_size=self.vocab_size, sequence_length=LONGEST, documents="padded")
            loaded = replace(source, cache_dir=self.folder / "cache").load(progress=False)
            with path.open("w", encoding="utf-8") as file:
                for number in range(min(NUM_TEXTS, len(loaded.train))):
                    text = loaded.tokenizer.decode(loaded.train[number]["tokens"].tolist()[1:-1])
                    file.write(json.dumps({"text": text}) + "\n")
        return path

    def data(self, length: int, form: Form) -> Text:
        cache = self.folder / "cache"
        return Text(
            path=self.texts, vocab_size=self.vocab_size, sequence_length=length, documents=form, cache_dir=cache
        )

    @cached_property
    def tokenizer(self) -> Any:
        return self.data(LENGTH, "joined").load(progress=False).tokenizer

    @cached_property
    def weights(self) -> Path:
        """A directory of transformers, with the pooler and both heads of pre-training."""
        import transformers

        path = self.folder / f"weights-{self.tokenizer.vocab_size}"
        if not (path / "config.json").exists():
            torch.manual_seed(0)
            config = transformers.BertConfig(
                vocab_size=self.tokenizer.vocab_size,
                hidden_size=SHAPE.hidden_size,
                num_hidden_layers=SHAPE.num_layers,
                num_attention_heads=SHAPE.num_heads,
                intermediate_size=SHAPE.feed_forward_size,
                pad_token_id=self.tokenizer.pad,
            )
            model = transformers.BertForPreTraining(config)
            model.save_pretrained(path)
            (path / "vocab.txt").write_text("\n".join(self.tokenizer.lines()) + "\n", encoding="utf-8")
        return path

    @cached_property
    def their_tokenizer(self) -> Any:
        import transformers

        return transformers.AutoTokenizer.from_pretrained(self.weights)

    # -- pre-training --------------------------------------------------------------------------------------------------

    def own(self, length: int, form: Form, batch_size: int, dropout: float) -> MaskedLanguageModelling:
        shape = replace(SHAPE, dropout=dropout, attention_dropout=dropout)
        return MaskedLanguageModelling(
            runtime(),
            data=self.data(length, form),
            model=shape,
            optimizer=partial(torch.optim.AdamW, lr=LR, fused=True),
            batch_size=batch_size,
            num_steps=100_000,
            mask_share=MASK_SHARE,
            max_grad_norm=MAX_GRAD_NORM,
            weights=self.weights,
        )

    def peer(self, length: int, form: Form, batch_size: int, dropout: float, **options: Any) -> Peer:
        """The same windows, or documents one by one, in memory."""
        import transformers

        train = self.data(length, form).load(progress=False).train
        stride = max(1, len(train) // 8192)
        samples = []
        for index in range(0, len(train), stride):
            tokens = train[index]["tokens"]
            is_special = (tokens[:, None] == torch.tensor(self.tokenizer.special_tokens)).any(1)
            samples.append({"input_ids": tokens.tolist(), "special_tokens_mask": is_special.int().tolist()})
        collator = transformers.DataCollatorForLanguageModeling(self.their_tokenizer, mlm_probability=MASK_SHARE)

        def collate(some: Sequence[Any]) -> dict[str, Tensor]:
            inputs = dict(collator(list(some)))
            inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
            return inputs

        make = partial(self._theirs, "BertForMaskedLM", dropout)
        return Peer(make, samples, collate, batch_size, self.folder / "trainer", options)

    def _theirs(self, kind: str, dropout: float, **more: Any) -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, kind).from_pretrained(
            self.weights, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **more
        )
        return model.train()

    # -- fine-tuning ---------------------------------------------------------------------------------------------------

    @cached_property
    def labelled(self) -> Path:
        """A .csv of texts in two classes; what they are does not matter to the time."""
        path = self.folder / "labelled.csv"
        if not path.exists():
            texts = [json.loads(line)["text"] for line in self.texts.read_text(encoding="utf-8").splitlines()]
            rows = [(text, "array" if "array" in text.lower() else "other") for text in texts[:: NUM_TEXTS // 4000]]
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
        return path

    def own_classifier(self, batch_size: int) -> FineTuning:
        return FineTuning(
            runtime(),
            data=Examples(path=self.labelled),
            optimizer=partial(torch.optim.AdamW, lr=LR, fused=True),
            weights=self.weights,
            batch_size=batch_size,
            num_steps=100_000,
            max_length=LONGEST,
        )

    def peer_classifier(self, own: FineTuning, batch_size: int, **options: Any) -> Peer:
        """The same examples, with the head of `own`."""
        import transformers

        train = own.datasets.train
        rows = [train[index] for index in range(len(train))]
        samples = [
            {"input_ids": row["tokens"][: int(row["lengths"])].tolist(), "labels": int(row["labels"])} for row in rows
        ]
        collator = transformers.DataCollatorWithPadding(self.their_tokenizer)
        state = own.model.module.state_dict()

        def make() -> nn.Module:
            model = self._theirs("BertForSequenceClassification", 0.1, num_labels=own.task.num_outputs)
            model.load_state_dict(
                {"classifier.weight": state["head.weight"], "classifier.bias": state["head.bias"]}, strict=False
            )
            return model

        def collate(some: Sequence[Any]) -> dict[str, Tensor]:
            return dict(collator([dict(sample) for sample in some]))

        return Peer(make, samples, collate, batch_size, self.folder / "trainer", options)


def runtime() -> trainkit.Runtime:
    return trainkit.Runtime(strategy="single", device="cpu", hang_timeout_s=None, tracker=trainkit.Tracker())


# -- one loss ----------------------------------------------------------------------------------------------------------


def own_loop(recipe: MaskedLanguageModelling) -> tuple[Loop, Inputs]:
    """Our loop on masked language modelling, and inputs for transformers of which its `loss` is."""
    train, tokenizer = recipe.datasets.train, recipe.tokenizer
    batch = next(iter(recipe.batches()))
    samples = samples_of(batch, train, tokenizer.pad)
    masking = Masking(tokenizer, MASK_SHARE, torch.device("cpu"))
    num_draws = masking.num_draws(samples.batch.tokens.shape[1])
    masked = masking(samples.batch.tokens, recipe.runtime.rand(samples.batch, num_draws, name="check"))
    labels = torch.full_like(masked.tokens_BT, IGNORED)
    used_BK = masked.labels_BK != IGNORED
    rows_B1 = torch.arange(len(labels))[:, None].expand_as(masked.chosen_BK)
    labels[rows_B1[used_BK], masked.chosen_BK[used_BK]] = masked.labels_BK[used_BK]
    attended = masked.tokens_BT != tokenizer.pad
    longest = int(attended.sum(1).max())
    inputs = {"input_ids": masked.tokens_BT, "attention_mask": attended.long(), "labels": labels}

    def loss(_: Inputs) -> float:
        with torch.no_grad():
            return float(evaluated(recipe.model, lambda: masked_loss(*samples.predict(recipe.model, masked))[0]))

    return Loop(own_steps(recipe), loss), {name: tensor[:, :longest].contiguous() for name, tensor in inputs.items()}


def own_classifier_loop(recipe: FineTuning) -> tuple[Loop, Inputs]:
    batch = next(iter(recipe.batches()))
    tokens, lengths = batch.tokens, batch.lengths
    inputs = {
        "input_ids": tokens,
        "attention_mask": (torch.arange(tokens.shape[1]) < lengths[:, None]).long(),
        "labels": batch.labels,
    }

    def loss(_: Inputs) -> float:
        with torch.no_grad():
            return float(evaluated(recipe.model, lambda: recipe.task.loss(recipe.model, batch)[0]))

    return Loop(own_steps(recipe), loss), inputs


def evaluated(engine: trainkit.Engine, compute: Callable[[], Tensor]) -> Tensor:
    engine.module.eval()
    try:
        return compute()
    finally:
        engine.module.train()
