"""Sweeps: many trials of a configuration, searched by Optuna, in every slot of a machine."""

from trainkit.sweep import samplers, study
from trainkit.sweep.settings import Settings
from trainkit.sweep.study import Study, Trial, read
from trainkit.sweep.table import front

__all__ = ["Settings", "Study", "Trial", "front", "read", "samplers", "study"]


def __dir__() -> list[str]:
    return sorted(__all__)
