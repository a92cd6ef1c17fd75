"""Report: held-out text with predicted words, and the accuracy beside that of the baselines."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Batch, Datasets
from trainkit_recipes.bert.baselines import FORMAT, FREQUENCIES, LEFT_BIGRAM, MOST_FREQUENT, TWO_SIDED, NeighbourCounts
from trainkit_recipes.bert.data import IGNORED, Masked
from trainkit_recipes.bert.filled import Filled
from trainkit_recipes.bert.unit_sums import UnitSums, units_of

_COUNTED_TOKENS = 1 << 22  # of the training text, for the baselines: more would take memory and change little
_READ_AT_ONCE = 4096  # windows


@dataclass(frozen=True)
class Example:
    """A window, and what was predicted in it.

    Args:
        tokens_T: int64, unmasked.
        chosen_K: int64, the positions that were masked.
        labels_K: int64, IGNORED in slots that are not used.
        predicted_K: int64, on the device of the model.
    """

    tokens_T: Tensor
    chosen_K: Tensor
    labels_K: Tensor
    predicted_K: Tensor

    @classmethod
    def first_of(cls, batch: Batch, masked: Masked, logits_BKV: Tensor) -> list["Example"]:
        """Returns that of the first window of a rank's share, or none where the share is empty."""
        first = slice(0, 1)
        rows = zip(
            batch.tokens[first],
            masked.chosen_BK[first],
            masked.labels_BK[first],
            logits_BKV[first].argmax(dim=-1),
            strict=True,
        )
        return [cls(*row) for row in rows]

    def text(self, tokenizer: Any) -> str:
        """The window as words."""
        slots = zip(self.chosen_K.tolist(), self.labels_K.tolist(), self.predicted_K.tolist(), strict=True)
        predictions = {position: prediction for position, label, prediction in slots if label != IGNORED}
        return _text(tokenizer, self.tokens_T.tolist(), predictions)


@dataclass(frozen=True)
class Report:
    """What a model has learned.

    Args:
        examples: held-out windows; `[word]` was predicted, `[word / truth]` wrongly; ¶ ends a document.
        sentences: those of the recipe, filled in.
        columns: names of the columns of the table.
        rows: accuracy of the model and the baselines, on the same masked positions.
    """

    examples: str
    sentences: str
    columns: tuple[str, ...]
    rows: list[tuple[str, float]]

    @classmethod
    def of(
        cls,
        examples: Iterable["Example"],
        *,
        accuracy: float,
        num_masked: int,
        tokenizer: Any,
        baselines: Mapping[str, float],
        sentences: Iterable[Filled],
    ) -> "Report":
        """Describes a measurement on the whole held-out split.

        Args:
            examples: held-out windows.
            accuracy: of the model, on the masked positions of the split.
            num_masked: those positions.
            tokenizer: of the model.
            baselines: accuracy by name, on the same masked positions.
            sentences: the recipe's own, filled in.

        Returns:
            The report; its rows are the same on every rank.
        """
        return cls(
            examples="\n\n".join(example.text(tokenizer) for example in examples),
            sentences="\n".join(map(str, sentences)),
            columns=("predicted by", f"accuracy on {num_masked:,} tokens"),
            rows=[("model", accuracy), *baselines.items()],
        )


def baseline_sums(
    datasets: Datasets, held_out: Iterable[tuple[Batch, Masked]], *, tokenizer: Any, runtime: Runtime
) -> dict[str, NDArray[np.float64]]:
    """Measures baselines on the masked tokens of the held-out split. Collective: every rank must call.

    Args:
        datasets: whose training text the baselines count.
        held_out: this rank's share of each global batch, and how it was masked.
        tokenizer: of the model.
        runtime: of the job.

    Returns:
        By the name of a baseline, float64 [units, 3]: of each unit of the text the sum of losses, the tokens that were
        right, and all tokens; NaN where a baseline has no loss, or no prediction. The same on every rank.
    """
    counts = runtime.ranks.first_on_host(lambda: _counts_of(datasets, tokenizer))
    sums = UnitSums(5)
    for batch, masked in held_out:
        labels_BK = masked.labels_BK.cpu()
        is_used_BK, predicted = labels_BK != IGNORED, counts.predictions(batch.tokens, masked.chosen_BK)
        labels_N = labels_BK[is_used_BK]
        right = [(predicted[name][is_used_BK] == labels_N).numpy() for name in (MOST_FREQUENT, LEFT_BIGRAM, TWO_SIDED)]
        losses_N = counts.losses(labels_N).numpy()
        sums.add(units_of(batch, masked, datasets.held_out), losses_N, *right, np.ones(len(labels_N)))
    _, sums_UF = sums.over_ranks(runtime)
    losses, *rights, num = sums_UF.T
    unknown = np.full_like(num, np.nan)
    of_counts = zip((MOST_FREQUENT, LEFT_BIGRAM, TWO_SIDED), rights, strict=True)
    found = {name: np.stack([unknown, right, num], axis=1) for name, right in of_counts}
    return {FREQUENCIES: np.stack([losses, unknown, num], axis=1), **found}


