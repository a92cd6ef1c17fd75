"""Checkpoints: directories that appear whole or not at all, to which every rank writes its own part."""

from trainkit.checkpoint.saver import Saver
from trainkit.checkpoint.state import find_whole, load, read_whole, save, write_one_file
from trainkit.checkpoint.store import (
    find,
    prune,
    read_manifest,
    set_aside,
    step_directories,
    tidy,
    verify,
    write_text,
)

__all__ = [
    "Saver",
    "find",
    "find_whole",
    "load",
    "prune",
    "read_manifest",
    "read_whole",
    "save",
    "set_aside",
    "step_directories",
    "tidy",
    "verify",
    "write_one_file",
    "write_text",
]
