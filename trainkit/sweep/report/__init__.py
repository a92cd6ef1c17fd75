"""The report of a sweep: one HTML file that needs nothing else."""

from trainkit.sweep.report.page import FILE_NAME, write_report

__all__ = ["FILE_NAME", "write_report"]
