"""Classes: which ones a grid shows, and whether a checkpoint has the same."""

import math
from collections.abc import Sequence

from trainkit.errors import ConfigError, nearest

_FEWEST_COLUMNS = 4


def grid_of_classes(num: int, num_classes: int) -> tuple[list[int], list[int], int]:
    """Chooses what a grid of at most `num` images shows: rows of one class each, in order.

    Where there is room, all classes get as many rows; otherwise evenly spread ones get one. The first rows of all
    classes are of the same latents, so a column shows what the class changes.

    Args:
        num: images at most.
        num_classes: 1 or more.

    Returns:
        Numbers of the latents, labels, and the number of columns.

    Example:
        >>> grid_of_classes(6, 2)
        ([0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1], 3)
    """
    columns = math.ceil(math.sqrt(num))
    if num_classes > num // columns:
        columns = max(num // num_classes, min(columns, _FEWEST_COLUMNS))
    rows = num // columns
    labels = [row * num_classes // rows for row in range(rows)]
    firsts = [columns * (row - labels.index(label)) for row, label in enumerate(labels)]
    numbers = [first + column for first in firsts for column in range(columns)]
    return numbers, [label for label in labels for _ in range(columns)], columns


def require_same_classes(trained: Sequence[str], given: Sequence[str]) -> None:
    """Raises ConfigError unless the data has the classes of a checkpoint, in their order."""
    if tuple(trained) != tuple(given):
        raise ConfigError(
            f"the checkpoint was trained on {_described(trained)}, and data.path has {_described(given)}: labels would "
            f"mean something else; give the same data, or start a new run from its weights: weights=RUN run_dir=NEW"
        )


def labels_of_names(given: str, classes: Sequence[str]) -> list[int]:
    """Returns the labels of names, or of labels as text, separated by commas.

    Args:
        given: as the user typed it.
        classes: the names by label.

    Raises:
        ConfigError: for a generator without classes, and for an unknown one.

    Example:
        >>> labels_of_names("owl,0", ["cat", "dog", "owl"])
        [2, 0]
    """
    if not classes:
        raise ConfigError(f"--classes {given}: this generator was trained on images without classes; leave it out")
    labels = []
    for name in given.split(","):
        if name in classes:
            labels.append(classes.index(name))
        elif name.isdecimal() and int(name) < len(classes):
            labels.append(int(name))
        else:
            raise ConfigError(
                f"--classes {given}: {name!r} is none of the {_described(classes)}; a label of 0 .. {len(classes) - 1} "
                f"does too.{nearest(name, classes)}"
            )
    return labels


def _described(names: Sequence[str]) -> str:
    if not names:
        return "images without classes"
    listed = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({listed})"
