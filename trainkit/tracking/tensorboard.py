"""TensorBoard event files, on request."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from trainkit.errors import ConfigError
from trainkit.tracking.tracker import Run, Status, Tracker


class TensorBoard(Tracker):
    """Writes `tensorboard/` in the run directory. After a resume, later steps of earlier processes are purged."""

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError(
                "tracking.tensorboard=true needs the package tensorboard: pip install 'trainkit[tensorboard]'"
            )
        self._writer: Any = None

    def start(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = 0 if run.resumed_step is None else run.resumed_step + 1
        self._writer = SummaryWriter(str(run.directory / "tensorboard"), purge_step=purge_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        self.log(step, values)
        self._writer.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        verbatim = "\n".join(f"    {line}" for line in text.splitlines())  # indented: Markdown for "as it is"
        self._writer.add_text(name, verbatim, step)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in cells), step)

    def finish(self, status: Status) -> None:
        self._writer.close()
