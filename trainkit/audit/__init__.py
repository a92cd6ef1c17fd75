"""Audit: what a training set gives away of the examples that a result is measured on."""

from trainkit.audit.audit import audit
from trainkit.audit.given import Given
from trainkit.audit.report import GivenAway, Leak, Report

__all__ = ["Given", "GivenAway", "Leak", "Report", "audit"]
