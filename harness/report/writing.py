"""A run's report in one of the formats, and the files it leaves in the run's directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.report.exporters import EXPORTERS
from harness.report.page import RunReport

if TYPE_CHECKING:
    from harness.verdict.protocols import Run


def report(run: Run, format: str = "text", out: Path | None = None) -> str:
    """The report as one string, written to `out` too when that is given. UnknownName for another format."""
    content = EXPORTERS[format].render(RunReport(run))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(content, encoding="utf-8")
    return content


def write_all(run: Run) -> list[Path]:
    """Write a report of every format and figures/*.png into the run's directory; returns the paths."""
    whole, written = RunReport(run), []
    for name, picture in whole.pictures:
        path = run.path / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        written.append(path)
    for name in EXPORTERS:
        path = run.path / f"report.{EXPORTERS[name].ending}"
        path.write_text(EXPORTERS[name].render(whole), encoding="utf-8")
        written.append(path)
    return written
