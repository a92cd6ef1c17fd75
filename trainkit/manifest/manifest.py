"""Manifest: gathers what a run is made of while it starts, and keeps it in the run directory."""

import getpass
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from trainkit.errors import DataError
from trainkit.manifest import code, environment, hardware
from trainkit.manifest.files import FILES, data_files, write_files
from trainkit.manifest.store import FILE_NAME, FORMAT, read, write

_SHORTENED = 20  # starts of a run of which the first and the newest are kept


class Manifest:
    """What a run is made of, as manifest.json in its directory; on rank 0.

    Reading packages, modules and data files takes longer than a short step, so a thread does it while training begins.

    Args:
        run_dir: the run directory; None: nothing is written.
        training: returns the part of that name whenever it is written: plans are chosen at the first backward pass.
        report: called with a line where it cannot be written: training continues.
    """

    def __init__(
        self, run_dir: Path | None, *, training: Callable[[], Mapping[str, Any]], report: Callable[[str], None]
    ) -> None:
        self._run_dir, self._training, self._report = run_dir, training, report
        self._facts: dict[str, Any] = {}
        self._gathered: Future[dict[str, Any]] | None = None
        self._history: list[dict[str, Any]] = []
        self._lock = Lock()

    def add(self, part: str, facts: Mapping[str, Any]) -> None:
        """Adds facts to a part, before or after `start`.

        Args:
            part: such as `configuration`.
            facts: JSON-able.
        """
        self._facts[part] = {**self._facts.get(part, {}), **facts}

    def start(self, *, step: int, resumed: str | None, by: Mapping[str, Any]) -> None:
        """Begins to gather, and adds this start to the history that the run directory holds.

        Args:
            step: steps done so far.
            resumed: the checkpoint that was loaded; None: there was none.
            by: facts on who started it, such as the number of ranks.
        """
        if self._run_dir is None:
            return
        if self._history:  # a run that returns to a checkpoint starts again in the same process
            self._history[-1] |= {"ended": _now(), "status": "returned to a checkpoint"}
        earlier = self._history or self._earlier(step)
        now = {"started": _now(), "step": step, "resumed": resumed, "user": _user(), "command": sys.argv, **by}
        self._history = [*earlier, {**now, "ended": None, "status": "running"}]
        if len(self._history) > _SHORTENED:
            self._history = [self._history[0], *self._history[1 - _SHORTENED :]]
        configuration = self._facts.get("configuration", {})
        named = {key: configuration.get(key) for key in ("data", "weights")}
        pool = ThreadPoolExecutor(1)
        self._gathered = pool.submit(_gathered, self._run_dir, named)
        self._gathered.add_done_callback(self._write_first)
        pool.shutdown(wait=False)

    def value(self) -> dict[str, Any]:
        """Returns the whole manifest, once it has been gathered; empty where nothing was started."""
        if self._gathered is None or self._run_dir is None:
            return {}
        gathered = self._gathered.result()
        newest = self._history[-1]
        newest |= {f"{part}_sha256": _sha256(gathered[part]) for part in ("code", "environment")}
        run = {"name": self._run_dir.name, "created": self._history[0]["started"], "status": newest["status"]}
        parts: dict[str, Any] = {"format": FORMAT, "run": run, "configuration": {}, **gathered}
        parts["training"] = {**self._training()}
        for part, facts in self._facts.items():
            parts[part] = {**parts.get(part, {}), **facts}
        return {**parts, "history": self._history}

    def end(self, status: str, step: int) -> None:
        """Writes how this start has ended, and what was imported meanwhile.

        Args:
            status: such as `finished`.
            step: steps done.
        """
        if self._gathered is None:
            return
        gathered = self._gathered.result()
        gathered["environment"] |= _imported()
        # Those that are known already stay as they were when training began.
        gathered["code"]["modules"] = {**code.modules(), **gathered["code"]["modules"]}
        with self._lock:
            self._history[-1] |= {"ended": _now(), "status": status, "last_step": step}
            self._write()
            self._gathered, self._history = None, []

    def _earlier(self, step: int) -> list[dict[str, Any]]:
        """The history in the run directory; that of another run, which this one replaces, is forgotten."""
        assert self._run_dir is not None
        if not step or not (self._run_dir / FILE_NAME).is_file():
            return []
        try:
            found = read(self._run_dir).get("history")
        except DataError as error:
            self._report(f"{error}; its history is left out")
            return []
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def _write_first(self, gathered: Future[dict[str, Any]]) -> None:
        """Writes what the thread has gathered, unless the run has ended meanwhile. Called in the thread."""
        with self._lock:
            if gathered.exception() is None and self._gathered is gathered:
                self._write()

    def _write(self) -> None:
        assert self._run_dir is not None
        try:
            write(self._run_dir, self.value())
        except OSError as error:
            self._report(f"{FILE_NAME} could not be written: {error.strerror or error}; training continues")


def present() -> dict[str, dict[str, Any]]:
    """Returns the parts of a manifest that describe this process: `code`, `environment` and `hardware`."""
    around = {**environment.describe(), **_imported()}
    return {"code": code.describe(), "environment": around, "hardware": hardware.describe()}


def _gathered(run_dir: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    found = present()
    for number, (root, state) in enumerate(found["code"]["repositories"].items()):
        if state.get("diff_sha256"):
            state["diff"] = _keep_difference(run_dir / (code.DIFF if not number else f"code_{number + 1}.diff"), root)
    files = data_files(data)
    if "files" in files:
        files["list_sha256"] = write_files(run_dir / FILES, files.pop("files"))
    return {**found, "data": {"files": files}}


def _imported() -> dict[str, list[str]]:
    found = environment.imported()
    return {"imported": found, "needed": environment.needed(["trainkit", *found])}


def _keep_difference(path: Path, root: str) -> str:
    """Keeps what was changed since the commit beside the manifest, unless it is large; returns its name."""
    difference = code.difference_of(Path(root))
    if len(difference) > code.MAX_DIFF_BYTES:
        return f"not kept: {len(difference):,} bytes are more than {code.MAX_DIFF_BYTES:,}"
    path.write_bytes(difference)
    return path.name


def _sha256(facts: Mapping[str, Any]) -> str:
    stable = {name: value for name, value in facts.items() if name not in ("imported", "needed")}
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
