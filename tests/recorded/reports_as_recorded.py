"""The reports of the runs under results/, as they were when somebody last looked at them, and how they are compared.

    python tests/recorded/reports_as_recorded.py        writes them anew, after a change of the report that is meant

The text is kept whole, so that a difference can be read; of the other formats its digest is kept, and of the frame, whose
last bits differ between processors, the numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

from harness.report.exporters import EXPORTERS
from harness.report.page import RunReport
from harness.store.run import META, open_run

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "recorded_reports"
DIGESTS = FOLDER / "digests.json"
DIGESTED = ("md", "tex", "html")

PICTURE = re.compile(r"data:image/png;base64,[^\"']*")
"""matplotlib's versions draw the same figure in other bytes."""


def runs() -> dict[str, Path]:
    """Every run that is kept in git, by a name for files."""
    found = sorted(path.parent for path in (ROOT / "results").rglob(META) if "runs" not in path.parts)
    return {"_".join(path.relative_to(ROOT / "results" / "studies").parts): path for path in found}


def report_of(path: Path) -> RunReport:
    return RunReport(open_run(path))


def rendered(report: RunReport, format: str) -> str:
    return EXPORTERS[format].render(report)


def digest(content: str) -> str:
    return hashlib.sha256(PICTURE.sub("", content).encode()).hexdigest()


def write() -> None:
    digests = {}
    for name, path in runs().items():
        report = report_of(path)
        (FOLDER / f"{name}.txt").write_text(rendered(report, "text"), encoding="utf-8")
        packed = gzip.compress(rendered(report, "csv").encode(), mtime=0)
        (FOLDER / f"{name}.csv.gz").write_bytes(packed)
        digests[name] = {format: digest(rendered(report, format)) for format in DIGESTED}
    DIGESTS.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
