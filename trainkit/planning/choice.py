"""Choice: the plan that a job has settled on, why, and the file by which the next run finds it."""

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
    """The plan for gradients of one size, and the words that tell why.

    fingerprint: of the machines that it was chosen for; None where they were not looked at.
    """

    plan: ReducePlan
    fingerprint: str | None = None
    why: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"plan": self.plan.to_dict(), "fingerprint": self.fingerprint}


def cache_path(fingerprint: str, *asked: Any) -> Path:
    """Where the choice for these machines and what was asked for is kept."""
    key = json.dumps([_FORMAT, fingerprint, *asked]).encode()
    return cache_root() / f"comm-{hashlib.sha256(key).hexdigest()[:16]}.json"


def read(path: Path, fingerprint: str) -> Choice | None:
    """A choice that a run before this one has made; None where there is none that can be read."""
    try:
        plain = json.loads(path.read_text())
        why: Sequence[str] = plain["why"]
        lines = (*(str(line) for line in why), f"  as an earlier run found; to have it found anew, delete {path}")
        return Choice(plan=ReducePlan.from_dict(plain["plan"]), fingerprint=fingerprint, why=lines)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        return None


def write(path: Path, choice: Choice) -> None:
    """Keeps `choice` for the next run. Where that cannot be written, the next one times again."""
    half = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps({"plan": choice.plan.to_dict(), "why": choice.why}))
        half.rename(path)
