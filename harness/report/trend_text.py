"""A trend in print: text for people, annotations for GitHub, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from harness.records import Kind
from harness.registry import unknown
from harness.report.plain_json import json_text
from harness.report.workflow_command import workflow_command
from harness.units import digits, exact, interval, readable
from harness.verdict.labels import reading_name
from harness.verdict.rules import Verdict
from harness.verdict.trend.change import Change, Trend
from harness.verdict.trend.history import PastRun, Series

MOST = 30
"""Changes in text, unless they fail: counts of a suite that has grown change by the hundred."""

BARS = "▁▂▃▄▅▆▇█"
WIDEST = 40
"""Runs in a line of bars: the newest."""


def render_trend(trend: Trend, format: str = "text") -> str:
    """`text`, `github` (workflow commands) or `json` (with the series); UnknownName for another format."""
    renderers = {"text": _text, "github": _github, "json": _json}
    if format not in renderers:
        raise unknown("format of a trend", format, renderers)
    return renderers[format](trend)


def _text(trend: Trend) -> str:
    runs = trend.runs
    lines = [f"{trend.folder}: {len(runs)} runs from {runs[0].started} to {runs[-1].started}"]
    machines = trend.history.machines
    lines += [
        f"machine {name}: {what}, {sum(run.machine == name for run in runs)} runs" for name, what in machines.items()
    ]
    lines += [f"cannot be read: {path}: {why}" for path, why in trend.history.unreadable.items()]
    lines += [f"note: {note}" for note in trend.notes]
    shown = [change for place, change in enumerate(trend.changes) if place < MOST or change.fails]
    if shown:
        lines += ["", _table(trend, shown)]
    if len(trend.changes) > len(shown):
        lines.append(f"... and {len(trend.changes) - len(shown)} more (--format json has them all)")
    return "\n".join([*lines, *_what_to_do(trend), "", _summary(trend)])


def _table(trend: Trend, changes: Sequence[Change]) -> str:
    from tabulate import tabulate

    headers = ["verdict", "cell", "reading", "between", "and", "before", "after", "after / before", "runs", "why"]
    body = [
        [
            _verdict(change), change.label, reading_name(change.metric, change.form),
            _run(trend.runs[change.before]), _run(trend.runs[change.after]), _level(change, change.level_before),
            _level(change, change.level_after), _ratio(change), _bars(series_of(trend, change)), change.reason,
        ]
        for change in changes
    ]  # fmt: skip
    return str(tabulate(body, headers, tablefmt="simple", disable_numparse=True))


def series_of(trend: Trend, change: Change) -> Series:
    """The series in which a change was found."""
    key = (change.cell, change.metric, change.form)
    return next(
        series
        for series in trend.history.series
        if (series.cell, series.metric, series.form) == key
        and change.after in series.runs
        and change.before in series.runs
    )


def _verdict(change: Change) -> str:
    if change.accepted:
        return f"{change.verdict} (accepted: {change.accepted})"
    return f"{change.verdict}{'' if change.gated else ' (no gate)'}"


def _run(run: PastRun) -> str:
    return f"{run.started.removesuffix('+00:00')} {run.source[:8]}"


def _level(change: Change, value: float) -> str:
    if change.unit == "x":
        return f"{value:.3f} x"
    if change.kind == Kind.COUNT and (whole := exact(value, change.unit)) is not None:  # a byte more must be seen
        return whole
    if change.unit == "1":
        return f"{value:.4g}"
    return readable(value, change.unit)


def _ratio(change: Change) -> str:
    if not math.isfinite(change.ratio):
        return ""
    return f"{digits(change.ratio)} {interval(change.low, change.high, 3)}".strip()


def _bars(series: Series) -> str:
    """The newest values between their least and most, one sign a run."""
    values = series.values[-WIDEST:]
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    width = (high - low) or 1.0
    steps = len(BARS) - 1
    return "".join(BARS[round((value - low) / width * steps)] if math.isfinite(value) else "?" for value in values)


def _what_to_do(trend: Trend) -> list[str]:
    """For what fails: how to measure it again, and what to write when it is selection."""
    failing = [change for change in trend.changes if change.fails]
    if not failing:
        return []
    commands = {change.command: change.label for change in failing if change.command}
    first = failing[0]
    run = trend.runs[first.after].name
    entry = f"- {{cell: {first.cell}, metric: {first.metric}, run: {json.dumps(run)}, because: ...}}"
    return [
        "",
        *(f"repeat {label}: {command}" for command, label in commands.items()),
        f"if it is meant, write under 'accepted:' in annotations.yaml: {entry}",
    ]


def _summary(trend: Trend) -> str:
    counts = ", ".join(f"{trend.counts[verdict]} {verdict}" for verdict in Verdict if trend.counts[verdict])
    accepted = sum(bool(change.accepted) for change in trend.changes)
    found = f"{counts or 'no change'}{f' ({accepted} accepted)' if accepted else ''}"
    return f"{found}; {trend.judged} of {len(trend.history.series)} readings judged; exit {trend.exit_code}"


LEVELS = {Verdict.REGRESSED: "error", Verdict.INCONCLUSIVE: "notice"}


def _github(trend: Trend) -> str:
    lines = []
    for change in trend.changes:
        level = LEVELS.get(change.verdict)
        if level is None or change.accepted:
            continue
        name = f"{change.label}: {reading_name(change.metric, change.form)}"
        between = f"between {_run(trend.runs[change.before])} and {_run(trend.runs[change.after])}"
        levels = f"{_level(change, change.level_before)} -> {_level(change, change.level_after)}"
        # named in the message too: a job's log shows no titles
        message = f"{name}: {levels} {_ratio(change)} {between}. {change.reason}"
        if change.command:
            message += f"\nrepeat: {change.command}"
        shown = level if change.gated else "notice"
        lines.append(workflow_command(shown, f"{change.verdict}: {name}", message))
    unreadable = trend.history.unreadable.items()
    lines += [workflow_command("warning", "unreadable run", f"{path}: {why}") for path, why in unreadable]
    return "\n".join([*lines, _summary(trend)])


def _json(trend: Trend) -> str:
    value: dict[str, Any] = {
        "folder": trend.folder,
        "exit_code": trend.exit_code,
        "runs": [asdict(run) for run in trend.runs],
        "machines": dict(trend.history.machines),
        "unreadable": dict(trend.history.unreadable),
        "notes": list(trend.notes),
        "judged": trend.judged,
        "counts": {str(verdict): trend.counts[verdict] for verdict in Verdict},
        "changes": [{**asdict(change), "fails": change.fails} for change in trend.changes],
        "series": [_series(series) for series in trend.history.series],
    }
    return json_text(value)


def _series(series: Series) -> dict[str, Any]:
    """Values as ratios to the reference cell or in the unit, one for each of `runs`."""
    names = ("cell", "label", "metric", "form", "kind", "better", "reference", "suite", "machine", "runs")
    unit = "x" if series.scale == "ratio" else series.unit
    return {name: getattr(series, name) for name in names} | {
        "unit": unit,
        "values": [series.shown(value) for value in series.values],
    }
