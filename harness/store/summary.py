"""The summary frame, one row per cell, metric and form: from the rounds' medians to a value with its 99 % interval.

`summarise` is what `Run.frame()` returns. Everything is in SI base units; a row that could not be
measured carries its status and NaN, so that a table can say why instead of leaving a hole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness import catalog
from harness.planning.looks import CONFIDENCE
from harness.quantity import Quantity, Rate
from harness.records import AXES, Kind, Status

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

KEY = ["cell", "metric", "form"]
MEASURED = [str(status) for status in Status if status.measured]
COLUMNS = [*KEY, "kind", "better", "value", "unit", "low", "high", "n", "status"]


def student_interval(
    mean: ArrayLike, sd: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Student's t interval of a mean, elementwise; NaN where fewer than two values were seen."""
    from scipy.special import stdtrit  # the quantile behind scipy.stats.t.ppf, without its second of start-up

    mean, sd, n = np.broadcast_arrays(*(np.asarray(x, dtype=float) for x in (mean, sd, n)))
    with np.errstate(invalid="ignore", divide="ignore"):
        half = np.where(n > 1, stdtrit(np.maximum(n - 1, 1), (1 + confidence) / 2) * sd / np.sqrt(n), np.nan)
    return mean - half, mean + half


def summarise(cells: pd.DataFrame, rounds: pd.DataFrame, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """The tidy frame: the axes, then cell, group, reference, metric, form and the summary of its rounds.

    `value` is the geometric mean over rounds for sampled quantities (the arithmetic one for fractions,
    which may be zero), the plain value for counts and close ones, the worst for bounded ones. `low` and `high` are
    Student's interval over rounds with that `confidence` for sampled quantities, else the extremes seen.

    A close quantity is several numbers that are one result. Its row stands for the first of them (for `fused_output`
    the root mean square), and `n` counts rounds as it does for all others: whoever asks how often something was
    measured is not told 17. All its numbers, in their order, are in `Run.samples()`.
    """
    measured = last_visits(rounds)
    summary = per_form(measured, confidence)
    rows = pd.concat([summary, *_rates(cells, summary), _unmeasured(cells, rounds, measured)], ignore_index=True)
    front = [*AXES, "group", "reference"]
    tidy = rows.merge(cells[front], how="inner", left_on="cell", right_index=True)
    position = pd.Series(np.arange(len(cells)), index=cells.index)
    tidy = tidy.assign(_order=tidy["cell"].map(position)).sort_values(["_order", "metric", "form"], kind="stable")
    return tidy[[*AXES, "cell", "group", "reference", *COLUMNS[1:]]].reset_index(drop=True)


def last_visits(rounds: pd.DataFrame) -> pd.DataFrame:
    """The rows that were measured; of a round that was repeated the last counts."""
    measured = rounds[rounds["status"].isin(MEASURED) & (rounds["metric"].fillna("") != "")]
    return measured.drop_duplicates([*KEY, "round"], keep="last")


def per_form(measured: pd.DataFrame, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """The summary of measured rows (`last_visits`), one row per cell, metric and form."""
    if measured.empty:
        return _empty()
    measured = measured.assign(value=measured["value"].astype(float))
    with np.errstate(divide="ignore", invalid="ignore"):
        measured["log"] = np.log(measured["value"].where(measured["value"] > 0))
    each = measured.groupby(KEY, sort=False, dropna=False)
    values, logs = each["value"], each["log"]
    table = each[["kind", "better", "unit", "status"]].last().assign(  # each.agg does the same in twice the time
        last=values.last(), least=values.min(), most=values.max(), mean=values.mean(), sd=values.std(),
        n=values.count(), mean_log=logs.mean(), sd_log=logs.std(), logs=logs.count(), rows=each.size(),
    )  # fmt: skip
    return _with_intervals(table.reset_index(), confidence)[COLUMNS]


def _with_intervals(table: pd.DataFrame, confidence: float) -> pd.DataFrame:
    names = ("last", "least", "most", "mean", "sd", "n", "mean_log", "sd_log", "logs", "rows")
    last, least, most, mean, sd, n, mean_log, sd_log, logs, rows = (table[name].to_numpy() for name in names)
    sampled, bounded = (np.asarray(table["kind"] == kind) for kind in (Kind.SAMPLED, Kind.BOUNDED))
    logarithmic = sampled & (logs == n) & (n > 0) & np.asarray(table["unit"] != "fraction")
    low, high = student_interval(mean, sd, n, confidence)
    log_low, log_high = student_interval(mean_log, sd_log, logs, confidence)
    # a bounded quantity that was ever not a number is not within any limit
    worst = np.where(n == rows, np.where(table["better"] == "lower", most, least), np.nan)
    return table.assign(
        value=np.select([logarithmic, sampled, bounded], [np.exp(mean_log), mean, worst], last),
        low=np.select([logarithmic, sampled], [np.exp(log_low), low], least),
        high=np.select([logarithmic, sampled], [np.exp(log_high), high], most),
    )


def _rates(cells: pd.DataFrame, summary: pd.DataFrame) -> list[pd.DataFrame]:
    """What is another way to read a time: images per second, MACs per second."""
    batch = cells["batch_size"].astype(float)
    found = []
    for quantity, rate in catalog.rates():
        times = summary[(summary["metric"] == rate.of) & (summary["unit"] == "s")]
        if not times.empty:
            found.append(_per_second(times, quantity, _work(summary, times, batch, rate)))
    return found


def _work(summary: pd.DataFrame, times: pd.DataFrame, batch: pd.Series[float], rate: Rate) -> pd.Series[float]:
    """What a step of each of these times does: that of an image times the batch, and what is done once."""
    images = times["cell"].map(batch)
    per_image = [_counts(summary, times, metric) for metric in rate.per_image]
    work = sum(per_image) * images if per_image else images
    return work + sum(_counts(summary, times, metric).fillna(0.0) for metric in rate.per_step)


def _counts(summary: pd.DataFrame, times: pd.DataFrame, metric: str) -> pd.Series[float]:
    """A count of the cell and form of each of these times; NaN where it was not read."""
    counted = summary[summary["metric"] == metric]
    counts = dict(zip(zip(counted["cell"], counted["form"], strict=True), counted["value"], strict=True))
    keys = zip(times["cell"], times["form"], strict=True)
    return pd.Series([counts.get(key, np.nan) for key in keys], index=times.index, dtype=float)


def _per_second(times: pd.DataFrame, quantity: Quantity, work: pd.Series[float]) -> pd.DataFrame:
    """`work` per second, where both are known; the ends of the interval change places."""
    value, low, high = (work / times[name].astype(float) for name in ("value", "high", "low"))
    named = {"metric": quantity.name, "unit": quantity.unit, "better": quantity.better}
    return times.assign(**named, value=value, low=low, high=high).loc[work.notna()]


def _unmeasured(cells: pd.DataFrame, rounds: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Rows with a status and no value.

    A failure that names its metric stands for that metric. One that does not (a task that died) stands
    for whatever the rest of the cell's group has and this cell lacks.
    """
    failed = rounds[~rounds["status"].isin(MEASURED)]
    if failed.empty:
        return _empty()
    have = set(measured[KEY].itertuples(index=False, name=None))
    named = failed[failed["metric"].fillna("") != ""]
    unnamed = failed[failed["metric"].fillna("") == ""].drop_duplicates("cell", keep="last")
    group = cells["group"]
    known = measured.assign(group=measured["cell"].map(group)).drop_duplicates(["group", "metric", "form"])
    spread = (
        known.drop(columns=["cell", "status"])
        .merge(unnamed.assign(group=unnamed["cell"].map(group))[["cell", "group", "status"]], on="group")
        .drop(columns="group")
    )
    rows = pd.concat([named, spread]).drop_duplicates(KEY, keep="first")
    lacking = np.array([key not in have for key in rows[KEY].itertuples(index=False, name=None)], dtype=bool)
    return rows.loc[lacking].assign(value=np.nan, low=np.nan, high=np.nan, n=0)[COLUMNS]


def _empty() -> pd.DataFrame:
    numbers = dict.fromkeys(("value", "low", "high"), "float64") | {"n": "int64"}
    return pd.DataFrame(columns=COLUMNS, dtype="str").astype(numbers)
