"""Manifest: what a run was made of, as manifest.json in its directory and in each of its checkpoints."""

from trainkit.manifest.code import modules_by_name
from trainkit.manifest.differences import NOTHING, Difference, differences
from trainkit.manifest.files import FILES, data_files
from trainkit.manifest.manifest import Manifest, present
from trainkit.manifest.store import FILE_NAME, read

__all__ = [
    "FILES",
    "FILE_NAME",
    "NOTHING",
    "Difference",
    "Manifest",
    "data_files",
    "differences",
    "modules_by_name",
    "present",
    "read",
]
