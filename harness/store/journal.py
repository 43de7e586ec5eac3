"""The journal: one record a line, appended by the parent alone, safe against a kill at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.records import Json, Record
from harness.store.lines import LineFile, read_lines

NAME = "journal.jsonl"


class Journal:
    """Appends records; each is on the disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)

    def append(self, record: Record) -> None:
        """One write of a whole line, then fsync. HarnessError when the disk does not take it."""
        self._lines.append(record.to_json())

    def close(self) -> None:
        self._lines.close()


def read(path: Path) -> Iterator[Record | None]:
    """Every record in the journal, in order; None for a line that is no record (torn, or damaged)."""
    return (_record(value) for value in read_lines(path))


def _record(value: Json | None) -> Record | None:
    try:
        return Record.from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
