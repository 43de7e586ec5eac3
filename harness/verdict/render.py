"""A check in print: text for people, annotations for GitHub, JSON for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from harness.records import Kind
from harness.registry import unknown
from harness.verdict.labels import reading_name
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Verdict
from harness.verdict.units import digits, interval, readable

MOST = 30
"""Rows of one verdict in text, unless they fail the check: on a noisy machine the undecided would bury the rest."""

PLAIN_DIGITS = {Kind.BOUNDED: 4, Kind.CLOSE: 9}
"""Of numbers without a unit, so that one just beyond its limit does not read like the limit; nine are all we keep."""

ANNOTATIONS = {Verdict.REGRESSED: "error", Verdict.MISSING: "warning", Verdict.INCONCLUSIVE: "notice"}


def render_check(check: Check, format: str = "text") -> str:
    """`text`, `github` (workflow commands) or `json`; UnknownName for another format."""
    renderers = {"text": _text, "github": _github, "json": _json}
    if format not in renderers:
        raise unknown("format of a check", format, renderers)
    return renderers[format](check)


def _text(check: Check) -> str:
    lines = [f"{check.run} against the baseline of suite {check.suite}"]
    if check.notes:
        lines.append(f"not the same as then: {'; '.join(check.notes)}")
    changed = [row for row in check.rows if row.verdict is not Verdict.SAME]
    for verdict in Verdict:
        rows = [row for row in changed if row.verdict is verdict]
        shown = [row for place, row in enumerate(rows) if place < MOST or check.fails(row)]
        if shown:
            lines += ["", _table(shown)]
        if len(rows) > len(shown):
            lines.append(f"... and {len(rows) - len(shown)} more {verdict} (--format json has them all)")
    lines += ["", *_repeats(check), *(f"failed: {cell}: {reason}" for cell, reason in check.failed.items())]
    return "\n".join([*lines, _summary(check)])


def _summary(check: Check) -> str:
    counts = ", ".join(f"{check.counts[verdict]} {verdict}" for verdict in Verdict if check.counts[verdict])
    return f"{counts or 'nothing to compare'}; {len(check.failed)} cells failed; exit {check.exit_code}"


def _repeats(check: Check) -> list[str]:
    """The commands that measure again what regressed or fails the check, each once, and for which cell they are."""
    rows = [row for row in check.rows if row.verdict is Verdict.REGRESSED or check.fails(row)]
    commands = {row.command: row.label for row in rows if row.command}
    return [f"repeat {label}: {command}" for command, label in commands.items()]


def _table(rows: list[Row]) -> str:
    from tabulate import tabulate

    groups = {row.group for row in rows}
    headers = ["verdict", "cell", "reading", "before", "now", "now / before", "rounds", "why"]
    body = [
        [
            f"{row.verdict}{'' if row.gated else ' (no gate)'}", row.label, reading_name(row.metric, row.form),
            _value(row, row.before), _value(row, row.now), _change(row), row.rounds or "", row.reason,
        ]
        for row in rows
    ]  # fmt: skip
    title = f"{next(iter(groups))}\n" if len(groups) == 1 else ""
    return title + str(tabulate(body, headers, tablefmt="simple", disable_numparse=True))


def _value(row: Row, value: float) -> str:
    if math.isnan(value) and row.verdict in (Verdict.NEW, Verdict.MISSING):
        return "–"
    if row.unit == "x":
        return f"{value:.3f} x reference"
    if row.kind == Kind.COUNT and math.isfinite(value) and abs(value) < 1e15:
        return f"{value:,.0f} {row.unit.replace('1', '')}".strip()  # a byte more must be seen
    if row.unit == "1" and row.kind in PLAIN_DIGITS:
        return f"{value:.{PLAIN_DIGITS[Kind(row.kind)]}g}"
    return readable(value, row.unit)


def _change(row: Row) -> str:
    if not math.isfinite(row.ratio) or row.verdict in (Verdict.NEW, Verdict.MISSING):
        return ""
    return f"{digits(row.ratio)} {interval(row.low, row.high)}".strip()


def _github(check: Check) -> str:
    lines = []
    for row in check.rows:
        level = ANNOTATIONS.get(row.verdict)
        if level is None:
            continue
        level = level if row.gated else "notice"
        name = f"{row.label}: {reading_name(row.metric, row.form)}"
        title = f"{row.verdict}: {name}"
        change = f" ({_change(row)})" if _change(row) else ""
        # named in the message too: a job's log shows no titles
        message = f"{name}: {_value(row, row.before)} -> {_value(row, row.now)}{change}. {row.reason}\n{row.group}"
        if row.command:
            message += f"\nrepeat: {row.command}"
        lines.append(f"::{level} title={_property(title)}::{_data(message)}")
    lines += [f"::error title={_property(f'failed: {cell}')}::{_data(why)}" for cell, why in check.failed.items()]
    return "\n".join([*lines, _summary(check)])


def _data(text: str) -> str:
    """As a workflow command wants its message."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _json(check: Check) -> str:
    value: dict[str, Any] = {
        "run": check.run,
        "suite": check.suite,
        "exit_code": check.exit_code,
        "strict": check.strict,
        "notes": list(check.notes),
        "counts": {str(verdict): check.counts[verdict] for verdict in Verdict},
        "failed": dict(check.failed),
        "rows": [{key: _plain(value) for key, value in asdict(row).items()} for row in check.rows],
    }
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, Verdict) else value
