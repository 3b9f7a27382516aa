"""What this plugin adds to the report of a test."""

from __future__ import annotations

from typing import Any


def add_section(report: Any, text: str) -> None:
    """Add a section to a test's report: where that shows a failure, as a part of it, which all reports show."""
    if hasattr(report.longrepr, "addsection"):
        report.longrepr.addsection("anchor", text)
    else:
        report.sections.append(("anchor", text))
