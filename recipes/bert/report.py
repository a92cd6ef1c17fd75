"""What a model has learnt, for a reader: held-out text with its holes filled in, and accuracy beside the baselines."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainkit_recipes.bert.baselines import TWO_SIDED, NeighbourCounts
from trainkit_recipes.bert.data import IGNORED, Masked
from trainkit_recipes.bert.fill import fill

if TYPE_CHECKING:
    from trainkit.data import Batch
    from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

_NUM_EXAMPLES = 4
_COUNTED_TOKENS = 1 << 22  # of the training text, for the baselines: more would take memory and change little
_CHUNK = 4096


@dataclass(frozen=True)
class Report:
    """examples: held-out windows; `[word]` was guessed, `[word / truth]` wrongly; ¶ ends a document.
    sentences: the recipe's own.
    columns, rows: accuracy of the model and the baselines, on the same masked positions.
    """

    examples: str
    sentences: str
    columns: tuple[str, ...]
    rows: list[tuple[str, float]]

    @classmethod
    def of(cls, recipe: "MaskedLanguageModelling") -> "Report":
        """Measures on the whole held-out split. Collective: every rank calls, and gets the same rows."""
        num_correct, num_masked = torch.zeros(()), torch.zeros(())
        examples: list[str] = []
        num_batches = -(-len(recipe.datasets.held_out) // recipe.evaluation_batch_size)
        every = max(1, num_batches // _NUM_EXAMPLES)  # examples from all over the split
        for number, (batch, masked, logits_BKV) in enumerate(recipe.held_out()):
            labels_BK, guess_BK = masked.labels_BK.cpu(), logits_BKV.argmax(dim=-1).cpu()
            num_correct = num_correct + (guess_BK == labels_BK).sum()
            num_masked = num_masked + (labels_BK != IGNORED).sum()
            if number % every == 0:
                examples += islice(_examples(recipe.tokenizer, batch, masked, guess_BK), 1)
        totals = recipe.runtime.ranks.all_reduce_sum({"correct": num_correct, "masked": num_masked})
        return cls(
            examples="\n\n".join(examples[:_NUM_EXAMPLES]),
            sentences="\n".join(str(fill(recipe, sentence)) for sentence in recipe.sentences),
            columns=("guesser", f"accuracy on {int(totals['masked']):,} tokens"),
            rows=[("model", totals["correct"] / totals["masked"]), *recipe.guessed().items()],
        )


def guessed(recipe: "MaskedLanguageModelling") -> dict[str, float]:
    """By name of a baseline, its accuracy on the masked tokens of the held-out split. Collective: every rank calls."""
    counts = NeighbourCounts(_windows(recipe.datasets.train), recipe.tokenizer)
    correct: dict[str, Tensor] = {}
    num_masked = torch.zeros(())
    for batch, masked in recipe.masked_held_out():
        labels_BK = masked.labels_BK.cpu()
        for name, guess_BK in counts.guesses(batch.tokens, masked.chosen_BK).items():
            correct[name] = correct.get(name, torch.zeros(())) + (guess_BK == labels_BK).sum()
        num_masked = num_masked + (labels_BK != IGNORED).sum()
    totals = recipe.runtime.ranks.all_reduce_sum({**correct, "masked": num_masked})
    masked_tokens = totals.pop("masked")
    return {name: count / masked_tokens for name, count in totals.items()}


def outlook(
    rows: Sequence[tuple[str, float]], evaluations: Sequence[tuple[int, float]], num_epochs: float
) -> str | None:
    """For a model that guesses worse than counts of both neighbours: by how much, and which steps its rate asks for.

    rows: those of a Report.  evaluations: (step, held-out accuracy), oldest first; the last one of the end.
    """
    accuracies = dict(rows)
    model, baseline = accuracies["model"], accuracies[TWO_SIDED]
    if model >= baseline:
        return None
    step = evaluations[-1][0]
    told = (
        f"after {step:,} steps, {num_epochs:.2g} times the training text, the model guesses {100 * model:.1f} % of "
        f"held-out tokens, below {TWO_SIDED} ({100 * baseline:.1f} %)"
    )
    before = [(number, accuracy) for number, accuracy in evaluations if number <= step * 2 / 3]
    if not before:
        return told
    gain, num_steps = evaluations[-1][1] - before[-1][1], step - before[-1][0]
    if gain <= 0:
        return f"{told}; it gained nothing in the last {num_steps:,} steps"
    needed = step + math.ceil((baseline - model) / gain * num_steps)
    return (
        f"{told}; it gained {100 * gain:.1f} points in the last {num_steps:,} steps, and at that rate needs "
        f"{needed:,} in all: try recipe.num_steps={needed}"
    )


def _windows(dataset: Any) -> Iterator[Tensor]:
    """All training windows, or as many evenly spaced ones as hold the number of tokens to count."""
    length = len(dataset[0]["tokens"])
    stride = max(1, len(dataset) * length // _COUNTED_TOKENS)
    indices = list(range(0, len(dataset), stride))
    for start in range(0, len(indices), _CHUNK):
        chunk = indices[start : start + _CHUNK]
        if hasattr(dataset, "__getitems__"):
            yield dataset.__getitems__(chunk)["tokens"]
        else:
            yield torch.stack([dataset[index]["tokens"] for index in chunk])


def _examples(tokenizer: Any, batch: "Batch", masked: Masked, guesses_BK: Tensor) -> Iterator[str]:
    for tokens_T, chosen_K, labels_K, guesses_K in zip(
        batch.tokens.tolist(),
        masked.chosen_BK.tolist(),
        masked.labels_BK.tolist(),
        guesses_BK.tolist(),
        strict=True,
    ):
        guesses = {
            position: guess
            for position, label, guess in zip(chosen_K, labels_K, guesses_K, strict=True)
            if label != IGNORED
        }
        yield _text(tokenizer, tokens_T, guesses)


def _text(tokenizer: Any, tokens: list[int], guesses: dict[int, int]) -> str:
    words: list[str] = []
    for position, token in enumerate(tokens):
        if token in tokenizer.special_tokens and token != tokenizer.unknown:
            words += ["¶"] if token == tokenizer.end else []
            continue
        piece = tokenizer.token(token)
        if position in guesses:
            guess = tokenizer.token(guesses[position])
            words.append(f"[{piece}]" if guess == piece else f"[{guess} / {piece}]")
        elif piece.startswith("##") and words:
            words[-1] += piece.removeprefix("##")
        else:
            words.append(piece)
    return " ".join(words)
