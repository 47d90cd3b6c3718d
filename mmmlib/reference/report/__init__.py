"""A finished run as one HTML page that needs nothing else, and several runs side by side."""

from mmmlib.reference.report._compare import compare_runs, write_comparison
from mmmlib.reference.report._report import write_report

__all__ = ["compare_runs", "write_comparison", "write_report"]
