"""The answer in a sentence: what a variant costs against the reference, only as far as it was measured.

Which quantities are told, and in which words, their metrics declare (`harness.quantity.Phrase`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from harness.catalog import quantity_of
from harness.quantity import Phrase, Quantity, Wording
from harness.records import Status
from harness.report.tables import GroupView
from harness.units import digits, interval, readable


def sentences(view: GroupView) -> list[str]:
    """One per variant that is not the reference; for groups without a reference none."""
    if view.reference is None:
        return []
    return [_sentence(view, cell) for cell in view.variants if cell != view.reference]


def _sentence(view: GroupView, cell: str) -> str:
    phrases = list(_phrases(view))
    parts = [text for reading in phrases for text in _part(view, cell, *reading)]
    parts += _failures(view, cell)
    parts = parts or [*_counts(view, cell, phrases)]
    name = view.variants[cell]
    return f"{name} {', '.join(parts)}." if parts else f"{name} was not measured beside {view.reference_label}."


def _phrases(view: GroupView) -> list[tuple[Quantity, str, Phrase]]:
    """What has words in this group, with its form, in the order in which it is told."""
    readings = ((quantity_of(metric), form) for metric, form in view.quantities())
    found = [(quantity, form, phrase) for quantity, form in readings if (phrase := quantity.phrase_of(form))]
    wordings = list(Wording)
    return sorted(found, key=lambda one: (wordings.index(one[2].wording), one[2].rank))


def _part(view: GroupView, cell: str, quantity: Quantity, form: str, phrase: Phrase) -> Iterator[str]:
    """The part of a variant's sentence that tells one reading; none where it has not been measured."""
    if any(_has_difference(view, cell, other) for other in phrase.unless):
        return
    row: Any = view.ratios.get((cell, quantity.name, form))
    base = view.reference_label
    match phrase.wording:
        case Wording.TIME if row is not None and math.isfinite(row.ratio):
            yield _time(row, phrase, base)
        case Wording.BYTES if _differs(row):
            yield _bytes(row.difference, quantity.unit, phrase.noun)
        case Wording.ERROR:
            yield from _error(view.readings.get((cell, quantity.name, form)), phrase)
        case Wording.POINTS if _differs(row):
            yield _points(row, phrase, base)


def _differs(row: Any) -> bool:
    """Whether the difference to the reference is known; it may be zero."""
    return row is not None and math.isfinite(row.difference)


def _has_difference(view: GroupView, cell: str, metric: str) -> bool:
    return any(_differs(row) for key, row in view.ratios.items() if key[:2] == (cell, metric))


def _time(row: Any, phrase: Phrase, base: str) -> str:
    """Which of two is slower, or that it cannot be told."""
    verb = phrase.verb
    if not math.isfinite(row.low):
        return f"{verb} in {row.ratio:.2f}x the time of {base} (one round, no interval)"
    if row.low <= 1 <= row.high:
        return f"is not distinguishable from {base} in {phrase.noun} ({row.ratio:.2f}x {interval(row.low, row.high)})"
    if row.ratio > 1:
        return f"{verb} {row.ratio:.2f}x {interval(row.low, row.high)} slower than {base}"
    return f"{verb} {1 / row.ratio:.2f}x {interval(1 / row.high, 1 / row.low)} faster than {base}"


def _bytes(difference: float, unit: str, noun: str) -> str:
    if difference == 0:
        return f"adds nothing to {noun}"
    verb, preposition = ("adds", "to") if difference > 0 else ("takes", "off")
    return f"{verb} {readable(abs(difference), unit)} {preposition} {noun}"


def _error(row: Any, phrase: Phrase) -> Iterator[str]:
    if row is not None and row.status in (Status.OK, Status.PARTIAL):
        yield f"{phrase.verb} to {row.value:.0e}" if math.isfinite(row.value) else f"{phrase.negative} to a number"


def _points(row: Any, phrase: Phrase, base: str) -> str:
    points = 100 * row.difference
    low, high = 100 * row.difference_low, 100 * row.difference_high
    if not math.isfinite(low):
        return f"differs by {points:+.1f} points of {phrase.noun} (one seed, no interval)"
    if low <= 0 <= high:
        found = f"{points:+.1f} points {interval(low, high, 1)}"
        return f"is not distinguishable from {base} in {phrase.noun} ({found})"
    better = "more" if points > 0 else "less"
    ends = (low, high) if points > 0 else (-high, -low)
    return f"is {digits(abs(round(points, 1)))} points {interval(*ends, 1)} {better} {phrase.adjective}"


def _counts(view: GroupView, cell: str, phrases: list[tuple[Quantity, str, Phrase]]) -> Iterator[str]:
    """Where nothing else was measured."""
    found = []
    for quantity, form, phrase in phrases:
        row = view.ratios.get((cell, quantity.name, form))
        if phrase.wording is Wording.COUNT and row is not None and math.isfinite(row.ratio):
            found.append(f"{row.ratio:.2f}x the {phrase.noun}")
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
