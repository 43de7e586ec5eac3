"""Each variant against its group's reference: ratios with intervals, and no judgement.

Rounds are paired by number: both values of a pair come from one process on one machine in one minute,
so whatever slowed that process slowed both and cancels in the ratio.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from harness.planning.looks import CONFIDENCE
from harness.records import Kind
from harness.store.pairs import round_log_ratio
from harness.store.summary import KEY, last_visits, per_form
from harness.verdict.statistics import log_ratios, student_interval, student_p

COLUMNS = [
    "cell", "group", "reference", "metric", "form", "kind", "better", "unit", "value", "reference_value",
    "ratio", "low", "high", "p", "rounds", "difference", "difference_low", "difference_high",
]  # fmt: skip


def reference_of(cells: pd.DataFrame) -> pd.Series[str]:
    """For every cell the id of its group's reference; missing where the group has none."""
    references = cells.index[cells["reference"].astype(bool)].to_series()
    by_group = pd.Series(references.to_numpy(dtype=object), index=cells.loc[references, "group"])
    return cells["group"].map(by_group[~by_group.index.duplicated()])


def paired(cells: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """One row per (cell that is no reference, metric, form, round) with `reference_value` and `log_ratio`.

    Where both took turns in that round its log ratio is the median of the passes' (store/pairs.py), else it is of the
    rounds' values. Where the reference was not measured in that round both are NaN. Close quantities are left out:
    what a block computes is held against what it computed before, and is no multiple of what another block computes.
    """
    measured = last_visits(rounds)
    measured = measured[measured["kind"] != Kind.CLOSE]
    measured = measured.assign(value=measured["value"].astype(float), group=measured["cell"].map(cells["group"]))
    measured["reference"] = measured["cell"].map(reference_of(cells))
    variants = measured[measured["reference"].notna() & (measured["cell"] != measured["reference"])]
    base = measured[measured["cell"] == measured["reference"]]
    on = ["group", "metric", "form", "round"]
    names = {"value": "reference_value", "visits": "reference_visits"}
    kept = [*on, *(name for name in names if name in base)]
    pairs = variants.merge(base[kept].rename(columns=names), on=on, how="left")
    return pairs.assign(log_ratio=_by_pass(pairs))


def _by_pass(pairs: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A log ratio per row: pass by pass where both sides took turns, else of the rounds' values."""
    whole = log_ratios(pairs["value"], pairs["reference_value"])
    if "visits" not in pairs:
        return whole
    sides = zip(pairs["visits"], pairs["reference_visits"], whole, strict=True)
    return np.array([round_log_ratio(a, b) if _turns(a) and _turns(b) else other for a, b, other in sides], dtype=float)


def between_runs(base: pd.DataFrame, head: pd.DataFrame) -> dict[tuple[str, str, str], list[float]]:
    """By cell, metric and form the log ratios head / base of the rounds that both runs have, for what is sampled."""
    sides = []
    for rounds in (base, head):
        measured = last_visits(rounds)
        sides.append(measured[measured["kind"] == Kind.SAMPLED])
    names = {"value": "reference_value", "visits": "reference_visits"}
    before = sides[0][[*KEY, "round", *(name for name in names if name in sides[0])]].rename(columns=names)
    pairs = sides[1].merge(before, on=[*KEY, "round"])
    pairs = pairs.assign(log_ratio=_by_pass(pairs))
    found: dict[tuple[str, str, str], list[float]] = {}
    for cell, metric, form, ratio in zip(*(pairs[name] for name in (*KEY, "log_ratio")), strict=True):
        found.setdefault((cell, metric, form), []).append(ratio)
    return found


def _turns(visits: object) -> bool:
    return isinstance(visits, list | tuple)


def comparisons(cells: pd.DataFrame, rounds: pd.DataFrame, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """One row per (cell that is no reference, metric that is not close, form).

    `ratio` is value / reference value: for sampled quantities the geometric mean of the rounds' ratios, with its
    interval `low`, `high` of that `confidence` (of a run: `Run.confidence`) and `p` (two-sided, of "the ratio is
    1"), for the others the plain quotient and no interval. `difference` is in the quantity's unit; for sampled
    fractions (accuracy) it is the mean of the paired differences and has an interval too. `rounds` counts the pairs.
    """
    pairs = paired(cells, rounds)
    if pairs.empty:
        return pd.DataFrame({name: pd.Series(dtype="float64") for name in COLUMNS})
    summary = per_form(last_visits(rounds), confidence)
    values = dict(zip(zip(*(summary[name] for name in KEY), strict=True), summary["value"], strict=True))
    rows = _over_rounds(pairs)
    for name, who in (("value", "cell"), ("reference_value", "reference")):
        keys = zip(rows[who], rows["metric"], rows["form"], strict=True)
        rows[name] = np.array([values.get(key, np.nan) for key in keys], dtype=float)
    sampled = rows["kind"] == Kind.SAMPLED
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = rows["value"] / rows["reference_value"].where(rows["reference_value"] != 0)
    low, high = student_interval(rows["mean"], rows["sd"], rows["rounds"], confidence)
    rows["ratio"] = np.exp(rows["mean"]).where(sampled, quotient)
    rows["low"], rows["high"] = (np.where(sampled, np.exp(end), np.nan) for end in (low, high))
    rows["p"] = np.where(sampled, student_p(rows["mean"], rows["sd"], rows["rounds"]), np.nan)
    return _with_differences(rows, sampled & (rows["unit"] == "fraction"), confidence)[COLUMNS]


def _over_rounds(pairs: pd.DataFrame) -> pd.DataFrame:
    pairs = pairs.assign(apart=pairs["value"] - pairs["reference_value"])
    each = pairs.groupby(KEY, sort=False)
    logs, apart = each["log_ratio"], each["apart"]
    rows = each[["group", "reference", "kind", "better", "unit"]].last().assign(
        mean=logs.mean(), sd=logs.std(), logs=logs.count(),
        apart=apart.mean(), apart_sd=apart.std(), rounds=apart.count(),
    )  # fmt: skip
    return rows.reset_index()


def _with_differences(rows: pd.DataFrame, points: pd.Series[bool], confidence: float) -> pd.DataFrame:
    low, high = student_interval(rows["apart"], rows["apart_sd"], rows["rounds"], confidence)
    rows["difference"] = rows["apart"].where(points, rows["value"] - rows["reference_value"])
    rows["difference_low"] = np.where(points, low, np.nan)
    rows["difference_high"] = np.where(points, high, np.nan)
    # a ratio needs every pair to be positive; where one is zero the difference is all there is
    lost = (rows["kind"] == Kind.SAMPLED) & (rows["logs"] < rows["rounds"])
    rows.loc[lost, ["ratio", "low", "high", "p"]] = np.nan
    return rows
