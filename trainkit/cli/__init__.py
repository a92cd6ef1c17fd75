"""Commands: thin, they parse, call and print."""

from typing import TYPE_CHECKING

from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.cli.main import HELP_TRAIN, add_train_arguments, add_trust, guarded, parse, run_train

__all__ = [
    "HELP_TRAIN",
    "add_train_arguments",
    "add_trust",
    "guarded",
    "parse",
    "run_train",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "HELP_TRAIN": "trainkit.cli.main",
            "add_train_arguments": "trainkit.cli.main",
            "add_trust": "trainkit.cli.main",
            "guarded": "trainkit.cli.main",
            "parse": "trainkit.cli.main",
            "run_train": "trainkit.cli.main",
        },
    )
