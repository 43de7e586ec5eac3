"""What changed over a folder of runs, when, and whether somebody has accepted it.

Readings that need a clock or a seed are judged by statistics over runs (change_points.py), the others by the rules of a
check, each run against the beginning of its level: of them every change is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.errors import HarnessError
from harness.records import Kind
from harness.verdict.rules import (
    ACCURACY_THRESHOLD,
    CLOSE_TOLERANCE,
    WIDE_THRESHOLD,
    Verdict,
    is_timed,
    judge_bounded,
    judge_close,
    judge_count,
    with_floor,
)
from harness.verdict.statistics import false_discoveries
from harness.verdict.trend.annotations import DEFAULT, accept, load_annotations
from harness.verdict.trend.change import Change, Trend
from harness.verdict.trend.change_points import FEWEST, LEVEL, RESOLUTION, Step, steps_in
from harness.verdict.trend.history import History, Series, read_history

TIME_THRESHOLD = 0.03
"""Relative, for the step of a timed ratio where a suite's gate names none. How far runs scatter is seen in the series
itself, so a step need not be beyond the bias between runs that `check` has to assume (25 %); below 3 % it may be real
and yet be what a new compiler, kernel or driver does to everybody's ratios."""

FEWEST_EXACT = 2
"""Runs in which a reading that needs no clock can have changed."""


def trend(folder: Path, annotations: Path | None = None) -> Trend:
    """The changes in the runs below `folder`; `annotations` is a file, by default ``annotations.yaml`` in it if there.

    HarnessError when there is no run, and for an annotation that cannot be read or accepts nothing.
    """
    if annotations is None and (folder / DEFAULT).exists():
        annotations = folder / DEFAULT
    if not folder.is_dir():
        raise HarnessError(f"there is no folder {str(folder)!r}", remedy="name one with runs in it, as results/runs")
    history = read_history(folder)
    changes = changes_in(history)
    if annotations is not None:
        changes = accept(changes, load_annotations(annotations), history)
    changes.sort(key=lambda change: (-change.after, list(Verdict).index(change.verdict), change.label, change.metric))
    return Trend(str(folder), history, tuple(changes), *_coverage(history))


def changes_in(history: History) -> list[Change]:
    """Every change of every series; false discoveries are controlled over all series that statistics judge."""
    sampled = [series for series in history.series if series.kind is Kind.SAMPLED and len(series.runs) >= FEWEST]
    found = [steps_in(series.values, _resolution(series)) for series in sampled]
    adjusted = _adjusted(found)
    changes = []
    for series, steps, p in zip(sampled, found, adjusted, strict=True):
        changes += [_sampled(series, step, p[i]) for i, step in enumerate(steps)]
    for series in history.series:
        if series.kind is not Kind.SAMPLED:
            changes += _exact(series)
    return [_placed(change, history) for change in changes]


def _adjusted(found: Sequence[Sequence[Step]]) -> list[list[float]]:
    """The p values of the steps, adjusted by Benjamini and Hochberg; a series without any counts as one with p 1."""
    if not any(found):
        return [[] for _ in found]
    flat = [step.p for steps in found for step in steps]
    level = false_discoveries(flat + [1.0] * sum(not steps for steps in found))
    ordered = iter(level)
    return [[float(next(ordered)) for _ in steps] for steps in found]


def _resolution(series: Series) -> float:
    """Of logs, or the same share of the values, of which zero may be the middle one."""
    if series.scale != "plain":
        return RESOLUTION
    return RESOLUTION * max(map(abs, series.values)) or RESOLUTION


def _sampled(series: Series, step: Step, p: float) -> Change:
    before, after = (series.shown(level) for level in (step.before, step.after))
    ratios = _ratios(series, step, before)
    gated, threshold = series.gate.gate, _threshold(series, step.place)
    beyond = abs(step.size) > (threshold * abs(before) if series.scale == "plain" else math.log1p(threshold))
    worse = (step.size > 0) == (series.better == "lower")
    verdict, reason = (Verdict.REGRESSED if worse else Verdict.IMPROVED), ""
    if p > LEVEL:
        verdict, reason = Verdict.INCONCLUSIVE, "a step, but not surely (p over all readings)"
    elif series.scale == "log" and is_timed(series.unit):
        reason = "an absolute time: the machine may have changed its mood"
        if not beyond:
            gated, reason = False, f"{reason}; it takes {100 * threshold:.3g} % to fail"
    elif not beyond:
        verdict, reason = Verdict.SAME, f"a sure step within the threshold of {100 * threshold:.3g} %"
    return Change(
        series.cell, series.label, series.metric, series.form, str(series.kind), series.runs[step.place - 1],
        series.runs[step.place], verdict, gated, "x" if series.scale == "ratio" else series.unit, series.reference,
        before, after, *ratios, p, reason,
    )  # fmt: skip


