"""A check in print: text for people, JSON for programs; what GitHub shows is in github.py."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.registry import unknown
from harness.report.github import workflow_commands
from harness.report.plain_json import json_text
from harness.report.row_text import change_text, repeats, tally, value_text, verdict_text
from harness.verdict.labels import reading_name
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Verdict

MOST = 30
"""Rows of one verdict in text, unless they fail the check: on a noisy machine the undecided would bury the rest."""


def render_check(check: Check, format: str = "text") -> str:
    """`text`, `github` (workflow commands) or `json`; UnknownName for another format."""
    renderers = {"text": _text, "github": workflow_commands, "json": _json}
    if format not in renderers:
        raise unknown("format of a check", format, renderers)
    return renderers[format](check)


def _text(check: Check) -> str:
    lines = [f"{check.run} against {check.against} of suite {check.suite}"]
    lines += [f"not the same as then: {note}" for note in check.notes]
    changed = [row for row in check.rows if row.verdict is not Verdict.SAME]
    for verdict in Verdict:
        rows = [row for row in changed if row.verdict is verdict]
        shown = [row for place, row in enumerate(rows) if place < MOST or check.fails(row)]
        if shown:
            lines += ["", _table(shown)]
        if len(rows) > len(shown):
            lines.append(f"... and {len(rows) - len(shown)} more {verdict} (--format json has them all)")
    lines += ["", *(f"repeat {label}: {command}" for command, label in repeats(check).items())]
    lines += [f"failed: {cell}: {reason}" for cell, reason in check.failed.items()]
    return "\n".join([*lines, *([check.nothing] if check.nothing else []), tally(check)])


def _table(rows: list[Row]) -> str:
    from tabulate import tabulate

    groups = {row.group for row in rows}
    headers = ["verdict", "cell", "reading", "before", "now", "now / before", "rounds", "why"]
    body = [
        [
            verdict_text(row), row.label, reading_name(row.metric, row.form), value_text(row, row.before),
            value_text(row, row.now), change_text(row), row.rounds or "", row.reason,
        ]
        for row in rows
    ]  # fmt: skip
    title = f"{next(iter(groups))}\n" if len(groups) == 1 else ""
    return title + str(tabulate(body, headers, tablefmt="simple", disable_numparse=True))


def _json(check: Check) -> str:
    value: dict[str, Any] = {
        "run": check.run,
        "suite": check.suite,
        "against": check.against,
        "exit_code": check.exit_code,
        "strict": check.strict,
        "nothing": check.nothing,
        "notes": list(check.notes),
        "counts": {str(verdict): check.counts[verdict] for verdict in Verdict},
        "failed": dict(check.failed),
        "rows": [asdict(row) for row in check.rows],
    }
    return json_text(value)
