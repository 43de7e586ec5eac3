"""The study's tables as Markdown, and the page in which they stand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from counts import CONDITIONS, HALVES, TURNS
from rules import HARNESS, HARNESS_TEXT, RULES
from tabulate import tabulate

from harness.errors import HarnessError

BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"
NAMES = (HARNESS, *(rule.name for rule in RULES))
Row = dict[str, Any]

FALSE_ALARMS = """\
False alarms: both sides run the same code. The bound is one-sided and exact. "First half against second" takes A's
samples of the first half of the rounds and B's of the second half, as two separate runs would give them."""

COVERAGE = """\
Coverage: how often harness's 99 % interval of the ratio contains 1 plus the injected slowdown, with the exact 95 %
interval of that share."""


def markdown(summary: dict[str, Any]) -> str:
    """summary.md: every table of a summary, in words a reader of docs/timing.md knows."""
    parts = [_data(summary), _false_alarms(summary["false_alarms"]), _power(summary["detections"])]
    parts += [_effort(summary["effort"]), _coverage(summary["coverage"]), _recomputed(summary["recomputed"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def definitions() -> str:
    """The rules of `rules.py` as a table."""
    rows = [(HARNESS, "this repository", HARNESS_TEXT), *((rule.name, rule.source, rule.text) for rule in RULES)]
    return _table(rows, ["rule", "read in", "says that a side is worse or better when"])


def refresh(page: Path, text: str) -> None:
    """Put `text` between the markers of a page; what stands outside of them is left as it is."""
    old = page.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise HarnessError(f"{page} has not one {BEGIN} before one {END}", remedy="write both on lines of their own")
    before, rest = old.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _data(summary: dict[str, Any]) -> str:
    rows = [
        [row[name] for name in ("condition", "experiments", "readings", "cells", "aa", "passes")]
        for row in summary["data"]
    ]
    heads = ["condition", "experiments", "readings", "verdicts", "of them A/A", "pairs of samples"]
    lacking = "".join(f"\n* {words}" for words in summary["missing"])
    return _table(rows, heads, "lrrrrr") + (f"\n\nMissing:\n{lacking}" if lacking else "")


def _false_alarms(rows: list[Row]) -> str:
    if not rows:
        return "No A/A verdicts: no false alarms to count."
    found = {(row["condition"], row["rule"], row["way"]): row for row in rows}
    heads = ["alarms (worse + better)", "share", "95 % upper bound", "first half against second"]
    parts = [FALSE_ALARMS]
    for condition in _conditions(rows):
        body = [
            [name, *_alarms(found.get((condition, name, TURNS))), *_alarms(found.get((condition, name, HALVES)))[:1]]
            for name in NAMES
        ]
        parts.append(_table(body, [condition, *heads], "lrrrr"))
    return "\n\n".join(parts)


def _alarms(row: Row | None) -> list[str]:
    if row is None:
        return ["-"] * 3
    counted = f"{row['alarms']} of {row['n']} ({row['worse']} + {row['better']})"
    return [counted, _percent(row["share"]), _percent(row["upper"])]


def _power(rows: list[Row]) -> str:
    if not rows:
        return "No injected slowdowns: no power to count."
    found = {(row["condition"], row["rule"], row["delta"]): row for row in rows}
    parts = ["Power: how often a rule said worse, by injected slowdown, with the exact 95 % interval."]
    for condition in _conditions(rows):
        deltas = sorted({row["delta"] for row in rows if row["condition"] == condition})
        body = [[name, *(_share(found.get((condition, name, delta))) for delta in deltas)] for name in NAMES]
        parts.append(_table(body, [condition, *(f"+{100 * delta:.3g} %" for delta in deltas)], "l" + "r" * len(deltas)))
    return "\n\n".join(parts)


def _share(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{_with_interval(row)} of {row['n']}"


def _with_interval(row: Row) -> str:
    return f"{_percent(row['share'])} [{_percent(row['low'], '')}, {_percent(row['high'], '')}]"


def _effort(rows: list[Row]) -> str:
    heads = ["condition", "slowdown", "verdicts", "SAME", "REGRESSED", "IMPROVED", "INCONCLUSIVE"]
    heads += ["median rounds", "median seconds a cell", "ended by precision", "by rounds", "by seconds"]
    names = ["n", "SAME", "REGRESSED", "IMPROVED", "INCONCLUSIVE", "rounds", "seconds"]
    names += ["ended_precision", "ended_rounds", "ended_seconds"]
    body = [[row["condition"], _delta(row), *(f"{row[name]:.4g}" for name in names)] for row in _sorted(rows)]
    return f"What harness said, and what it took.\n\n{_table(body, heads, 'll' + 'r' * len(names))}"


def _coverage(rows: list[Row]) -> str:
    heads = ["condition", "slowdown", "intervals", "contain the truth", "share", "median width of the interval"]
    body = [
        [row["condition"], _delta(row), row["n"], row["covered"], _with_interval(row), _percent(row["width"])]
        for row in _sorted(rows)
    ]
    return f"{COVERAGE}\n\n{_table(body, heads, 'llrrrr')}"


def _recomputed(found: Row) -> str:
    if not found["n"]:
        return ""
    ratio, ends = (f"{100 * found[name]:.2g} %" for name in ("ratio_apart", "ends_apart"))
    return (
        f"Recomputed from the samples: {found['n']} cells; ratios differ by at most {ratio}, ends of intervals by at "
        f"most {ends}, {len(found['verdicts_differ'])} verdicts differ."
    )


def _conditions(rows: list[Row]) -> list[str]:
    present = dict.fromkeys(row["condition"] for row in rows)
    return [*(name for name in CONDITIONS if name in present), *(name for name in present if name not in CONDITIONS)]


def _sorted(rows: list[Row]) -> list[Row]:
    order = _conditions(rows)
    return sorted(rows, key=lambda row: (order.index(row["condition"]), row["delta"]))


def _delta(row: Row) -> str:
    return f"+{100 * row['delta']:.3g} %" if row["delta"] else "none (A/A)"


def _percent(share: float | None, unit: str = " %") -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.3g}{unit}"


def _table(rows: list[Any], heads: list[str], align: str = "") -> str:
    sides = [{"l": "left", "r": "right"}[letter] for letter in align] or None
    return tabulate(rows, heads, "pipe", disable_numparse=True, colalign=sides if rows else None)
