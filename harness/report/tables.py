"""A run as tables the way papers print them: one group a section, one row per variant, ratios to the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.catalog import quantity_of
from harness.quantity import Theme
from harness.records import Kind, Status
from harness.report.document import MISSING, Column, Table
from harness.units import Scale, interval, scale_for
from harness.verdict.labels import axes_of, describe, variant_label, varying
from harness.verdict.rules import is_timed

if TYPE_CHECKING:
    import pandas as pd

    from harness.verdict.protocols import Run

TITLES = {
    Theme.TRAIN: "What it costs to train",
    Theme.RUN: "What it costs to run",
    Theme.EXACT: "How exact and how accurate",
}
LOPSIDED = 0.3
"""Share of the value above which an interval made on logs is no longer fairly written as ±."""

FORMS = {"train": 0, "fused": 1}
"""The order of a quantity's forms."""


@dataclass(frozen=True)
class GroupView:
    """One group's part of the frames, ready to be printed: `readings` and `ratios` by cell, metric and form."""

    id: str
    title: str
    compared: str
    reference: str | None
    variants: dict[str, str]
    readings: dict[tuple[str, str, str], Any]
    ratios: dict[tuple[str, str, str], Any]
    forms: dict[str, set[str]] = field(default_factory=dict)

    @property
    def reference_label(self) -> str:
        return self.variants[self.reference] if self.reference else ""

    @property
    def rounds(self) -> tuple[int, int]:
        """The fewest and the most rounds behind a timed reading of this group; (0, 0) without any."""
        timed = [r.n for r in self.readings.values() if is_timed(r.unit) and r.n]
        return (int(min(timed)), int(max(timed))) if timed else (0, 0)

    def quantities(self) -> list[tuple[str, str]]:
        """Every (metric, form) of the group, in the order in which people ask."""
        found = {(metric, form) for _, metric, form in self.readings}
        return sorted(found, key=lambda q: (quantity_of(q[0]).rank, q[0], FORMS.get(q[1], len(FORMS))))


def views(run: Run) -> list[GroupView]:
    """The groups of a run in the order of its cells."""
    from harness.verdict.compare import comparisons

    cells, frame = run.cells, run.frame()
    ratios = comparisons(cells, run.rounds(), run.confidence)
    vary, forms = varying(cells), _forms(frame)
    return [_view(cells.loc[cells["group"] == group], frame, ratios, vary, forms) for group in cells["group"].unique()]


def _view(
    cells: pd.DataFrame, frame: pd.DataFrame, ratios: pd.DataFrame, vary: frozenset[str], forms: dict[str, set[str]]
) -> GroupView:
    group, compared = str(cells["group"].iloc[0]), str(cells["compared"].iloc[0])
    references = [str(cell) for cell in cells.index[cells["reference"].astype(bool)]]
    axes = {str(cell): axes_of(cells, str(cell)) for cell in cells.index}
    return GroupView(
        group,
        describe(next(iter(axes.values())), vary, without=compared),
        compared,
        references[0] if references else None,
        {cell: variant_label(values, compared) for cell, values in axes.items()},
        _by_key(frame[frame["group"] == group]),
        _by_key(ratios[ratios["group"] == group]),
        forms,
    )


def _by_key(rows: pd.DataFrame) -> dict[tuple[str, str, str], Any]:
    return {(str(row.cell), str(row.metric), str(row.form)): row for row in rows.itertuples(index=False)}


def _forms(frame: pd.DataFrame) -> dict[str, set[str]]:
    return {str(metric): {str(form) for form in rows["form"]} for metric, rows in frame.groupby("metric")}


def tables(view: GroupView) -> list[Table]:
    """One group's tables: training, running, exactness; each only when something of it was measured."""
    made = []
    for theme, title in TITLES.items():
        columns = [
            column
            for metric, form in view.quantities()
            if theme_of(view, metric, form) == theme
            for column in _columns(view, metric, form)
        ]
        if columns:
            labels = tuple(view.variants.values())
            made.append(Table(title, caption(view), view.compared, labels, tuple(columns)))
    return made


