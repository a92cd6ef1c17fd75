"""Pictures, texts and tables of a run as plain files."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.tracking.tracker import Run, Tracker


class Media(Tracker):
    """Writes `media/NAME/STEP.png`, `.txt` and `.csv` in the run directory; a resume removes those of later steps."""

    def __init__(self) -> None:
        self._directory = Path()

    def start(self, run: Run) -> None:
        self._directory = run.directory / "media"
        resumed_step = -1 if run.resumed_step is None else run.resumed_step
        for path in self._directory.glob("*/*"):
            if path.stem.isdecimal() and int(path.stem) > resumed_step:
                path.unlink()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        from PIL import Image

        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(self._path(step, name, "png"))

    def text(self, step: int, name: str, text: str) -> None:
        self._path(step, name, "txt").write_text(text.rstrip() + "\n", encoding="utf-8")

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        with self._path(step, name, "csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *rows])

    def _path(self, step: int, name: str, suffix: str) -> Path:
        path = self._directory / re.sub(r"[^\w.-]+", "_", name) / f"{step:08}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
