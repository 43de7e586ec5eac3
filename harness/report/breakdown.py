"""What a count of bytes is made of: the parts that a reading's facts carry, one row per variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.records import Json
from harness.report.tables import MISSING, Column, GroupView, Table
from harness.units import scale_for

if TYPE_CHECKING:
    from harness.verdict.protocols import Run

Facts = Mapping[tuple[str, str], Mapping[str, Json]]
"""Cell and metric -> the facts of its newest reading."""

PARTS = (
    (("train_memory", "predicted_train_memory"), "phases", "The peak of training by phase"),
    (("train_memory", "predicted_train_memory"), "categories", "What the peak of training is made of"),
    (("saved_memory",), "branches", "Kept for backward, by branch"),
)
"""Metrics, of which the first that has it is shown, the fact, and the table's title."""


def facts_of(run: Run) -> Facts:
    """The facts of every reading that has the parts shown here."""
    shown = {metric for metrics, _, _ in PARTS for metric in metrics}
    found = {}
    for record in run.records():
        for reading in record.readings:
            if reading.metric in shown:
                found[record.cell, reading.metric] = reading.facts
    return found


def breakdowns(view: GroupView, facts: Facts) -> list[Table]:
    """One group's tables of parts; none for what was not measured."""
    tables = []
    for metrics, fact, title in PARTS:
        for metric in metrics:
            rows = {cell: facts.get((cell, metric), {}).get(fact, {}) for cell in view.variants}
            if any(rows.values()):
                named = title if metric == metrics[0] else f"{title} (predicted)"
                tables.append(_table(view, named, rows))
                break
    return tables


def _table(view: GroupView, title: str, rows: Mapping[str, Mapping[str, int]]) -> Table:
    sizes = [size for row in rows.values() for size in row.values()]
    scale = scale_for("B", [max(sizes)])
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = tuple(
        Column(
            (name, f"[{scale.name}]"), tuple(scale.text(row[name]) if name in row else MISSING for row in rows.values())
        )
        for name in names
    )
    return Table(title, view.title, view.compared, tuple(view.variants.values()), columns)
