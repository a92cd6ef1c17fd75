"""Checkpoints: directories that appear whole or not at all."""

from trainkit.checkpoint.state import load, save
from trainkit.checkpoint.store import find, prune, read_manifest, step_directories, verify

__all__ = ["find", "load", "prune", "read_manifest", "save", "step_directories", "verify"]
