"""The study's figure: false alarms on the left, power on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import matplotlib
import pandas as pd
from counts import CONDITIONS, HALVES
from rules import HARNESS, HARNESS_THRESHOLD, RULES

matplotlib.use("agg")  # a script: no display is needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

NAMES = (HARNESS, *(rule.name for rule in RULES))
# Okabe and Ito: told apart by the colour-blind too; harness in black
COLOURS = dict(zip(NAMES, ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73"), strict=True))
MARKERS = dict(zip(NAMES, "osv^Dx", strict=True))
LINES: dict[str, Literal["-", "--"]] = {"quiet": "-", "noisy": "--"}


def draw(alarms: pd.DataFrame, found: pd.DataFrame, path: Path) -> None:
    """Write the figure. A condition or a table that is empty leaves its part of the figure empty."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _false_alarms(left, alarms)
    _power(right, found)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _false_alarms(axes: Axes, alarms: pd.DataFrame) -> None:
    """One line per rule and condition: the share as a marker, its 95 % interval as a bar, on a log scale.

    A share of zero has no place on a log scale: its bar begins at the left edge, without a marker. A ring is the share
    with A's samples of the first half of the rounds against B's of the second half.
    """
    edge = min(100 * float(alarms["high"].min()) / 3, 1.0) if len(alarms) else 1.0
    for row in alarms.to_dict("records"):
        place = NAMES.index(row["rule"]) + (0.17 if row["condition"] == CONDITIONS[1] else -0.17)
        colour = COLOURS[row["rule"]]
        if row["way"] == HALVES:
            axes.plot(max(100 * row["share"], edge), place, "o", color=colour, fillstyle="none", clip_on=False)
            continue
        ends = [max(100 * row["low"], edge), 100 * row["high"]]
        axes.plot(ends, [place, place], LINES.get(row["condition"], ":"), color=colour, linewidth=2)
        if row["alarms"]:
            axes.plot(100 * row["share"], place, MARKERS[row["rule"]], color=colour)
        axes.text(
            1.01, place, f"{row['alarms']} of {row['n']}", transform=axes.get_yaxis_transform(), va="center", fontsize=7
        )
    axes.set(xscale="log", xlim=(edge, 100), yticks=range(len(NAMES)), yticklabels=NAMES)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.invert_yaxis()
    axes.set(
        xlabel="alarms on identical code [%], 95 % interval\nring: first half against second", title="False alarms"
    )


def _power(axes: Axes, found: pd.DataFrame) -> None:
    for key, rows in found.groupby(["condition", "rule"], sort=False) if len(found) else ():
        condition, rule = cast(tuple[str, str], key)
        rows = rows.sort_values("delta")
        x, y = 100 * rows["delta"], 100 * rows["share"]
        # the interval of harness alone: six of them hide each other, and summary.md has all
        bars = [y - 100 * rows["low"], 100 * rows["high"] - y] if rule == HARNESS else None
        style: dict[str, Any] = {"linestyle": LINES.get(condition, ":"), "marker": MARKERS[rule], "markersize": 4}
        order = 3 if rule == HARNESS else 2
        axes.errorbar(x, y, yerr=bars, color=COLOURS[rule], capsize=2, zorder=order, **style)
    handles = [Line2D([], [], color=COLOURS[rule], marker=MARKERS[rule], markersize=4, label=rule) for rule in NAMES]
    handles += [Line2D([], [], color="0.3", linestyle=style, label=condition) for condition, style in LINES.items()]
    axes.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    axes.axvline(100 * HARNESS_THRESHOLD, color="0.8", zorder=0)
    axes.set(
        xlabel=f"injected slowdown [%]; harness's threshold is {100 * HARNESS_THRESHOLD:g} %",
        ylabel="said to be worse [%]",
        ylim=(-3, 103),
    )
    axes.set(title="Power")
