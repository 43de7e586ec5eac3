"""The report as plain text, as wide as a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill
from typing import TYPE_CHECKING

from harness.report.document import PUBLISHED, Column, Table
from harness.report.exporter import exporter

if TYPE_CHECKING:
    from harness.report.page import RunReport

WIDTH = 140
"""Columns of a terminal that a text table may fill; wider ones go on in a second block."""


@exporter("text", ending="txt")
def text(report: RunReport) -> str:
    """Every table in blocks that fit, the sentences below them."""
    page = report.page
    lines = [page.name, page.hardware, page.note]
    if page.published:
        lines += ["", PUBLISHED, "=" * len(PUBLISHED)]
    for one in page.published:
        notes = [f"({one.table.caption})", *one.notes]
        lines += ["", one.table.title, "", text_table(one.table), "", *(_wrapped(line) for line in notes)]
    for section in page.sections:
        lines += ["", section.title, "=" * len(section.title)]
        for table in section.tables:
            lines += ["", table.title, "", text_table(table)]
        lines += ["", *({f"({table.caption})": None for table in section.tables}), ""]
        lines += section.sentences
        if not section.tables:
            lines.append("nothing was measured")
    if not page.sections:
        lines += ["", "nothing was measured"]
    if page.failures:
        lines += ["", "Not measured", *(f"  {line}" for line in page.failures)]
    return "\n".join(lines).rstrip() + "\n"


def _wrapped(line: str) -> str:
    return fill(line, WIDTH, break_on_hyphens=False)  # an id is searched for as a whole


def text_table(table: Table, width: int = WIDTH) -> str:
    """A terminal table; columns that do not fit into `width` follow in further blocks with the labels repeated."""
    return "\n\n".join(_grid(block) for block in _blocks(table, width))


def _grid(table: Table) -> str:
    from tabulate import tabulate

    headers = [table.corner, *("\n".join(column.heading) for column in table.columns)]
    align = ("left", *("right" for _ in table.columns))
    return str(tabulate(table.rows, headers, tablefmt="simple", disable_numparse=True, colalign=align))


def _blocks(table: Table, width: int) -> Iterator[Table]:
    room = width - max(len(label) for label in (*table.labels, table.corner))
    columns: list[Column] = []
    taken = 0
    for column in table.columns:
        need = 2 + max(len(line) for line in (*column.heading, *column.cells))
        if columns and taken + need > room:
            yield Table(table.title, table.caption, table.corner, table.labels, tuple(columns))
            taken, columns = 0, []
        columns.append(column)
        taken += need
    yield Table(table.title, table.caption, table.corner, table.labels, tuple(columns))
