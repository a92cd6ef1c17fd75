"""Weights & Biases: one run per job, kept across resumes, offline where there is no key."""

import html
import json
import netrc
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from trainkit.errors import ConfigError
from trainkit.tracking.tracker import Run, Status, Tracker

Mode = Literal["online", "offline"]


class WandB(Tracker):
    """Metrics, evaluations, pictures, texts and tables of a run, a history row a step.

    `mode` None: what WANDB_MODE or `wandb offline` says, else online where a key is found, else offline. Its files lie
    in `wandb/` of the run directory. A row is sent whole when the next step's begins, after its step is noted in
    `wandb/sent.json`; rows up to that step are in the history already and are not sent again after a resume.
    """

    def __init__(
        self,
        *,
        project: str = "trainkit",
        entity: str | None = None,
        name: str | None = None,
        tags: tuple[str, ...] = (),
        mode: Mode | None = None,
    ):
        if find_spec("wandb") is None:
            raise ConfigError("tracking.wandb needs the package wandb: pip install wandb, or type tracking.wandb=null")
        self._project = project
        self._entity = entity
        self._name = name
        self._tags = tags
        self._mode = mode
        self._id: str | None = None
        self._run: Any = None
        self._row: dict[str, Any] = {}
        self._row_step = -1
        self._sent_step = -1
        self._sent_file = Path()

    def state(self) -> dict[str, Any]:
        return {"id": self._id} if self._id else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._id = state["id"]

    def start(self, run: Run) -> None:
        resumed = self._id is not None and run.resumed_step is not None
        if self._id is None or not resumed:
            self._id = secrets.token_hex(4)
        self._sent_file = run.directory / "wandb" / "sent.json"
        self._sent_file.parent.mkdir(exist_ok=True)
        if resumed:
            assert run.resumed_step is not None
            self._sent_step = max(run.resumed_step, _sent_step(self._sent_file, self._id))
        self._run = self._init(run, self._id)
        self._sent_step = max(self._sent_step, self._run.starting_step - 1)  # what the server already has
        if not self._run.offline and self._run.url:
            print(f"Weights & Biases: {self._run.url}", flush=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, values)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        import wandb

        self._add(step, {name: wandb.Image(image)})

    def text(self, step: int, name: str, text: str) -> None:
        import wandb

        self._add(step, {name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)})

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        self._add(step, {name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def finish(self, status: Status) -> None:
        self._send()
        if status == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)
        if self._run.offline:
            folder = Path(self._run.settings.sync_dir)
            segments = sorted(folder.parent.glob(f"offline-run-*-{self._id}*"))  # one a process
            print(f"Weights & Biases was offline; to upload: wandb sync {' '.join(map(str, segments))}", flush=True)

    def _init(self, run: Run, run_id: str) -> Any:
        import wandb

        # The console is not captured: two programs that redirect stdout get in each other's way.
        # Flushed often, so that a killed process leaves the rows it sent.
        settings = wandb.Settings(silent=True, console="off", init_timeout=30, x_transaction_log_flush_interval=0.1)
        wandb.setup(settings)
        options: dict[str, Any] = {
            "project": self._project,
            "entity": self._entity,
            "name": self._name or run.name,
            "tags": self._tags,
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
            print(
                "trainkit: Weights & Biases cannot be reached or refuses the key, so this run is kept offline "
                f"({reason}). To choose that from the start: WANDB_MODE=offline; to do without: tracking.wandb=null",
                file=sys.stderr,
                flush=True,
            )
            wandb.teardown()  # forgets the failed attempt, which holds on to the run's id
            return wandb.init(mode="offline", **options)

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        if step <= self._sent_step:
            return
        if step != self._row_step:
            self._send()
            self._row_step = step
        self._row.update(values)

    def _send(self) -> None:
        if not self._row:
            return
        # Noted first: a process killed in between loses this row, where the other order would tell it twice.
        self._sent_file.write_text(json.dumps({"id": self._id, "step": self._row_step}))
        self._run.log(self._row, step=self._row_step, commit=True)
        self._sent_step = self._row_step
        self._row = {}


def _sent_step(path: Path, run_id: str | None) -> int:
    """The last step that this directory's processes sent to the run `run_id`; -1 for none."""
    try:
        sent = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # never written, or its writer was killed in the middle of it
        return -1
    return sent["step"] if sent["id"] == run_id else -1


def _mode_is_set() -> bool:
    import wandb

    return wandb.setup().settings.mode != "online" or "WANDB_MODE" in os.environ


def has_key() -> bool:
    """Whether `wandb login`, WANDB_API_KEY or a netrc has left a key for the server."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    paths = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    host = urlsplit(settings.base_url).hostname or ""
    return any(path.is_file() and netrc.netrc(path).authenticators(host) for path in paths)
