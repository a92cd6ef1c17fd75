"""A tracker of a user's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trainkit


@dataclass(frozen=True)
class Format:
    digits: int = 4


class MyTracker(trainkit.Tracker):
    """Appends the metrics of evaluations to a file."""

    def __init__(self, path: Path | None = None, title: str = "", form: Format | None = None) -> None:
        self.path, self.title, self.form = path, title, form or Format()

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(f"{self.title} {step} {values['held_out_loss']:.{self.form.digits}f}\n")
