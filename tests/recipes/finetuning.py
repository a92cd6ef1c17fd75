"""Small labelled data and recipes of recipe=bert_finetune, for its tests."""

import json
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainkit import Runtime, Schedule, Tracker
from trainkit.data import Examples
from trainkit_recipes.bert.architecture import Architecture
from trainkit_recipes.bert.finetuning.recipe import FineTuning

SHAPE = Architecture(
    hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=32, max_length=64, dropout=0.1, attention_dropout=0.1,
    init_std=0.2,
)  # fmt: skip
GOOD, BAD = "great lovely fine", "awful dull poor"
OTHER = "the film was with a plot and some"


def reviews(path: Path, num: int = 70) -> Path:
    """Rows of texts of very different lengths; the good words decide `label`, and their number `stars`."""
    draw = random.Random(0)
    rows = ["text,other,label,stars"]
    for number in range(num):
        is_good = draw.random() < 0.6
        words = draw.choices(OTHER.split(), k=draw.choice((1, 4, 20))) + draw.choices(
            (GOOD if is_good else BAD).split(), k=3
        )
        draw.shuffle(words)
        stars = sum(word in ("great", "awful") for word in words) * (1 if is_good else -1)
        rows.append(f"{' '.join(words)} {number},{draw.choice(OTHER.split())},{'good' if is_good else 'bad'},{stars}")
    path.write_text("\n".join(rows) + "\n")
    return path


def sentences(path: Path, num: int = 40) -> Path:
    """A .conll file in which names are entities."""
    draw, lines = random.Random(1), ["-DOCSTART- -X- O", ""]
    for _ in range(num):
        for _ in range(draw.choice((1, 3, 9))):
            if draw.random() < 0.4:
                lines += ["Anna X B-PER", "Smithson X I-PER"] if draw.random() < 0.5 else ["Paris X B-LOC"]
            else:
                lines.append(f"{draw.choice(OTHER.split())} X O")
        lines.append("")
    path.write_text("\n".join(lines) + "\n")
    return path


def questions(path: Path, num: int = 24) -> Path:
    """A file of SQuAD 2.0 whose contexts are longer than a window; a third of the questions has no answer."""
    draw, paragraphs = random.Random(2), []
    for number in range(num):
        words = draw.choices(OTHER.split(), k=60)
        place = draw.randrange(60)
        words[place] = f"Paris{number}"
        start = len(" ".join(words[:place])) + (place > 0)
        answers = [{"text": words[place], "answer_start": start}]
        asked: dict[str, Any] = {"id": f"q{number}", "question": "Which city?", "answers": answers}
        if number % 3 == 0:
            asked |= {"is_impossible": True, "answers": [], "plausible_answers": answers, "question": "Which river?"}
        paragraphs.append({"context": " ".join(words), "qas": [asked]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "a", "paragraphs": paragraphs}]}))
    return path


def pairs(path: Path, num: int = 60) -> Path:
    """Pairs with scores."""
    draw, rows = random.Random(3), ["text\tother\tscore"]
    for number in range(num):
        words = draw.choices(f"{OTHER} {GOOD} {BAD}".split(), k=6)
        num_same = draw.randrange(7)
        other = words[:num_same] + draw.choices(OTHER.split(), k=6 - num_same)
        rows.append(f"{' '.join(words)} {number}\t{' '.join(other)}\t{num_same}")
    path.write_text("\n".join(rows) + "\n")
    return path


TASKS: Mapping[str, tuple[Any, str, dict[str, Any], dict[str, Any]]] = {
    "classification": (reviews, "a.csv", {"pair": "other"}, {"class_weights": "balanced"}),
    "regression": (reviews, "a.csv", {"label": "stars"}, {"pooling": "mean"}),
    "token_classification": (sentences, "a.conll", {}, {}),
    "question_answering": (questions, "a.json", {}, {"stride": 16, "max_length": 48}),
    "sentence_embeddings": (
        pairs, "a.tsv", {"pair": "other", "label": "score"},
        {"positive_from": 3, "group_size": 2, "pooling": "mean"},
    ),
}  # fmt: skip


def make(
    folder: Path, task: Any, *, strategy: Any = "ddp", data: Mapping[str, Any] | None = None, **settings: Any
) -> Any:
    """Makes the recipe of a task, in float64."""
    write, name, columns, options = TASKS[task]
    path = folder / name
    if not path.exists():
        write(path)
    precision: Any = "fp32" if strategy.startswith("zero") else "fp64"
    runtime = Runtime(strategy=strategy, precision=precision, seed=3, tracker=Tracker(), device="cpu")
    return FineTuning(
        runtime,
        data=Examples(**{"path": path, "held_out": 0.2, "vocab_size": 150, **columns, **(data or {})}),
        task=task,
        optimizer=partial(torch.optim.AdamW, lr=1e-2, eps=1e-4, weight_decay=0.01),
        **{
            "schedule": Schedule(warmup=0.2, unit="run"),
            "model": SHAPE,
            "batch_size": 8,
            "num_steps": 6,
            "evaluation_batch_size": 5,
            **options,
            **settings,
        },
    )


def train(folder: Path, task: str, num_steps: int = 6, **settings: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """Weights after some steps, in the order of their names, and the metrics."""
    recipe = make(folder, task, **settings)
    for _, batch in zip(range(num_steps), recipe.batches(), strict=False):
        recipe.train_step(batch)
    metrics = recipe.evaluate()
    return weights_of(recipe), metrics


def weights_of(recipe: FineTuning) -> torch.Tensor:
    """All parameters as one vector; of rank 0 where they are sharded."""
    state = recipe.model.state_dict()["module"]
    return torch.cat([state[name].double().flatten() for name in sorted(state)]) if state else torch.zeros(0)
