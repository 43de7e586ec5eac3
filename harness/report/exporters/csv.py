"""The tidy frame of a run as comma-separated values, in SI units: one row per cell, metric and form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.exporter import exporter

if TYPE_CHECKING:
    from harness.report.page import RunReport


@exporter("csv", ending="csv")
def csv(report: RunReport) -> str:
    """`Run.frame()` with its column names."""
    return report.run.frame().to_csv(index=False)
