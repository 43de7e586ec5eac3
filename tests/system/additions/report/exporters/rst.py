"""The report as reStructuredText, as Sphinx reads it: a format as a newcomer would add it, in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.document import Table
from harness.report.exporter import exporter

if TYPE_CHECKING:
    from harness.report.page import RunReport


@exporter("rst", ending="rst")
def rst(report: RunReport) -> str:
    """A heading for each group, its tables, and the answer in a list."""
    page = report.page
    lines = [page.name, "#" * len(page.name), "", page.hardware]
    for section in page.sections:
        lines += ["", section.title, "=" * len(section.title)]
        lines += [line for table in section.tables for line in ("", f"**{table.title}**", "", _grid(table))]
        lines += ["", *(f"* {sentence}" for sentence in section.sentences)]
    return "\n".join(lines) + "\n"


def _grid(table: Table) -> str:
    from tabulate import tabulate

    headers = [table.corner, *(" ".join(column.heading) for column in table.columns)]
    return str(tabulate(table.rows, headers, tablefmt="grid", disable_numparse=True))