def outlook(
    rows: Sequence[tuple[str, float]], evaluations: Sequence[tuple[int, float]], num_epochs: float
) -> str | None:
    """Describes how far a model is below the counts of both neighbours, and the steps that it needs at its rate.

    Args:
        rows: those of a Report.
        evaluations: (step, held-out accuracy), oldest first; the last one from the end of the run.
        num_epochs: passes over the training text.

    Returns:
        The message; None for a model that is not below.
    """
    accuracies = dict(rows)
    model, baseline = accuracies["model"], accuracies[TWO_SIDED]
    if model >= baseline:
        return None
    step = evaluations[-1][0]
    message = (
        f"after {step:,} steps, {num_epochs:.2g} times the training text, the model predicts {100 * model:.1f} % of "
        f"held-out tokens, below {TWO_SIDED} ({100 * baseline:.1f} %)"
    )
    before = [(number, accuracy) for number, accuracy in evaluations if number <= step * 2 / 3]
    if not before:
        return message
    gain, num_steps = evaluations[-1][1] - before[-1][1], step - before[-1][0]
    if gain <= 0:
        return f"{message}; it gained nothing in the last {num_steps:,} steps"
    needed = step + math.ceil((baseline - model) / gain * num_steps)
    return (
        f"{message}; it gained {100 * gain:.1f} points in the last {num_steps:,} steps, and at that rate needs "
        f"{needed:,} in all: try recipe.num_steps={needed}"
    )


def _counts_of(datasets: Datasets, tokenizer: Any) -> NeighbourCounts:
    """The counts of the training text, which the next run of the same text finds."""
    found: list[NeighbourCounts] = []

    def build(directory: Path) -> None:
        found.append(NeighbourCounts.of(_windows(datasets.train), tokenizer))
        found[0].save(directory)

    directory = datasets.derived(f"neighbours-{FORMAT}-{_COUNTED_TOKENS}", build)
    if found:
        return found[0]
    if directory is None:
        return NeighbourCounts.of(_windows(datasets.train), tokenizer)
    return NeighbourCounts.load(directory, tokenizer)


def _windows(dataset: Any) -> Iterator[Tensor]:
    """Yields all training windows, or evenly spaced ones with the number of tokens to count."""
    length = len(dataset[0]["tokens"])
    stride = max(1, len(dataset) * length // _COUNTED_TOKENS)
    indices = list(range(0, len(dataset), stride))
    for start in range(0, len(indices), _READ_AT_ONCE):
        selected = indices[start : start + _READ_AT_ONCE]
        if hasattr(dataset, "__getitems__"):
            yield dataset.__getitems__(selected)["tokens"]
        else:
            yield torch.stack([dataset[index]["tokens"] for index in selected])


def _text(tokenizer: Any, tokens: list[int], predictions: dict[int, int]) -> str:
    words: list[str] = []
    for position, token in enumerate(tokens):
        if token in tokenizer.special_tokens and token != tokenizer.unknown:
            words += ["¶"] if token == tokenizer.end else []
            continue
        piece = tokenizer.token(token)
        if position in predictions:
            prediction = tokenizer.token(predictions[position])
            words.append(f"[{piece}]" if prediction == piece else f"[{prediction} / {piece}]")
        elif piece.startswith("##") and words:
            words[-1] += piece.removeprefix("##")
        else:
            words.append(piece)
    return " ".join(words)
