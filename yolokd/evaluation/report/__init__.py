"""The report of a comparison or of one training: an HTML file that stands alone, and a Markdown table."""

from __future__ import annotations

from yolokd.evaluation.report.page import write_report
from yolokd.evaluation.report.single import write_run_report

__all__ = ["write_report", "write_run_report"]
