"""What an A/A and power study found: `python results/studies/timing/study.py [FOLDER] [--page docs/timing.md]`.

Reads samples.csv.gz and verdicts.csv.gz as `harness aa` writes them; prints the tables and writes summary.json,
summary.md and figure.png beside them. Every number comes from the two files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from counts import Study, coverage, detections, effort, false_alarms, judgements, read, recomputed
from figure import draw
from page import definitions, markdown, refresh

from harness.errors import HarnessError

HERE = Path(__file__).resolve().parent


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 where something is wrong with the folder or the page."""
    parser = argparse.ArgumentParser(description="count what rules say about a timing study's samples")
    parser.add_argument(
        "folders", type=Path, nargs="*", help="each with both files; default: every folder beside this script"
    )
    parser.add_argument("--out", type=Path, help="where the summary goes; default: the only folder, or this script's")
    parser.add_argument("--page", type=Path, help="a page whose text between the study markers is replaced")
    options = parser.parse_args(arguments)
    try:
        folders = options.folders or sorted(path.parent for path in HERE.glob("*/samples.csv.gz"))
        if not folders:
            raise HarnessError(f"{HERE} has no folder with samples", remedy="name one, or measure: harness aa")
        out = options.out or (folders[0] if len(folders) == 1 else HERE)
        study = read(*folders)
        summary, alarms, found = summarise(study)
        text = markdown(summary)
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (out / "summary.md").write_text(text, encoding="utf-8")
        draw(alarms, found, out / "figure.png")
        if options.page is not None:
            shown = Path(os.path.relpath(out / "figure.png", options.page.parent)).as_posix()
            refresh(options.page, f"![False alarms and power]({shown})\n\n{definitions()}\n\n{text}")
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


def summarise(study: Study) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """summary.json, and the two tables that the figure shows."""
    said = judgements(study)
    alarms, found = false_alarms(said), detections(said)
    tables = {"false_alarms": alarms, "detections": found}
    tables |= {"effort": effort(study.verdicts), "coverage": coverage(study.verdicts)}
    summary: dict[str, Any] = {"data": _data(study), "missing": study.missing}
    summary |= {name: [_plain(row) for row in table.to_dict("records")] for name, table in tables.items()}
    return summary | {"recomputed": recomputed(study)}, alarms, found


def _data(study: Study) -> list[dict[str, Any]]:
    passes = study.samples.groupby("condition").size()
    return [
        {
            "condition": condition,
            "experiments": int(cells["experiment"].nunique()),
            "readings": int(cells["reading"].nunique()),
            "cells": len(cells),
            "aa": int((cells["delta"] == 0).sum()),
            "passes": int(passes.get(condition, 0)),
        }
        for condition, cells in study.verdicts.groupby("condition", sort=False)
    ]


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """JSON has no NaN; what is not known is null. Seven digits say all that a share of counts can."""
    return {
        key: (None if math.isnan(value) else float(f"{value:.7g}")) if isinstance(value, float) else value
        for key, value in row.items()
    }


if __name__ == "__main__":
    sys.exit(main())
