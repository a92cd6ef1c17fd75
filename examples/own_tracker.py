"""A tracker of your own: the metrics of all runs in one SQLite database.

    python examples/own_tracker.py
    trainkit train --config-dir examples/own_recipe/conf recipe=letters \
        tracking.others.mine._target_=examples.own_tracker.SQLite tracking.others.mine.path=runs/metrics.db

Its methods are called on rank 0 only, with numbers that are means over all ranks.
"""

import sqlite3
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

import trainkit
from trainkit.tracking import Run, Status


class SQLite(trainkit.Tracker):
    """Rows (run, step, name, value) in a table `metrics`.

    Args:
        path: The database, which several runs may share.
    """

    def __init__(self, path: str = "runs/metrics.db") -> None:
        self.path = Path(path)

    def start(self, run: Run) -> None:
        """Called once a process. After a resume, the steps after `run.resumed_step` are logged again."""
        self.run = run.name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(self.path)
        self.database.execute("CREATE TABLE IF NOT EXISTS metrics (run, step, name, value)")
        kept = -1 if run.resumed_step is None else run.resumed_step
        self.database.execute("DELETE FROM metrics WHERE run = ? AND step > ?", (self.run, kept))
        self.database.commit()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._insert(step, values)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        self._insert(step, values)

    def finish(self, status: Status) -> None:
        self.database.close()

    def _insert(self, step: int, values: Mapping[str, float]) -> None:
        rows = [(self.run, step, name, value) for name, value in values.items()]
        self.database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", rows)
        self.database.commit()


def main() -> None:
    tracker = SQLite()
    runtime = trainkit.Runtime(seed=0, run_dir="runs/own_tracker", tracker=tracker, log_every=10)
    module = nn.Linear(4, 1)
    engine = runtime.setup(module, torch.optim.SGD(module.parameters(), lr=0.1))
    x = torch.randn(256, 4)
    for step, batch in enumerate(runtime.batches({"x": x, "y": x.sum(dim=1)}, batch_size=32, num_steps=50), start=1):
        engine.backward(mse_loss(engine(batch.x).squeeze(1), batch.y))
        runtime.log(step, **engine.step().metrics())
    runtime.close()
    query = "SELECT step, value FROM metrics WHERE run = 'own_tracker' AND name = 'loss' ORDER BY step"
    for step, loss in sqlite3.connect(tracker.path).execute(query):
        print(f"step {step:>4}  loss {loss:.2e}")


if __name__ == "__main__":
    main()
