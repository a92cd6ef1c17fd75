"""trainkit: distributed training in PyTorch that is right, fast, and shows it."""

from typing import TYPE_CHECKING, Any

from trainkit import data, errors, ops, prune
from trainkit.comm.comm import Comm
from trainkit.engine import Engine
from trainkit.optim import Schedule
from trainkit.precision import Precision
from trainkit.recipe import Recipe
from trainkit.runtime import Runtime
from trainkit.step_result import StepResult
from trainkit.strategy import DDP, FSDP, HSDP, Single, Strategy, Zero1, Zero2, Zero3
from trainkit.tracking import Last, Tracker

if TYPE_CHECKING:
    from trainkit.job import load_recipe
    from trainkit.trainer import Trainer

__version__ = "0.1.0"
__all__ = [
    "DDP",
    "FSDP",
    "HSDP",
    "Comm",
    "Engine",
    "Last",
    "Precision",
    "Recipe",
    "Runtime",
    "Schedule",
    "Single",
    "StepResult",
    "Strategy",
    "Tracker",
    "Trainer",
    "Zero1",
    "Zero2",
    "Zero3",
    "data",
    "errors",
    "load_recipe",
    "ops",
    "prune",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # These know Hydra, which takes longer to import than the rest of the package together.
    if name == "load_recipe":
        from trainkit.job import load_recipe

        return load_recipe
    if name == "Trainer":
        from trainkit.trainer import Trainer

        return Trainer
    raise AttributeError(f"module 'trainkit' has no attribute {name!r}")
