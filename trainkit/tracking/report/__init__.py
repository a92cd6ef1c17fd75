"""The report of a run: one HTML file that needs nothing else."""

from trainkit.tracking.report.page import FILE_NAME, write_report
from trainkit.tracking.report.tracker import Report

__all__ = ["FILE_NAME", "Report", "write_report"]
