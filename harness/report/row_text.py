"""A verdict's row in words, whatever it is printed on."""

from __future__ import annotations

import math

from harness.records import Kind
from harness.units import digits, exact, interval, readable
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Verdict

PLAIN_DIGITS = {Kind.BOUNDED: 4, Kind.CLOSE: 9}
"""Of numbers without a unit, so that one just beyond its limit does not read like the limit; nine are all we keep."""


def verdict_text(row: Row) -> str:
    """The verdict, and why it cannot fail the check where it cannot: advice, or no gate in the suite."""
    return f"{row.verdict}{'' if row.gated else ' (advice)' if row.advice else ' (no gate)'}"


def value_text(row: Row, value: float) -> str:
    """One of a row's two values with its unit; a dash for the one that a new or missing reading has not."""
    if math.isnan(value) and row.verdict in (Verdict.NEW, Verdict.MISSING):
        return "–"
    if row.unit == "x":
        return f"{value:.3f} x reference"
    if row.kind == Kind.COUNT and (whole := exact(value, row.unit)) is not None:  # a byte more must be seen
        return whole
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
