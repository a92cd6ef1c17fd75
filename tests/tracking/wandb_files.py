"""What W&B has written, by its own reader."""

import json
import subprocess
import sys


def records(segment):
    """What W&B's own reader finds in an offline run's directory."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(segment)]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [json.loads(line) for line in output.splitlines()]


def history(directory):
    """{step: row} over all segments of a run; fails where a step is told twice."""
    rows = {}
    for segment in sorted((directory / "wandb").glob("offline-run-*")):
        for record in records(segment):
            if record["type"] == "history":
                row = record["history"]["item"]
                assert row["_step"] not in rows, "told twice"
                rows[row["_step"]] = row
    return rows