def theme_of(view: GroupView, metric: str, form: str) -> Theme:
    """Which of the three questions a reading answers."""
    row = next(row for key, row in view.readings.items() if key[1:] == (metric, form))
    return quantity_of(metric).theme_of(form, row.kind)


def caption(view: GroupView) -> str:
    """The other axes, the reference, how many rounds, and how sure."""
    parts = [view.title]
    if view.reference:
        parts.append(f"ratios to {view.reference_label}")
    fewest, most = view.rounds
    if most:
        rounds = str(most) if fewest == most else f"{fewest} to {most}"
        parts.append(f"{rounds} round{'s' * (most > 1)}, intervals are 99 %")
    if any(row.status == Status.PARTIAL for row in view.readings.values()):
        parts.append("a variant was lost on the way (partial)")
    return "; ".join(parts)


def heading(view: GroupView, metric: str, form: str) -> tuple[str, ...]:
    """The quantity's name, and its form where it has more than one."""
    name = metric.replace("_", " ")
    return (name, form) if form and len(view.forms.get(metric, ())) > 1 else (name,)


def _columns(view: GroupView, metric: str, form: str) -> Iterator[Column]:
    rows = [view.readings.get((cell, metric, form)) for cell in view.variants]
    values = [float(row.value) for row in rows if row is not None]
    counted = any(row is not None and row.kind == Kind.COUNT for row in rows)
    if counted and 0 in values and not any(value and math.isfinite(value) for value in values):
        return  # no kernel is composed here, for example
    unit = next(row.unit for row in rows if row is not None)
    scale = scale_for(unit, values)
    ratios = [view.ratios.get((cell, metric, form)) for cell in view.variants]
    texts = tuple(_value(row, ratio, scale) for row, ratio in zip(rows, ratios, strict=True))
    title = heading(view, metric, form)
    close = any(row is not None and row.kind == Kind.CLOSE for row in rows)
    below = ", ".join(text for text in (scale.name, "first value" if close else "") if text)
    yield Column((*title, f"[{below}]") if below else title, texts)
    if quantity_of(metric).rate is None and any(_has_ratio(ratio) for ratio in ratios):
        points = unit == "fraction"
        against = tuple(
            _ratio(cell == view.reference, ratio, points) for cell, ratio in zip(view.variants, ratios, strict=True)
        )
        yield Column((f"vs {view.reference_label}", *(("[points]",) if points else ())), against)


def _has_ratio(ratio: Any) -> bool:
    """Counts carry theirs beside the value; a sampled quantity that may be zero has none."""
    if ratio is None or ratio.kind != Kind.SAMPLED:
        return False
    return math.isfinite(ratio.difference if ratio.unit == "fraction" else ratio.ratio)


def _value(row: Any, ratio: Any, scale: Scale) -> str:
    if row is None:
        return MISSING
    if math.isnan(row.value):
        return str(row.status) if row.status not in (Status.OK, Status.PARTIAL) else "not a number"
    text = scale.text(row.value)
    if row.kind == Kind.SAMPLED and quantity_of(row.metric).rate is None and math.isfinite(row.low) and row.value:
        half = (row.high - row.low) / 2
        if half > LOPSIDED * row.value:
            return f"{text} [{scale.text(row.low)}, {scale.text(row.high)}]"
        spread = scale.text(half) if row.unit == "fraction" else f"{100 * half / row.value:.1f}%"
        return f"{text} ±{spread}"
    if row.kind == Kind.COUNT and ratio is not None and math.isfinite(ratio.ratio):
        return f"{text} ({ratio.ratio:.2f}x)"
    return text


def _ratio(is_reference: bool, ratio: Any, points: bool) -> str:
    if is_reference:
        return "reference"
    if ratio is None:
        return MISSING
    if points:
        low, high = 100 * ratio.difference_low, 100 * ratio.difference_high
        return f"{100 * ratio.difference:+.1f} {interval(low, high, 1)}".rstrip()
    if math.isnan(ratio.ratio):
        return MISSING
    return f"{ratio.ratio:.2f}x {interval(ratio.low, ratio.high)}".rstrip()
