"""How cells, groups, readings and their verdicts are called in print: short, and enough to tell them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.records import AXES, Kind
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Verdict
from harness.verdict.units import digits, interval, readable

if TYPE_CHECKING:
    import pandas as pd

ALWAYS = ("block", "backbone", "kernel_size", "device", "dtype", "batch_size", "image_size")
"""Axes that are named even when they do not vary; the others only when they do."""

PLAIN_DIGITS = {Kind.BOUNDED: 4, Kind.CLOSE: 9}
"""Of numbers without a unit, so that one just beyond its limit does not read like the limit; nine are all we keep."""


def plain(value: Any) -> str | int | float | None:
    """A frame's value as Python knows it: NaN and NA are None, whole floats are ints."""
    import pandas as pd

    if value is None or pd.isna(value):
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (int, float)) else str(value)


def axes_of(cells: pd.DataFrame, cell: str) -> dict[str, str | int | float | None]:
    """Every axis of one cell as plain values."""
    return {axis: plain(cells.at[cell, axis]) for axis in AXES}


def varying(cells: pd.DataFrame) -> frozenset[str]:
    """The axes that have more than one value in these cells."""
    return frozenset(axis for axis in AXES if cells[axis].nunique(dropna=False) > 1)


def describe(axes: Mapping[str, Any], vary: frozenset[str] = frozenset(), without: str = "") -> str:
    """``resnet18, k=3, cpu, float32, batch 8, 96 px``: what always matters and what varies, but `without`."""
    parts = []
    for axis in AXES:
        value = axes.get(axis)
        named = axis in vary or (axis in ALWAYS and value is not None)
        if axis != without and named and value != "":
            parts.append(_part(axis, value))
    return ", ".join(parts)


def _part(axis: str, value: Any) -> str:
    shapes = {
        "kernel_size": "k={}",
        "batch_size": "batch {}",
        "image_size": "{} px",
        "threads": "{} threads",
        "where": "where {}",
    }
    if axis == "checkpointing":
        return "checkpointing" if value else "no checkpointing"
    if value is None:
        return {"kernel_size": "k as built", "threads": "default threads"}.get(axis, f"{axis} as it is")
    return shapes.get(axis, "{}").format(value)


def variant_label(axes: Mapping[str, Any], compared: str) -> str:
    """The value of the compared axis, as a table's first column shows it."""
    value = axes.get(compared)
    return (
        _part(compared, value)
        if compared in ("kernel_size", "batch_size", "image_size", "threads", "checkpointing")
        else str(value)
    )


def reading_name(metric: str, form: str) -> str:
    """``latency (fused)``; the form is named only when there is one."""
    return f"{metric} ({form})" if form else metric


def verdict_text(row: Row) -> str:
    """The verdict, and why it cannot fail the check where it cannot: advice, or no gate in the suite."""
    return f"{row.verdict}{'' if row.gated else ' (advice)' if row.advice else ' (no gate)'}"


def value_text(row: Row, value: float) -> str:
    """One of a row's two values with its unit; a dash for the one that a new or missing reading has not."""
    if math.isnan(value) and row.verdict in (Verdict.NEW, Verdict.MISSING):
        return "–"
    if row.unit == "x":
        return f"{value:.3f} x reference"
    if row.kind == Kind.COUNT and math.isfinite(value) and abs(value) < 1e15:
        return f"{value:,.0f} {row.unit.replace('1', '')}".strip()  # a byte more must be seen
    if row.unit == "1" and row.kind in PLAIN_DIGITS:
        return f"{value:.{PLAIN_DIGITS[Kind(row.kind)]}g}"
    return readable(value, row.unit)


def change_text(row: Row) -> str:
    """now / before with its interval, as ``1.502 [1.44, 1.57]``; nothing where there is none."""
    if not math.isfinite(row.ratio) or row.verdict in (Verdict.NEW, Verdict.MISSING):
        return ""
    return f"{digits(row.ratio)} {interval(row.low, row.high)}".strip()


def tally(check: Check) -> str:
    """``3 REGRESSED (2 cannot fail), 17 SAME; 0 cells failed; exit 1``."""
    counts = []
    for verdict in Verdict:
        if found := [row for row in check.rows if row.verdict is verdict]:
            idle = sum(not row.gated for row in found) if verdict is Verdict.REGRESSED else 0
            counts.append(f"{len(found)} {verdict}" + (f" ({idle} cannot fail)" if idle else ""))
    return f"{', '.join(counts) or 'nothing to compare'}; {len(check.failed)} cells failed; exit {check.exit_code}"


def repeats(check: Check) -> dict[str, str]:
    """The commands that measure again what regressed or fails the check, each once, to the label of its cell."""
    rows = [row for row in check.rows if row.verdict is Verdict.REGRESSED or check.fails(row)]
    return {row.command: row.label for row in rows if row.command}
