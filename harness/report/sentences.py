"""The answer in a sentence: what a variant costs against the reference, only as far as it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from harness.records import Status
from harness.report.tables import GroupView
from harness.units import digits, interval, readable


def sentences(view: GroupView) -> list[str]:
    """One per variant that is not the reference; for groups without a reference none."""
    if view.reference is None:
        return []
    return [_sentence(view, cell) for cell in view.variants if cell != view.reference]


def _sentence(view: GroupView, cell: str) -> str:
    parts = [*_times(view, cell), *_memory(view, cell), *_fusion(view, cell), *_accuracy(view, cell)]
    parts += _failures(view, cell)
    parts = parts or [*_counts(view, cell)]
    name = view.variants[cell]
    return f"{name} {', '.join(parts)}." if parts else f"{name} was not measured beside {view.reference_label}."


def _times(view: GroupView, cell: str) -> Iterator[str]:
    base = view.reference_label
    asked = (("train_step", "train", "trains", "training time"), ("train_step", "", "trains", "training time"),
             ("latency", "train", "runs as trained", "running time as trained"),
             ("latency", "", "runs", "running time"),
             ("latency", "fused", "runs fused", "running time once fused"))  # fmt: skip
    for metric, form, verb, noun in asked:
        row = view.ratios.get((cell, metric, form))
        if row is not None and math.isfinite(row.ratio):
            yield _slower(row, verb, noun, base)


def _slower(row: Any, verb: str, noun: str, base: str) -> str:
    """Which of two is slower, or that it cannot be told."""
    if not math.isfinite(row.low):
        return f"{verb} in {row.ratio:.2f}x the time of {base} (one round, no interval)"
    if row.low <= 1 <= row.high:
        return f"is not distinguishable from {base} in {noun} ({row.ratio:.2f}x {interval(row.low, row.high)})"
    if row.ratio > 1:
        return f"{verb} {row.ratio:.2f}x {interval(row.low, row.high)} slower than {base}"
    return f"{verb} {1 / row.ratio:.2f}x {interval(1 / row.high, 1 / row.low)} faster than {base}"


def _memory(view: GroupView, cell: str) -> Iterator[str]:
    """The peak when it was measured, else as it was predicted, else what is kept for backward."""
    asked = (("train_memory", "the peak of training"),
             ("predicted_train_memory", "the predicted peak of training"),
             ("saved_memory", "what is kept for backward"))  # fmt: skip
    for metric, what in asked:
        rows = [row for key, row in view.ratios.items() if key[:2] == (cell, metric)]
        for row in rows:
            if math.isfinite(row.difference):
                yield _bytes(row.difference, what)
                return


def _bytes(difference: float, what: str) -> str:
    if difference == 0:
        return f"adds nothing to {what}"
    verb, preposition = ("adds", "to") if difference > 0 else ("takes", "off")
    return f"{verb} {readable(abs(difference), 'B')} {preposition} {what}"


def _fusion(view: GroupView, cell: str) -> Iterator[str]:
    row = next((view.readings[key] for key in view.readings if key[:2] == (cell, "fusion_error")), None)
    if row is None or row.status not in (Status.OK, Status.PARTIAL):
        return
    yield f"folds to {row.value:.0e}" if math.isfinite(row.value) else "does not fold to a number"


def _accuracy(view: GroupView, cell: str) -> Iterator[str]:
    row = view.ratios.get((cell, "accuracy", "train"), view.ratios.get((cell, "accuracy", "")))
    if row is None or not math.isfinite(row.difference):
        return
    points = 100 * row.difference
    low, high = 100 * row.difference_low, 100 * row.difference_high
    if not math.isfinite(low):
        yield f"differs by {points:+.1f} points of accuracy (one seed, no interval)"
    elif low <= 0 <= high:
        base = view.reference_label
        yield f"is not distinguishable from {base} in accuracy ({points:+.1f} points {interval(low, high, 1)})"
    else:
        better = "more" if points > 0 else "less"
        ends = (low, high) if points > 0 else (-high, -low)
        yield f"is {digits(abs(round(points, 1)))} points {interval(*ends, 1)} {better} accurate"


def _counts(view: GroupView, cell: str) -> Iterator[str]:
    """Where nothing else was measured."""
    found = []
    for metric, noun in (("params", "parameters"), ("macs", "MACs")):
        row = view.ratios.get((cell, metric, "train"), view.ratios.get((cell, metric, "")))
        if row is not None and math.isfinite(row.ratio):
            found.append(f"{row.ratio:.2f}x the {noun}")
    if found:
        yield f"has {' and '.join(found)} of {view.reference_label}"


def _failures(view: GroupView, cell: str) -> Iterator[str]:
    mine = [row for (owner, _, _), row in view.readings.items() if owner == cell]
    bad: dict[str, list[str]] = {}
    for row in mine:
        if math.isnan(row.value) and row.status not in (Status.OK, Status.PARTIAL):
            bad.setdefault(str(row.status), []).append(row.metric)
    for status, metrics in bad.items():
        names = dict.fromkeys(metrics)
        yield f"has no {', '.join(names)} ({status})" if len(metrics) < len(mine) else f"was not measured ({status})"
