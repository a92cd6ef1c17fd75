"""Tagging: a tag for each word, such as the entities of CoNLL."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainkit import Engine
from trainkit.data import Batch, Example
from trainkit.errors import DataError, nearest
from trainkit.evaluation import Better, HeldOutSamples, SampleSums
from trainkit_recipes.bert.data import IGNORED
from trainkit_recipes.bert.finetuning import metrics
from trainkit_recipes.bert.finetuning.samples import Encoder, Samples, Tokens
from trainkit_recipes.bert.finetuning.task import Groups, Prediction, Purpose, Task, outputs_of
from trainkit_recipes.bert.finetuning.words import majority

_METRICS = ("accuracy", "precision", "recall", "f1")


class Tagging(Task):
    """One tag per word; the first token of a word carries its tag, the others none.

    Words beyond the maximum length get the tag `O`, or the first one where there is no `O`.

    Args:
        train: the training examples; empty: the classes are given.
        classes: the tags, in the order of the outputs; None: those of `train`, sorted.

    Raises:
        DataError: for a sentence without tags, or with other ones.
    """

    name = "token_classification"
    hub_name = "token-classification"
    pooling = None

    def __init__(self, train: Sequence[Example], *, classes: Sequence[str] | None) -> None:
        counts = Counter(tag for example in train for tag in tags_of(example))
        self.classes = tuple(sorted(counts, key=lambda tag: (tag != "O", tag)) if classes is None else classes)
        self.num_outputs = len(self.classes)
        if len(self.classes) < 2:
            raise DataError(f"data.label: the training examples have {len(self.classes)} tags; it takes 2 or more")
        if train and (empty := [name for name in self.classes if not counts[name]]):
            raise DataError(f"tag {empty[0]!r} of recipe.classes is on no training word: add some, or leave it out")
        self._has_entities = any(tag.startswith(("B-", "I-")) for tag in self.classes)
        self.score = "held_out_f1" if self._has_entities else "held_out_accuracy"
        self.best_metric = f"-{self.score}"
        self.better: Mapping[str, Better] = dict.fromkeys(map("held_out_{}".format, _METRICS), "higher")
        self._otherwise = "O" if "O" in self.classes else self.classes[0]

    def samples(self, examples: Sequence[Example], encoder: Encoder, purpose: Purpose) -> Samples:
        """Encodes examples word by word; see `Task`."""
        tokenizer, numbers = encoder.tokenizer, {tag: number for number, tag in enumerate(self.classes)}
        texts: list[Tokens] = []
        firsts: list[list[int]] = []
        labels: list[list[int]] = []
        for example in examples:
            words = words_of(example)
            pieces = [ids or [tokenizer.unknown] for ids in tokenizer.encode_batch(words)]
            texts.append(encoder.join([piece for word in pieces for piece in word]))
            starts = 1 + np.cumsum([0, *(len(word) for word in pieces[:-1])])
            firsts.append([int(start) for start in starts if start < len(texts[-1].numbers) - 1])
            if purpose != "predict":
                self._require_known(example)
                row = [IGNORED] * len(texts[-1].numbers)
                for start, tag in zip(firsts[-1], tags_of(example), strict=False):
                    row[start] = numbers[tag]
                labels.append(row)
        targets = {} if purpose == "predict" else {"labels": labels}
        return Samples(texts, tokenizer.pad, targets, notes=list(zip(examples, firsts, strict=True)))

    def loss(self, engine: Engine, batch: Batch) -> tuple[Tensor, Tensor | float | None]:
        """Computes the cross-entropy over the words; see `Task`."""
        outputs_BTC = outputs_of(engine, batch)
        num_words = (batch.labels != IGNORED).sum()
        total = F.cross_entropy(outputs_BTC.flatten(0, 1), batch.labels.flatten(), reduction="sum")
        return total / num_words.clamp(min=1), num_words

    def predictions(self, engine: Engine, batch: Batch, samples: Samples) -> list[Prediction]:
        """Predicts the tags of the words; see `Task`."""
        outputs_BTC = outputs_of(engine, batch)
        best_BT = outputs_BTC.argmax(dim=-1).cpu()
        losses_B, nums_B = torch.zeros(len(batch)), torch.zeros(len(batch))
        if "labels" in batch.data:
            losses_BT = F.cross_entropy(outputs_BTC.transpose(1, 2), batch.labels, reduction="none")
            losses_B, nums_B = losses_BT.sum(dim=1), (batch.labels != IGNORED).sum(dim=1)
        found = []
        rows = zip(batch.indices.tolist(), best_BT, losses_B.tolist(), nums_B.tolist(), strict=True)
        for index, best_T, loss, num in rows:
            example, firsts = samples.notes[index]
            tags = [self.classes[number] for number in best_T[firsts].tolist()]
            found.append(Prediction(index, tags + [self._otherwise] * (len(words_of(example)) - len(tags)), loss, num))
        return found

    def values(self, predictions: Sequence[Prediction], samples: Samples) -> list[list[str]]:
        """Returns the tags of each sentence; see `Task`."""
        return [prediction.value for prediction in predictions]

    def measured(self, examples: Sequence[Example], values: Sequence[Sequence[str]]) -> dict[str, float]:
        """Measures the tags of all words, and the entities where tags are of that kind; see `Task`."""
        return self._measured([tags_of(example) for example in examples], values)

    def guesses(self, train: Sequence[Example], held_out: Sequence[Example]) -> dict[str, Sequence[list[str]]]:
        """Returns the most frequent tag of each word; see `Task`."""
        counts: defaultdict[str, list[str]] = defaultdict(list)
        for example in train:
            for word, tag in zip(words_of(example), tags_of(example), strict=True):
                counts[word].append(tag)
        frequent = majority([tag for tags in counts.values() for tag in tags])
        known = {word: majority(tags) for word, tags in counts.items()}
        tags = [[known.get(word, frequent) for word in words_of(example)] for example in held_out]
        return {"most frequent tag of the word": tags}

    def groups(self, examples: Sequence[Example]) -> Groups:
        """Returns that a sentence is by itself; its words are not."""
        return Groups("sentences")

    def held_out_samples(
        self, examples: Sequence[Example], values: Mapping[str | None, Sequence[list[str]]], groups: Groups
    ) -> list[HeldOutSamples]:
        """Returns counts of words and entities by sentence; see `Task`."""
        truth = [tags_of(example) for example in examples]
        rows = {name: metrics.tag_counts(truth, given) for name, given in values.items()}

        def of_sums(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
            found = {f"held_out_{name}": value for name, value in metrics.of_tag_counts(sums).items()}
            return found if self._has_entities else {"held_out_accuracy": found["held_out_accuracy"]}

        samples = SampleSums(
            rows=rows.pop(None),
            of_sums=of_sums,
            beside={name: of for name, of in rows.items() if name is not None},
            unit=groups.unit,
        )
        return [samples.of_groups(groups.numbers, groups.unit)]

    def rows(self, predictions: Sequence[Prediction], samples: Samples) -> list[dict[str, Any]]:
        """Returns the tags of the words."""
        return [{"prediction": " ".join(prediction.value)} for prediction in predictions]

    def state_dict(self) -> dict[str, Any]:
        """Returns the tags."""
        return {"classes": list(self.classes)}

    def _measured(self, truth: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
        right = [tag for tags in truth for tag in tags]
        found = {"held_out_accuracy": metrics.accuracy(right, [tag for tags in predictions for tag in tags])}
        if self._has_entities:
            scores = metrics.entity_scores(truth, predictions)
            found |= {f"held_out_{name}": value for name, value in scores.items()}
        return found

    def _require_known(self, example: Example) -> None:
        for word, tag in zip(words_of(example), tags_of(example), strict=True):
            if tag not in self.classes:
                raise DataError(
                    f"{example.where}: tag {tag!r} of {word!r} is not one of the {len(self.classes)} tags, "
                    f"{', '.join(self.classes[:20])}; correct it, or add training examples of it."
                    f"{nearest(tag, self.classes)}"
                )


def words_of(example: Example) -> list[str]:
    """Returns the words of an example; a string is split at white space."""
    return example.text if isinstance(example.text, list) else example.text.split()


def tags_of(example: Example) -> list[str]:
    """Returns the tags of an example.

    Raises:
        DataError: where there are not as many as words.
    """
    tags = example.label.split() if isinstance(example.label, str) else example.label
    num_words = len(words_of(example))
    if not isinstance(tags, list) or len(tags) != num_words:
        given = f"{len(tags)} tags" if isinstance(tags, list) else "no list of tags"
        raise DataError(f"{example.where}: {given} for {num_words} words; give each word one, or set data.label=COLUMN")
    return [str(tag) for tag in tags]
