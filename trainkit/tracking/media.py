"""Media: the pictures, texts and tables of a run as plain files."""

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
        """Removes the files of steps after the resumed one."""
        self._directory = run.directory / "media"
        resumed_step = -1 if run.resumed_step is None else run.resumed_step
        for path in self._directory.glob("*/*"):
            if path.stem.isdecimal() and int(path.stem) > resumed_step:
                path.unlink()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a picture as PNG."""
        from PIL import Image

        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(self._path(step, name, "png"))

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text file in UTF-8."""
        self._path(step, name, "txt").write_text(text.rstrip() + "\n", encoding="utf-8")

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Writes a table as CSV, with a header."""
        with self._path(step, name, "csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *rows])

    def _path(self, step: int, name: str, suffix: str) -> Path:
        path = self._directory / re.sub(r"[^\w.-]+", "_", name) / f"{step:08}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
