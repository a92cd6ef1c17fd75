"""Grid: the cells that are measured, of models x precisions x strategies x numbers of processes. Pure."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainkit.errors import ConfigError, nearest

CHOICES = ("recipe", "experiment")
"""The groups of which an option is a model of the grid."""
ON_ANY_MACHINE = ("experiment=bert_quickstart", "experiment=glyphs", "experiment=outlines")
ON_A_GPU = ("experiment=bert_base",)
"""Added to the default models where there is a GPU: their data, too, are built in."""
OWN_OPTIONS = {
    "precision": "--precision",
    "strategy": "--strategy",
    "recipe.batch_size": "--batch-size",
    "run_dir": "--to",
}
"""Keys that are given by an option of the command."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the grid.

    Args:
        name: as shown, such as `bert_base`.
        overrides: of its configuration.
    """

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the grid.

    Args:
        model: what is trained.
        precision: such as `bf16`.
        strategy: such as `ddp`.
        processes: of the job.
    """

    model: Model
    precision: str
    strategy: str
    processes: int

    @property
    def key(self) -> str:
        """What it is called in a file of results."""
        return f"{self.model.name} {self.precision} {self.strategy} {self.processes}"

    @property
    def words(self) -> str:
        """What it is called in messages."""
        several = "es" if self.processes > 1 else ""
        return f"{self.model.name}, {self.precision}, {self.strategy}, {self.processes} process{several}"


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a cell is measured.

    Args:
        steps: of one repeat.
        warmup: steps before the first repeat, which are not measured.
        repeats: how often the steps are measured.

    Raises:
        ConfigError: for numbers out of range.
    """

    steps: int = 20
    warmup: int = 5
    repeats: int = 3

    def __post_init__(self) -> None:
        for name, value, least in (("steps", self.steps, 1), ("warmup", self.warmup, 1), ("repeats", self.repeats, 1)):
            if value < least:
                raise ConfigError(f"--{name}={value}: must be {least} or more")


def models(overrides: Sequence[str], *, has_gpu: bool) -> list[Model]:
    """The models that `key=value` mean: those of `recipe=a,b` and `experiment=c,d`, with all other values.

    Args:
        overrides: as typed.
        has_gpu: whether the defaults are those of a GPU.

    Raises:
        ConfigError: for a key that is an option of the command.

    Example:
        >>> [model.overrides for model in models(["recipe=bert,progressive_gan", "seed=1"], has_gpu=False)]
        [('recipe=bert', 'seed=1'), ('recipe=progressive_gan', 'seed=1')]
    """
    chosen: list[str] = []
    others: list[str] = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in OWN_OPTIONS:
            raise ConfigError(f"{override}: give {OWN_OPTIONS[key]} {value}, which is what the grid is made of")
        if key in CHOICES:
            chosen += [f"{key}={name}" for name in value.split(",") if name]
        else:
            others.append(override)
    defaults = [*ON_ANY_MACHINE, *(ON_A_GPU if has_gpu else ())]
    found = list(dict.fromkeys(chosen or defaults))
    names = [choice.partition("=")[2] for choice in found]
    return [
        Model(name=name if names.count(name) == 1 else choice, overrides=(choice, *others))
        for choice, name in zip(found, names, strict=True)
    ]


def listed(text: str, allowed: Sequence[str], name: str) -> list[str]:
    """The words of a list with commas.

    Args:
        text: as typed.
        allowed: the words that it may hold.
        name: of the option.

    Raises:
        ConfigError: for another word, naming the nearest one; for none.

    Example:
        >>> listed("fp32,bf16", ["fp32", "bf16"], "--precision")
        ['fp32', 'bf16']
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if word not in allowed:
            raise ConfigError(f"{name}={word}: must be of {', '.join(allowed)}.{nearest(word, allowed)}")
    if not words:
        raise ConfigError(f"{name}={text!r}: must be one or more of {', '.join(allowed)}, with commas")
    return words


def counts(text: str, name: str, *, most: int | None = None, of: str = "") -> list[int]:
    """The numbers of a list with commas, in order.

    Args:
        text: as typed.
        name: of the option.
        most: the largest number that is allowed; None: any.
        of: why, for the message.

    Raises:
        ConfigError: for text that is no such list.

    Example:
        >>> counts("4,1,2", "--processes")
        [1, 2, 4]
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    numbers = [int(word) if word.isdecimal() else 0 for word in words]
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{name}={text!r}: must be numbers of at least 1 with commas, such as 1,2,4")
    if most is not None and max(numbers) > most:
        raise ConfigError(f"{name}={max(numbers)}: must be at most {most}, {of}")
    return sorted(set(numbers))


def powers_up_to(most: int) -> list[int]:
    """Powers of two up to a number, and the number itself.

    Example:
        >>> powers_up_to(6), powers_up_to(1)
        ([1, 2, 4, 6], [1])
    """
    found = [1]
    while 2 * found[-1] <= most:
        found.append(2 * found[-1])
    return found if found[-1] == most else [*found, most]


def cells(
    models: Sequence[Model], precisions: Sequence[str], strategies: Sequence[str], processes: Sequence[int]
) -> Iterator[Cell]:
    """Yields the cells of a grid; `single` has one process only.

    Raises:
        ConfigError: where nothing is left.
    """
    if set(strategies) == {"single"} and 1 not in processes:
        raise ConfigError(f"--processes={','.join(map(str, processes))}: strategy single has one process; use ddp")
    for model in models:
        for precision in precisions:
            for strategy in strategies:
                for num in processes:
                    if strategy != "single" or num == 1:
                        yield Cell(model=model, precision=precision, strategy=strategy, processes=num)


def threads_of(processes: Sequence[int], given: int | None) -> int:
    """Threads of each process on the CPU, the same in all cells, so that these compare.

    Args:
        processes: of the cells.
        given: by the user; None: OMP_NUM_THREADS, else the cores shared among the most processes.

    Raises:
        ConfigError: for a number below 1.
    """
    if given is not None:
        if given < 1:
            raise ConfigError(f"--threads={given}: must be 1 or more")
        return given
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else max(1, num_cores() // max(processes))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
