"""Copies: the checkpoints of a run in a folder of a store, laid out as in a run directory."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainkit.checkpoint import store
from trainkit.checkpoint.fetching import FOLDER, names_in, read_copied, steps_in
from trainkit.distributed.ranks import Ranks
from trainkit.errors import CheckpointError, ConfigError, StorageError
from trainkit.public_url import redacted
from trainkit.storage import Location, locate

_THREADS = 4
_SET_ASIDE = "manifest.left.json"
"""The manifest of a copy that does not count any more; its files stay."""
_PROBE = ".trainkit-probe"


class ReplacedError(Exception):
    """A checkpoint that is another one, or gone, since its copy was begun."""


class Copies:
    """The checkpoints in a folder; each is whole as soon as its manifest is there, which is written last.

    Args:
        folder: of a run: its checkpoints are `checkpoints/step_*` in it.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._outside: dict[str, dict[str, Any]] = {}

    def require_writable(self) -> None:
        """Writes a small file and removes it.

        Raises:
            StorageError: where that cannot be done.
        """
        probe = self.folder.child(_PROBE)
        probe.write(b"")
        probe.remove()

    def steps(self) -> list[str]:
        """Returns the names of the whole copies, such as `step_00001000`, oldest first.

        Raises:
            StorageError: where the store does not answer.
        """
        return [name.split("/")[-1] for name in steps_in(names_in(self.folder), f"{FOLDER}/")]

    def at(self, step: str) -> Location:
        """The folder of a copy."""
        return self.folder.child(f"{FOLDER}/{step}")

    def outside(self, step: str) -> dict[str, Any]:
        """Returns what needs no key of the manifest of a copy.

        Raises:
            CheckpointError: where it is damaged.
            StorageError: where it cannot be read.
        """
        if step not in self._outside:
            self._outside[step] = read_copied(self.at(step), store.read_outside)
        return self._outside[step]

    def put(self, directory: Path, name: str) -> None:
        """Copies a checkpoint to the store; files that are there already are not sent again.

        Args:
            directory: of the checkpoint.
            name: of the copy, relative to the folder.

        Raises:
            ReplacedError: where the directory has changed meanwhile.
            CheckpointError: where it cannot be read.
            StorageError: where the copy cannot be written; it does not count then.
        """
        there = self.folder.child(name)
        self._outside.pop(name.split("/")[-1], None)
        try:
            manifest = (directory / store.MANIFEST).read_bytes()
            files = store.read_outside(directory)["files"]
            same = _same_files(there, files)
            if len(same) < len(files):
                there.child(store.MANIFEST).remove()
            paths = [directory / file for file in files if file not in same]
            _at_once([lambda path=path: there.child(path.name).upload(path) for path in paths])  # type: ignore[misc]
            if (directory / store.MANIFEST).read_bytes() != manifest:
                raise ReplacedError
        except (OSError, CheckpointError, StorageError) as error:
            if not (directory / store.MANIFEST).is_file():
                raise ReplacedError from error
            raise
        _require_sizes(there, files)
        there.child(store.MANIFEST).write(manifest)

    def set_aside(self, after: int) -> list[str]:
        """Renames the manifests of the copies after a step, so that none of them counts as the newest.

        Args:
            after: the step of the checkpoint from which the run resumes.

        Returns:
            Their names.
        """
        later = [name for name in self.steps() if int(name[5:]) > after]
        for name in later:
            manifest = self.at(name).child(store.MANIFEST)
            self.at(name).child(_SET_ASIDE).write(manifest.read())
            manifest.remove()
        return later

    def remove(self, step: str) -> None:
        """Removes a copy, its manifest first."""
        there = self.at(step)
        there.child(store.MANIFEST).remove()
        _at_once([there.child(name).remove for name in names_in(there)])
        if (own := there.local_path()) is not None:  # in a store a folder without files is none
            shutil.rmtree(own, ignore_errors=True)
        self._outside.pop(step, None)


def open_copies(copy_to: str | Path, run_dir: str | Path | None, ranks: Ranks) -> Copies:
    """Returns the copies in a folder, after writing there once. Collective: every rank must call.

    Args:
        copy_to: a URL, or a path.
        run_dir: of the run.
        ranks: the processes of the job. They leave the process group where the folder cannot be used.

    Raises:
        ConfigError: on all ranks, for a folder that cannot be written, or is the run directory itself.
    """
    shown, error = redacted(str(copy_to)), None
    copies = None
    try:
        if run_dir is None:
            raise ConfigError(f"copy_to={shown} needs a run_dir, whose checkpoints are copied")
        copies = Copies(locate(copy_to))
        own = copies.folder.local_path()
        if own is not None and own.resolve() == Path(run_dir).expanduser().resolve():
            raise ConfigError(f"copy_to={shown}: must be another folder than run_dir")
        if ranks.is_main:
            copies.require_writable()
    except ConfigError as caught:
        error = caught
    except StorageError as caught:
        error = ConfigError(f"copy_to={shown}: {caught}")
    try:
        ranks.raise_first(error)
    except ConfigError:
        ranks.leave()
        raise
    assert copies is not None
    return copies


def _same_files(there: Location, files: Mapping[str, Any]) -> set[str]:
    """The files that a whole copy has already, such as those of a checkpoint that was written again with metrics."""
    try:
        before = json.loads(there.child(store.MANIFEST).read()).get("files", {})
    except (StorageError, ValueError, AttributeError):  # there is none; a damaged one is replaced
        return set()
    return {name for name, entry in files.items() if before.get(name) == entry}


def _require_sizes(there: Location, files: Mapping[str, Any]) -> None:
    found = there.files()
    for name, entry in files.items():
        size = found[name].size() if name in found else 0
        if size != entry["num_bytes"]:
            raise StorageError(f"{there.child(name).shown} has {size} bytes and not {entry['num_bytes']}")


def _at_once(works: Sequence[Callable[[], object]]) -> None:
    with ThreadPoolExecutor(_THREADS, "trainkit-copy") as threads:
        for done in [threads.submit(work) for work in works]:
            done.result()
