"""What a report says, as strings in tables and sections, whatever format it is written in. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

MISSING = "–"
"""In place of a value that is not there."""

PUBLISHED = "Published, and found by this run"
"""Heading of what stands first, since a suite that names published figures was written to be answered by it."""


@dataclass(frozen=True)
class Column:
    """A heading in up to three short lines (quantity, form, unit) and one text per row."""

    heading: tuple[str, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """`labels` are the first column: the variants."""

    title: str
    caption: str
    corner: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def rows(self) -> list[list[str]]:
        """Each label with its cells."""
        return [[label, *(column.cells[i] for column in self.columns)] for i, label in enumerate(self.labels)]


@dataclass(frozen=True)
class PublishedTable:
    """Published and own numbers side by side, and what must be said under them."""

    table: Table
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One group: its tables, and the answer in sentences."""

    title: str
    tables: list[Table]
    sentences: list[str]


@dataclass(frozen=True)
class Page:
    """Everything that a report says."""

    name: str
    hardware: str
    note: str
    published: list[PublishedTable]
    sections: list[Section]
    failures: list[str]
    environment: list[tuple[str, str]]
    suite: str
