"""What a count of bytes is made of: the parts that a reading's facts carry, one row per variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness import catalog
from harness.records import Json
from harness.report.document import MISSING, Column, Table
from harness.report.tables import GroupView
from harness.units import scale_for

if TYPE_CHECKING:
    from harness.verdict.protocols import Run

Facts = Mapping[tuple[str, str], Mapping[str, Json]]
"""Cell and metric -> the facts of its newest reading."""


def facts_of(run: Run) -> Facts:
    """The facts of every reading that has parts to be shown."""
    found = {}
    for record in run.records():
        for reading in record.readings:
            if catalog.quantity_of(reading.metric).parts:
                found[record.cell, reading.metric] = reading.facts
    return found


def breakdowns(view: GroupView, facts: Facts) -> list[Table]:
    """One group's tables of parts; none for what was not measured."""
    split = [quantity for quantity in catalog.quantities().values() if quantity.parts]
    tables = []
    for quantity in sorted(split, key=lambda one: (one.rank, one.name)):
        for parts in quantity.parts:
            rows = _rows(view, facts, quantity.name, parts.fact)
            if any(rows.values()) and not any(_has(view, facts, other, parts.fact) for other in parts.unless):
                tables.append(_table(view, parts.title, quantity.unit, rows))
    return tables


def _rows(view: GroupView, facts: Facts, metric: str, fact: str) -> dict[str, Mapping[str, int]]:
    return {cell: facts.get((cell, metric), {}).get(fact, {}) for cell in view.variants}


def _has(view: GroupView, facts: Facts, metric: str, fact: str) -> bool:
    return any(_rows(view, facts, metric, fact).values())


def _table(view: GroupView, title: str, unit: str, rows: Mapping[str, Mapping[str, int]]) -> Table:
    sizes = [size for row in rows.values() for size in row.values()]
    scale = scale_for(unit, [max(sizes)])
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = tuple(
        Column(
            (name, f"[{scale.name}]"), tuple(scale.text(row[name]) if name in row else MISSING for row in rows.values())
        )
        for name in names
    )
    return Table(title, view.title, view.compared, tuple(view.variants.values()), columns)
