"""Choice: the plan that a job has chosen, the reason, and the cache file in which the next run finds it."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit.cache import cache_root
from trainkit.planning.reduce_plan import ReducePlan

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The plan for gradients of one size.

    Args:
        plan: the plan.
        fingerprint: of the machines that it was chosen for; None where they were not read.
        why: lines of text that give the reason.
    """

    plan: ReducePlan
    fingerprint: str | None = None
    why: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plan and the fingerprint as JSON values, for a checkpoint."""
        return {"plan": self.plan.to_dict(), "fingerprint": self.fingerprint}


def cache_path(fingerprint: str, *asked: Any) -> Path:
    """The cache file of a choice.

    Args:
        fingerprint: of the machines.
        *asked: JSON values of all options that the choice depends on.
    """
    key = json.dumps([_FORMAT, fingerprint, *asked]).encode()
    return cache_root() / f"comm-{hashlib.sha256(key).hexdigest()[:16]}.json"


def read(path: Path, fingerprint: str) -> Choice | None:
    """Reads the choice of an earlier run.

    Args:
        path: from `cache_path`.
        fingerprint: of the machines.

    Returns:
        The choice; None where there is no file, or it cannot be read.
    """
    try:
        plain = json.loads(path.read_text())
        why: Sequence[str] = plain["why"]
        lines = (*(str(line) for line in why), f"  from an earlier run; to measure again, delete {path}")
        return Choice(plan=ReducePlan.from_dict(plain["plan"]), fingerprint=fingerprint, why=lines)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        return None


def write(path: Path, choice: Choice) -> None:
    """Writes a choice for the next run, which measures again where the file cannot be written.

    Args:
        path: from `cache_path`.
        choice: to write.
    """
    temporary = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"plan": choice.plan.to_dict(), "why": choice.why}))
        temporary.rename(path)
