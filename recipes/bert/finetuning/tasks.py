"""The tasks by name."""

from collections.abc import Callable, Mapping, Sequence
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
_OF_TASKS: Mapping[str, tuple[Any, tuple[TaskName, ...]]] = {
    "classes": (None, ("classification", "token_classification")),
    "class_weights": (None, ("classification",)),
    "pooling": ("first", ("classification", "regression", "sentence_embeddings")),
    "stride": (64, ("question_answering",)),
    "max_answer_length": (30, ("question_answering",)),
    "positive_from": (None, ("sentence_embeddings",)),
    "group_size": (8, ("sentence_embeddings",)),
    "temperature": (0.05, ("sentence_embeddings",)),
}
"""Settings with their defaults, and the tasks that have them."""


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
    contrast: dict[str, Any] = {"positive_from": positive_from, "group_size": group_size, "temperature": temperature}
    of_answers = {"stride": stride, "max_answer_length": max_answer_length}
    given = {"classes": classes, "class_weights": class_weights, "pooling": pooling, **of_answers, **contrast}
    for key, (default, tasks) in _OF_TASKS.items():
        if given[key] != default and name not in tasks:
            raise ConfigError(
                f"recipe.{key}={given[key]} is of recipe.task={' or '.join(tasks)}, and this is {name}: leave it out"
            )
    if name == "sentence_embeddings":
        _require_groups(batch_size, group_size, num_parts)
    makers: dict[str, Callable[[], Task]] = {
        "classification": lambda: Classification(train, classes=classes, class_weights=class_weights, pooling=pooling),
        "regression": lambda: Regression(train, pooling=pooling),
        "token_classification": lambda: Tagging(train, classes=classes),
        "question_answering": lambda: Answering(train, **of_answers),
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
