"""How cells, groups and readings are called: short, and enough to tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.records import AXES

if TYPE_CHECKING:
    import pandas as pd

ALWAYS = ("block", "backbone", "kernel_size", "device", "dtype", "batch_size", "image_size")
"""Axes that are named even when they do not vary; the others only when they do."""


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


def cell_label(axes: Mapping[str, Any], vary: frozenset[str]) -> str:
    """A cell's block, and what it needs to be told apart of the axes that vary."""
    rest = describe({name: value for name, value in axes.items() if name in vary - {"block"}})
    return ", ".join(part for part in (str(axes["block"]), rest) if part)


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
