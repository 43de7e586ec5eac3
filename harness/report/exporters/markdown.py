"""The report as Markdown, as GitHub shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.document import PUBLISHED, Table
from harness.report.exporter import exporter

if TYPE_CHECKING:
    from harness.report.page import RunReport


@exporter("md", ending="md")
def markdown(report: RunReport) -> str:
    """Headings, the sentences before the tables, and the environment at the end."""
    page, escape = report.page, markdown_escape
    lines = [f"# {escape(page.name)}", "", escape(page.hardware), "", page.note]
    if page.published:
        lines += ["", f"## {PUBLISHED}"]
    for one in page.published:
        lines += ["", f"**{escape(one.table.title)}**", "", markdown_table(one.table), "", escape(one.table.caption)]
        lines += ["", *(f"- {escape(note)}" for note in one.notes)]
    for section in page.sections:
        lines += ["", f"## {escape(section.title)}", "", *(f"- {escape(line)}" for line in section.sentences)]
        for table in section.tables:
            lines += ["", f"**{table.title}**", "", markdown_table(table)]
        lines += [line for table in section.tables[:1] for line in ("", escape(table.caption))]
    if page.failures:
        lines += ["", "## Not measured", "", *(f"- {escape(line)}" for line in page.failures)]
    lines += ["", "## Environment", "", *(f"- {escape(name)}: {escape(value)}" for name, value in page.environment)]
    return "\n".join(lines) + "\n"


def markdown_table(table: Table) -> str:
    """A GitHub table."""
    headers = [table.corner, *("<br>".join(markdown_escape(h) for h in column.heading) for column in table.columns)]
    lines = ["| " + " | ".join(headers) + " |", "|---" + "|---:" * len(table.columns) + "|"]
    lines += ["| " + " | ".join(markdown_escape(cell) for cell in row) + " |" for row in table.rows]
    return "\n".join(lines)


def markdown_escape(value: str) -> str:
    """User text as it is: no emphasis, no cell borders, no tags."""
    for sign in "\\`*_|<>":
        value = value.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return value.replace("\n", " ")
