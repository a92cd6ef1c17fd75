"""WandB: one Weights & Biases run per job, kept across resumes, offline where there is no key."""

import html
import netrc
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from trainkit.errors import ConfigError
from trainkit.logger import logger
from trainkit.tracking import wandb_service
from trainkit.tracking.command import as_typed
from trainkit.tracking.tracker import Run, Status, Tracker, by_end
from trainkit.tracking.wandb_rows import HistoryFile, Row, Table, Text, Value, as_json, from_json

Mode = Literal["online", "offline"]
ID_FILE = "id.txt"
PICTURES = "unsent"  # the folder with the pictures of rows in a checkpoint
MAX_RESTARTS = 5  # of W&B's service process
CHECK_EVERY = 64  # rows between two reads of W&B's file
_LAST_ROWS_S = 10.0


class WandB(Tracker):
    """Logs metrics, evaluations, pictures, texts and tables to Weights & Biases, one history row per step.

    Its files are in `wandb/` of the run directory. A row is sent once the next step's row begins, and is safe once the
    `.wandb` file there contains it: such rows are not sent again after a resume, and rows that the file did not contain
    when a checkpoint was made are in the checkpoint. A checkpoint of another run directory starts a new W&B run.

    Args:
        project: the W&B project.
        entity: the W&B user or team; None: the default of the account.
        name: the name of the run; None: the name of the run directory.
        tags: tags of the run.
        group: what W&B shows the run with, such as a sweep; None: the run is alone.
        mode: "online" or "offline"; None: as WANDB_MODE or `wandb offline` sets it, else online where a key is found,
            else offline.

    Raises:
        ConfigError: where the package wandb is not installed.
    """

    def __init__(
        self,
        *,
        project: str = "trainkit",
        entity: str | None = None,
        name: str | None = None,
        tags: tuple[str, ...] = (),
        group: str | None = None,
        mode: Mode | None = None,
    ):
        if find_spec("wandb") is None:
            raise ConfigError("tracking.wandb needs the package wandb: pip install wandb, or type tracking.wandb=null")
        self._project = project
        self._entity = entity
        self._name = name
        self._tags, self._group = tags, group
        self._mode = mode
        self._id: str | None = None
        self._run: Any = None
        self._folder = Path()
        self._file: HistoryFile | None = None
        self._row: Row = {}
        self._row_step = self._sent_step = self._replayed_to = self._resumed_step = -1
        self._unwritten: list[tuple[int, Row]] = []
        self._of = Run(directory=Path(), name="")
        self._num_restarts = 0
        self._saved_rows: list[Mapping[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns the id of the W&B run, and the rows that its file does not contain yet."""
        if self._id is None:
            return {}
        self._drop_written()
        rows = [*self._unwritten, (self._row_step, self._row)] if self._row else self._unwritten
        return {"id": self._id, "rows": [as_json(step, row, self._folder / PICTURES) for step, row in rows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads the id of the W&B run and the unwritten rows."""
        self._id, self._saved_rows = state["id"], list(state.get("rows", []))

    def start(self, run: Run) -> None:
        """Starts the W&B run, or resumes the one of this run directory."""
        self._folder = run.directory / "wandb"
        self._folder.mkdir(exist_ok=True)
        before = self._id if run.resumed_step is not None else None
        continues = before is not None and _id_of(self._folder) == before
        self._id = before if continues and before is not None else secrets.token_hex(4)
        (self._folder / ID_FILE).write_text(self._id)
        written = [
            HistoryFile(path).last_step() for path in self._folder.glob(f"*run-*-{self._id}/run-{self._id}.wandb")
        ]
        self._sent_step, self._row, self._unwritten = max(written, default=-1), {}, []
        self._resumed_step = -1 if run.resumed_step is None else run.resumed_step
        notes = None if continues or before is None else f"continues from step {run.resumed_step} of the run {before}"
        self._of, self._num_restarts = run, 0
        self._begin(run, notes)
        # Rows that the server has are not sent again.
        self._sent_step = self._replayed_to = max(self._sent_step, self._run.starting_step - 1)
        for step, row in (from_json(saved, self._folder / PICTURES) for saved in self._saved_rows if continues):
            if step > self._sent_step:
                self._add(step, row)
        self._saved_rows = []
        if not self._run.offline and self._run.url:
            logger(__name__).info(f"Weights & Biases: {self._run.url}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds metrics to the row of `step`."""
        self._add(step, values)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the metrics of an evaluation to the row of `step`."""
        self._add(step, values)

    def intervals(self, step: int, intervals: Mapping[str, tuple[float, float]]) -> None:
        """Adds the ends of intervals to the row of `step`, as NAME_low and NAME_high."""
        self._add(step, by_end(intervals))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture to the row of `step`."""
        self._add(step, {name: image})

    def text(self, step: int, name: str, text: str) -> None:
        """Adds a text to the row of `step`."""
        self._add(step, {name: Text(text)})

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table to the row of `step`."""
        self._add(step, {name: Table(list(columns), [list(row) for row in rows])})

    def finish(self, status: Status) -> None:
        """Sends the last row, ends the W&B run and waits up to 10 s for its service to write."""
        self._send()
        try:
            self._end_run(status)
        except wandb_service.errors() as error:
            self._start_service_again(error)
            self._end_run(status)
        if self._run.offline:
            folder = Path(self._run.settings.sync_dir)
            segments = sorted(folder.parent.glob(f"offline-run-*-{self._id}*"))  # one per process
            command = as_typed(["wandb", "sync", *map(str, segments)])
            logger(__name__).info(f"Weights & Biases was offline; to upload: {command}")
        self._drop_written()
        deadline = time.monotonic() + _LAST_ROWS_S
        while self._unwritten and time.monotonic() < deadline:  # the service may still be writing
            time.sleep(0.1)
            self._drop_written()
        if self._unwritten:
            steps = f"{self._unwritten[0][0]} to {self._unwritten[-1][0]}"
            logger(__name__).warning(f"Weights & Biases has not written the rows of steps {steps}")
        elif status == "finished":
            shutil.rmtree(self._folder / PICTURES, ignore_errors=True)

    def _end_run(self, status: Status) -> None:
        if status == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)

    def _begin(self, run: Run, notes: str | None) -> None:
        assert self._id is not None
        with wandb_service.shielded():
            self._run = self._init(run, self._id, notes)
        wandb_service.end_at_exit()
        path = None if self._run.disabled else getattr(self._run.settings, "sync_file", None)
        self._file = HistoryFile(Path(path)) if path else None

    def _init(self, run: Run, run_id: str, notes: str | None) -> Any:
        import wandb

        # The console is not captured: two programs that redirect stdout interfere with each other.
        # Flushed often, so that a killed process leaves the rows it sent.
        settings = wandb.Settings(silent=True, console="off", init_timeout=30, x_transaction_log_flush_interval=0.1)
        wandb.setup(settings)
        options: dict[str, Any] = {
            "project": self._project,
            "entity": self._entity,
            "name": self._name or run.name,
            "tags": self._tags,
            "group": self._group,
            "notes": notes,
            "id": run_id,
            "resume": "allow",
            "dir": run.directory,
            "config": dict(run.config),
            "settings": settings,
        }
        mode = self._mode or (None if _mode_is_set() or has_key() else "offline")
        try:
            return wandb.init(mode=mode, **options)
        except wandb.Error as error:
            if mode == "offline":
                raise
            reason = " ".join(str(error).split())
            logger(__name__).warning(
                "Weights & Biases cannot be reached or refuses the key, so this run is logged offline "
                f"({reason}). To choose that from the start: WANDB_MODE=offline; to do without: tracking.wandb=null"
            )
            wandb.teardown()  # forgets the failed attempt, which holds on to the run's id
            return wandb.init(mode="offline", **options)

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        if step <= self._replayed_to and not step == self._replayed_to == self._resumed_step:
            return  # repeated after a resume: written the first time
        # A row that was sent cannot change: late values go into the next one.
        step = max(step, self._sent_step + 1, self._row_step if self._row else -1)
        if step != self._row_step:
            self._send()
            self._row_step = step
        self._row.update(values)

    def _send(self) -> None:
        if not self._row:
            return
        step, row = self._row_step, self._row
        self._unwritten.append((step, row))
        self._sent_step, self._row = step, {}
        try:
            self._log(step, row)
        except wandb_service.errors() as error:
            self._start_service_again(error)
        if len(self._unwritten) % CHECK_EVERY == 0:
            self._drop_written()

    def _log(self, step: int, row: Row) -> None:
        self._run.log({name: _for_wandb(value) for name, value in row.items()}, step=step, commit=True)

    def _start_service_again(self, error: Exception) -> None:
        """Restarts W&B's service process after its end, and continues from the first row that no file contains."""
        if self._num_restarts == MAX_RESTARTS:
            raise error
        self._num_restarts += 1
        self._drop_written()
        wandb_service.end()
        self._begin(self._of, None)
        logger(__name__).warning(
            f"the process of Weights & Biases ended ({str(error) or type(error).__name__}) and was started again; "
            f"{len(self._unwritten)} rows are sent to it again"
        )
        for step, row in self._unwritten:
            self._log(step, row)

    def _drop_written(self) -> None:
        """Drops the rows that W&B's file contains; without such a file, all that were sent."""
        last = self._file.last_step() if self._file is not None else self._sent_step
        self._unwritten = [(step, row) for step, row in self._unwritten if step > last]


def _for_wandb(value: Value) -> Any:
    import wandb

    if isinstance(value, np.ndarray):
        return wandb.Image(value)
    if isinstance(value, Text):
        return wandb.Html(f"<pre>{html.escape(value.text)}</pre>", inject=False)
    return wandb.Table(columns=[*value.columns], data=value.rows) if isinstance(value, Table) else value


def _id_of(folder: Path) -> str | None:
    """Returns the id of the W&B run whose files are in `folder`."""
    path = folder / ID_FILE
    return path.read_text().strip() if path.is_file() else None


def _mode_is_set() -> bool:
    import wandb

    return wandb.setup().settings.mode != "online" or "WANDB_MODE" in os.environ


def has_key() -> bool:
    """Whether `wandb login`, WANDB_API_KEY or a netrc file provides a key for the server."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    paths = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    host = urlsplit(settings.base_url).hostname or ""
    return any(path.is_file() and netrc.netrc(path).authenticators(host) for path in paths)
