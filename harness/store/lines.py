"""A file of JSON lines that is appended to by one process and safe against a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from harness.errors import HarnessError
from harness.records import Json


class LineFile:
    """Appends JSON values, one a line; each is on the disk before `append` returns."""

    def __init__(self, path: Path, separators: tuple[str, str] | None = None) -> None:
        self.path = path
        self.separators = separators
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._end_torn_line()

    def _end_torn_line(self) -> None:
        """A killed process may have left half a line: close it, so that the next one does not join it."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def append(self, value: Json) -> None:
        """One write of a whole line, then fsync. HarnessError when the disk does not take it."""
        line = (json.dumps(value, separators=self.separators) + "\n").encode()
        try:
            written = os.write(self._file, line)
            os.fsync(self._file)
        except OSError as problem:
            raise _disk(self.path, str(problem)) from problem
        if written != len(line):
            raise _disk(self.path, f"only {written} of {len(line)} bytes were written")

    def close(self) -> None:
        os.close(self._file)


def _disk(path: Path, problem: str) -> HarnessError:
    return HarnessError(
        f"{path} cannot be written: {problem}", remedy="make room on the disk and run the same command; it goes on"
    )


def read_lines(path: Path) -> Iterator[Json | None]:
    """Every value in order, None for a line that is no JSON (torn, or damaged); nothing where there is no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                yield _parsed(line)


def _parsed(line: str) -> Json | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
