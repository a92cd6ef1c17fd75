"""Tasks: the task of a name, with those settings that are its own."""

from collections.abc import Callable, Sequence
from typing import Literal

from trainkit.data import Example
from trainkit.errors import ConfigError
from trainkit_recipes.bert.finetuning.answers import Answering
from trainkit_recipes.bert.finetuning.classification import Classification
from trainkit_recipes.bert.finetuning.embeddings import Embedding
from trainkit_recipes.bert.finetuning.model import Pooling
from trainkit_recipes.bert.finetuning.regression import Regression
from trainkit_recipes.bert.finetuning.tags import Tagging
from trainkit_recipes.bert.finetuning.task import Task

TaskName = Literal["classification", "regression", "token_classification", "question_answering", "sentence_embeddings"]


def make_task(
    name: TaskName,
    train: Sequence[Example],
    *,
    batch_size: int,
    num_parts: int,
    classes: tuple[str, ...] | None,
    class_weights: Literal["balanced"] | dict[str, float] | None,
    pooling: Pooling,
    stride: int,
    max_answer_length: int,
    positive_from: float | None,
    group_size: int,
    temperature: float,
) -> Task:
    """Makes a task.

    Args:
        name: of the task.
        train: the examples that it is learnt from.
        batch_size: samples in a global batch.
        num_parts: into how many parts a global batch is split: ranks times micro-batches.
        classes: as for `FineTuning`; so are the other arguments.
        class_weights: of the classes.
        pooling: of hidden states.
        stride: of question answering.
        max_answer_length: of question answering.
        positive_from: of sentence embeddings.
        group_size: of sentence embeddings.
        temperature: of sentence embeddings.

    Raises:
        ConfigError: for settings that do not match.
        DataError: for examples that the task cannot use.
    """
    if name == "sentence_embeddings":
        _require_groups(batch_size, group_size, num_parts)
    makers: dict[str, Callable[[], Task]] = {
        "classification": lambda: Classification(train, classes=classes, class_weights=class_weights, pooling=pooling),
        "regression": lambda: Regression(train, pooling=pooling),
        "token_classification": lambda: Tagging(train, classes=classes),
        "question_answering": lambda: Answering(train, stride=stride, max_answer_length=max_answer_length),
        "sentence_embeddings": lambda: Embedding(
            train,
            positive_from=positive_from,
            group_size=group_size,
            num_parts=num_parts,
            batch_size=batch_size,
            temperature=temperature,
            pooling=pooling,
        ),
    }
    return makers[name]()


def _require_groups(batch_size: int, group_size: int, parts: int) -> None:
    """A group may not be divided, so that the loss does not depend on ranks and micro-batches."""
    if group_size < 2 or batch_size % group_size or (batch_size // group_size) % parts:
        raise ConfigError(
            f"recipe.group_size={group_size}: must be 2 or more, and recipe.batch_size={batch_size} a multiple of "
            f"group_size x {parts} (ranks times micro-batches), such as {max(group_size, 2) * parts}"
        )
