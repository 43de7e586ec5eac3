"""Figures from a run: ratios with their intervals, and times over kernel sizes. PNG, made without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from harness import catalog
from harness.quantity import Quantity
from harness.records import Kind
from harness.report.environment import hardware
from harness.report.tables import GroupView, heading
from harness.units import scale_for
from harness.verdict.labels import axes_of, describe, varying
from harness.verdict.rules import is_timed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.verdict.protocols import Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart with every kind of colour vision; markers differ as well."""

MARKERS = "osD^vPX"
Series = tuple[str, str]
"""What a line of the kernel-size figure stands for, and its form."""

PANELS = 6
"""Quantities side by side in a ratio figure; more would be too small to read."""


def figures(run: Run, views: list[GroupView]) -> Iterator[tuple[str, Figure]]:
    """Names and figures of everything that can be drawn of a run."""
    for number, view in enumerate(views, start=1):
        if quantities := _drawn(view):
            yield f"ratios-{number}", ratio_figure(view, quantities, hardware(run.environment))
    if (drawn := kernel_size_figure(run)) is not None:
        yield "kernel-size", drawn


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _drawn(view: GroupView) -> list[tuple[str, str]]:
    """What has a ratio worth a point: measured for a variant, what it costs, not how well it does."""
    known = {
        key[1:]
        for key, row in view.ratios.items()
        if (row.kind == Kind.COUNT or is_timed(row.unit)) and math.isfinite(row.ratio)
    }
    return [quantity for quantity in view.quantities() if quantity in known][:PANELS]


def ratio_figure(view: GroupView, quantities: list[tuple[str, str]], machine: str) -> Figure:
    """One panel per quantity, one line per variant: the ratio to the reference with its 99 % interval."""
    from matplotlib.figure import Figure

    variants = [cell for cell in view.variants if cell != view.reference]
    size = (1.6 + 2.0 * len(quantities), 1.7 + 0.38 * len(variants))
    figure = Figure(figsize=(max(size[0], 6.4), size[1]), layout="constrained")
    panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    for panel, quantity in zip(panels, quantities, strict=True):
        _ratio_panel(panel, view, variants, quantity)
    panels[0].set_yticks(range(len(variants)), [view.variants[cell] for cell in variants])
    panels[0].set_ylim(len(variants) - 0.5, -0.5)
    figure.suptitle(f"{view.title}\n{machine}", fontsize=9)
    figure.supxlabel(f"ratio to {view.reference_label} (bars: 99 % intervals; counts are exact)", fontsize=9)
    return figure


def _ratio_panel(panel: Axes, view: GroupView, variants: list[str], quantity: tuple[str, str]) -> None:
    panel.axvline(1.0, color="#888888", linewidth=1, linestyle="--", zorder=0)
    for place, cell in enumerate(variants):
        row = view.ratios.get((cell, *quantity))
        if row is None or not math.isfinite(row.ratio):
            panel.text(
                0.5, place, "not measured", fontsize=7, color="#888888", ha="center", va="center",
                transform=panel.get_yaxis_transform(),
            )  # fmt: skip
            continue
        ends = [[row.ratio - row.low], [row.high - row.ratio]] if math.isfinite(row.low) else None
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        panel.errorbar(row.ratio, place, xerr=ends, fmt=marker, color=colour, capsize=3, markersize=5)
    panel.set_title(" ".join(heading(view, *quantity)), fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.margins(x=0.12)
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, 0.98), max(high, 1.02))  # 1 is always in sight


def kernel_size_figure(run: Run) -> Figure | None:
    """What has an axis (latency and MACs per second) against the kernel size; None unless two sizes were timed."""
    from matplotlib.figure import Figure

    series = _kernel_series(run)
    if not series:
        return None
    drawn = _over_kernel_sizes()
    figure = Figure(figsize=(2.5 + 4.0 * len(drawn), 4.0), layout="constrained")
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for panel, quantity in zip(panels, drawn, strict=True):
        _kernel_panel(panel, series, quantity.name, quantity.axis)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.suptitle(f"Forward pass against kernel size (bars: 99 % intervals)\n{hardware(run.environment)}", fontsize=9)
    return figure


def _over_kernel_sizes() -> list[Quantity]:
    """The quantities that are drawn against the kernel size, in the order of their tables."""
    return sorted((one for one in catalog.described().values() if one.axis), key=lambda one: (one.rank, one.name))


def _kernel_panel(panel: Axes, series: dict[Series, list[dict[str, Any]]], metric: str, name: str) -> None:
    """One line per variant and form: colour and marker say which variant, dashes which form."""
    rows = [row for lines in series.values() for row in lines if row["metric"] == metric]
    scale = scale_for(rows[0]["unit"] if rows else "", [row["value"] for row in rows])
    labels = list(dict.fromkeys(label for label, _ in series))
    for (label, form), lines in series.items():
        points = sorted((row for row in lines if row["metric"] == metric), key=lambda row: row["kernel_size"])
        if points:
            named = f"{label} ({form})" if form else label
            _line(panel, points, scale.factor, named, labels.index(label), "--" if form == "train" else "-")
    panel.set_xlabel("kernel size [pixels]")
    panel.set_ylabel(f"{name} [{scale.name}]")
    panel.set_ylim(bottom=0)
    panel.set_xticks(sorted({row["kernel_size"] for lines in series.values() for row in lines}))
    panel.grid(color="#dddddd", linewidth=0.6)


def _line(panel: Axes, points: list[dict[str, Any]], factor: float, label: str, place: int, dashes: str) -> None:
    values = [row["value"] / factor for row in points]
    ends = [[_or_zero(row["value"] - row["low"]) / factor for row in points],
            [_or_zero(row["high"] - row["value"]) / factor for row in points]]  # fmt: skip
    panel.errorbar(
        [row["kernel_size"] for row in points], values, yerr=ends, capsize=3, markersize=5, linewidth=1.2,
        linestyle=dashes,
        color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)], label=label,
    )  # fmt: skip


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _kernel_series(run: Run) -> dict[Series, list[dict[str, Any]]]:
    """Rows of what is drawn by everything but the kernel size, and form; lines of one point are left out."""
    cells, frame = run.cells, run.frame()
    if cells["kernel_size"].nunique() < 2:
        return {}
    vary = varying(cells) - {"kernel_size"}
    drawn = [quantity.name for quantity in _over_kernel_sizes()]
    timed = frame[frame["metric"].isin(drawn) & frame["value"].notna() & frame["kernel_size"].notna()]
    series: dict[Series, list[dict[str, Any]]] = {}
    for row in timed.to_dict("records"):
        axes = axes_of(cells, row["cell"])
        label = describe({axis: value for axis, value in axes.items() if axis in vary}) or str(axes["block"])
        series.setdefault((label, row["form"]), []).append({str(key): value for key, value in row.items()})
    return {key: rows for key, rows in series.items() if len({row["kernel_size"] for row in rows}) > 1}
