"""Checkpoints: directories that appear whole or not at all, to which every rank writes its own part."""

from typing import TYPE_CHECKING

from trainkit.checkpoint.of_a_run import find, prune, set_aside, step_directories, superseded, tidy
from trainkit.checkpoint.resume import manifest_to_resume, to_resume
from trainkit.checkpoint.store import complete, read_allowed, read_manifest, read_outside, verify, write_text
from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.checkpoint.saver import Saver
    from trainkit.checkpoint.state import authenticate, find_whole, load, read_whole, save, write_one_file

__all__ = [
    "Saver",
    "authenticate",
    "complete",
    "find",
    "find_whole",
    "load",
    "manifest_to_resume",
    "prune",
    "read_allowed",
    "read_manifest",
    "read_outside",
    "read_whole",
    "save",
    "set_aside",
    "step_directories",
    "superseded",
    "tidy",
    "to_resume",
    "verify",
    "write_one_file",
    "write_text",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    # torch.distributed.checkpoint takes as long to import as a third of torch.
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Saver": "trainkit.checkpoint.saver",
            **dict.fromkeys(
                ("authenticate", "find_whole", "load", "read_whole", "save", "write_one_file"),
                "trainkit.checkpoint.state",
            ),
        },
    )
