"""Sweeps: many trials of a configuration, searched by Optuna, in every slot of a machine."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.sweep import samplers, storage, study, trial
    from trainkit.sweep.settings import Settings
    from trainkit.sweep.study import Study, read
    from trainkit.sweep.table import front
    from trainkit.sweep.trial import Trial

__all__ = ["Settings", "Study", "Trial", "front", "read", "samplers", "storage", "study", "trial"]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "samplers": "trainkit.sweep.samplers",
            "storage": "trainkit.sweep.storage",
            "trial": "trainkit.sweep.trial",
            "study": "trainkit.sweep.study",
            "Settings": "trainkit.sweep.settings",
            "Study": "trainkit.sweep.study",
            "Trial": "trainkit.sweep.trial",
            "read": "trainkit.sweep.study",
            "front": "trainkit.sweep.table",
        },
    )
