"""Memory: reports of complete audits, kept in the cache, so that a run that starts again need not look again."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainkit.audit.report import GivenAway, Leak, Report
from trainkit.cache import cached
from trainkit.errors import DataError

_FORMAT = 1  # increase it whenever the same data would give another report
_REPORT, _KEYS = "report.json", "keys.npy"


def recall(root: Path, fingerprint: str) -> Report | None:
    """Returns the report of the same data, without pictures; None where there is none.

    Args:
        root: the cache.
        fingerprint: of the data and of what they were compared with.
    """
    directory = root / _name(fingerprint)
    try:
        values: dict[str, Any] = json.loads((directory / _REPORT).read_text())
        keys = np.load(directory / _KEYS, allow_pickle=False)
    except (OSError, ValueError):
        return None
    values["leaks"] = tuple(Leak(**leak) for leak in values["leaks"])
    values["given_away"] = tuple(GivenAway(**one) for one in values["given_away"])
    return Report(**{**values, "notes": tuple(values["notes"]), "keys": keys})


def remember(root: Path, fingerprint: str, report: Report) -> None:
    """Keeps a complete report; where the cache cannot be written, nothing is kept."""
    if not report.is_complete:
        return

    def write(directory: Path) -> None:
        values = {name: value for name, value in vars(report).items() if name != "keys"}
        values["leaks"] = [leak.facts() for leak in report.leaks]
        values["given_away"] = [vars(one) for one in report.given_away]
        (directory / _REPORT).write_text(json.dumps(values))
        np.save(directory / _KEYS, report.keys)

    try:
        cached(root, _name(fingerprint), write)
    except DataError:
        return


def _name(fingerprint: str) -> str:
    return f"audit-{_FORMAT}-{fingerprint}"
