"""Advice: one problem of a topology, and its remedy."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "hint"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One problem of a topology.

    Args:
        severity: `error`: the job will fail or hang; `warning`: it is slower than the machine allows; `hint`: it could
            be faster.
        subject: the host, device or link.
        problem: what is wrong, and its cost.
        remedy: what to type or change.
    """

    severity: Severity
    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.severity}: {self.subject}: {self.problem}; {self.remedy}"
