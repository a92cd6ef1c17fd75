"""The tasks by name."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from trainkit.data import Example
from trainkit.errors import ConfigError
from trainkit_recipes.bert.finetuning.answers import Answering
from trainkit_recipes.bert.finetuning.classification import Classification, ClassWeights
from trainkit_recipes.bert.finetuning.embeddings import Embedding
from trainkit_recipes.bert.finetuning.model import Pooling
from trainkit_recipes.bert.finetuning.regression import Regression
from trainkit_recipes.bert.finetuning.tags import Tagging
from trainkit_recipes.bert.finetuning.task import Task

TaskName = Literal["classification", "regression", "token_classification", "question_answering", "sentence_embeddings"]
_OF_TASKS = {
    "classes": ("classification", "token_classification"),
    "class_weights": ("classification",),
    "positive_from": ("sentence_embeddings",),
}
"""Settings that other tasks than these do not have."""


def make_task(
    name: TaskName,
    train: Sequence[Example],
    *,
    pooling: Pooling,
    classes: Sequence[str] | None,
    class_weights: ClassWeights | None,
    stride: int,
    max_answer_length: int,
    positive_from: float | None,
    group_size: int,
    temperature: float,
    batch_size: int,
    num_parts: int,
) -> Task:
    """Makes a task from the training examples; see the classes of the tasks for the arguments.

    Raises:
        ConfigError: for a setting that the task does not have, or that does not fit it.
        DataError: for examples that the task cannot use.
    """
    given = {"classes": classes, "class_weights": class_weights, "positive_from": positive_from}
    for key, tasks in _OF_TASKS.items():
        if given[key] is not None and name not in tasks:
            raise ConfigError(
                f"recipe.{key}={given[key]} is of recipe.task={' or '.join(tasks)}, and this is {name}: leave it out"
            )
    if name == "sentence_embeddings":
        _require_groups(batch_size, group_size, num_parts)
    contrast: dict[str, Any] = {"positive_from": positive_from, "group_size": group_size, "temperature": temperature}
    makers: dict[str, Callable[[], Task]] = {
        "classification": lambda: Classification(train, classes=classes, class_weights=class_weights, pooling=pooling),
        "regression": lambda: Regression(train, pooling=pooling),
        "token_classification": lambda: Tagging(train, classes=classes),
        "question_answering": lambda: Answering(train, stride=stride, max_answer_length=max_answer_length),
        "sentence_embeddings": lambda: Embedding(train, batch_size=batch_size, pooling=pooling, **contrast),
    }
    assert makers.keys() == {*get_args(TaskName)}
    return makers[name]()


def _require_groups(batch_size: int, group_size: int, num_parts: int) -> None:
    """A group may not be divided, so that the loss does not depend on ranks and micro-batches."""
    if group_size < 2 or batch_size % group_size or (batch_size // group_size) % num_parts:
        raise ConfigError(
            f"recipe.group_size={group_size}: must be 2 or more, and recipe.batch_size={batch_size} a multiple of "
            f"group_size x {num_parts} (ranks times micro-batches), such as {max(group_size, 2) * num_parts}"
        )