def _ratios(series: Series, step: Step, before: float) -> tuple[float, float, float]:
    if series.scale != "plain":
        return math.exp(step.size), math.exp(step.low), math.exp(step.high)
    if not before:
        return (math.nan,) * 3
    low, high = sorted((1 + step.low / before, 1 + step.high / before))
    return 1 + step.size / before, low, high


def _threshold(series: Series, place: int) -> float:
    """Relative: the suite's, or the default of such a reading."""
    timed = is_timed(series.unit)
    default = TIME_THRESHOLD if timed else ACCURACY_THRESHOLD
    threshold = default if series.gate.threshold is None else series.gate.threshold
    value = abs(series.summaries[place - 1].value)
    threshold = with_floor(threshold, series.gate.floor_in(series.unit), value)
    return max(threshold, WIDE_THRESHOLD) if timed and series.scale == "log" else threshold


def _exact(series: Series) -> list[Change]:
    """Each run against the first of its level."""
    changes, level = [], 0
    for place in range(1, len(series.runs)):
        verdict, reason, shown = _judged(series, level, place)
        if verdict not in (Verdict.REGRESSED, Verdict.IMPROVED):
            continue
        ratio = shown[1] / shown[0] if shown[0] and series.kind is Kind.COUNT else math.nan
        changes.append(Change(
            series.cell, series.label, series.metric, series.form, str(series.kind), series.runs[place - 1],
            series.runs[place], verdict, series.gate.gate, series.unit, "", *shown, ratio, reason=reason,
        ))  # fmt: skip
        level = place
    return changes


def _judged(series: Series, level: int, place: int) -> tuple[Verdict, str, tuple[float, float]]:
    then, now = series.summaries[level], series.summaries[place]
    shown = then.value, now.value
    if series.kind is Kind.CLOSE:
        limit = CLOSE_TOLERANCE if series.gate.limit is None else series.gate.limit
        return judge_close(then.values, now.values, limit)
    if series.kind is Kind.BOUNDED:
        before, _ = judge_bounded(then.value, then.value, series.better, now.limit)
        after, reason = judge_bounded(then.value, now.value, series.better, now.limit)
        if before is Verdict.REGRESSED:  # beyond the limit already: news is only that it came back
            return (Verdict.IMPROVED if after is not before else Verdict.SAME), "within its limit again", shown
        return after, reason, shown
    if not math.isfinite(then.value) and not math.isfinite(now.value):
        return Verdict.SAME, "", shown
    verdict, reason = judge_count(then.value, now.value, series.better, series.gate)
    return verdict, reason, shown


def _placed(change: Change, history: History) -> Change:
    """With what else is known of the two runs between which it happened."""
    before, after = history.runs[change.before], history.runs[change.after]
    news = [f"{name} {then} -> {now}" for name, then, now in _apart(before.versions, after.versions)]
    reason = "; ".join(part for part in (change.reason, *news) if part)
    return replace(change, reason=reason, command=history.repeats.get((change.after, change.cell), ""))


def _apart(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [
        (name, before.get(name, "absent"), after.get(name, "absent"))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _coverage(history: History) -> tuple[int, tuple[str, ...]]:
    """How many series are judged, and what a reader must know about the rest."""
    needed = {series: FEWEST if series.kind is Kind.SAMPLED else FEWEST_EXACT for series in history.series}
    judged = sum(len(series.runs) >= least for series, least in needed.items())
    notes = list(history.notes)
    if len(history.machines) > 1:
        notes.append(
            f"the runs were made on {len(history.machines)} machines: each has series of its own, never joined"
        )
    few = [series for series, least in needed.items() if len(series.runs) < least]
    for least in sorted({needed[series] for series in few}):
        count = sum(needed[series] == least for series in few)
        what = "timed and other sampled" if least == FEWEST else "other"
        notes.append(f"{count} {what} readings have fewer than {least} runs on one machine: not judged")
    return judged, tuple(notes)
