"""The timing study's raw samples, judged anew: the verdicts in the files are those of the code, and keep their promise."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from harness.verdict.error_rates import error_rates, trials_of

STUDY = Path(__file__).parents[2] / "results" / "studies" / "timing"
MANY, FULL = "many", "full"
KEY = ["condition", "experiment", "reading"]


@cache
def tables(folder: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    return tuple(pd.read_csv(STUDY / folder / f"{name}.csv.gz") for name in ("samples", "verdicts"))  # type: ignore[return-value]


@cache
def experiments(folder: str):
    """The samples as `harness aa` keeps them."""
    samples, verdicts = tables(folder)
    seconds = verdicts.groupby(["condition", "experiment"])["seconds"].first()
    found = []
    for (condition, number), rows in samples.groupby(["condition", "experiment"], sort=False):
        sides = ({}, {})
        for (round_, reading), passes in rows.groupby(["round", "reading"], sort=False):
            for side, column in zip(sides, ("a", "b"), strict=True):
                side.setdefault(str(round_), {})[reading] = passes[column].tolist()
        slowed = rows.assign(cell=rows["reading"].str.partition("/")[0]).groupby("cell")["delta"].first().to_dict()
        wall = seconds[condition, number] * len(slowed)
        found.append(
            {
                "condition": condition, "experiment": number, "slowed": slowed, "samples": list(sides),
                "ended": {}, "seconds": wall,
            }
        )  # fmt: skip
    return found


def confidence(folder: str) -> float:
    return float(tables(folder)[1]["confidence"].iloc[0])


@cache
def trials(folder: str):
    return trials_of(experiments(folder), confidence(folder))


@cache
def rates(folder: str):
    return error_rates(experiments(folder), confidence(folder))


@pytest.mark.parametrize("folder", [MANY, FULL])
def test_the_recorded_verdicts_are_those_of_the_code(folder):
    again = {(row.condition, row.experiment, row.reading): row for row in trials(folder)}
    verdicts = tables(folder)[1]
    assert len(again) == len(verdicts)
    for row in verdicts.itertuples():
        mine = again[row.condition, row.experiment, row.reading]
        assert (mine.ratio, mine.low, mine.high) == pytest.approx((row.ratio, row.low, row.high), rel=1e-4)
        assert str(mine.verdict) == row.verdict


def test_of_a_thousand_unchanged_readings_on_a_noisy_machine_three_at_most_are_called_changed():
    (noisy,) = rates(MANY)
    assert noisy.condition == "noisy"
    assert noisy.false_alarms.of >= 1000
    assert noisy.false_alarms.count <= 3


@pytest.mark.parametrize(("slowed", "least"), [(False, 1000), (True, 100)])
def test_intervals_hold_the_truth_as_often_as_they_promise(slowed, least):
    rows = [row for folder in (MANY, FULL) for row in trials(folder) if bool(row.slowed) is slowed]
    held = sum(row.low <= 1 + row.slowed <= row.high for row in rows)
    assert len(rows) >= least
    assert held / len(rows) >= 0.985


@pytest.mark.parametrize(("condition", "least"), [("quiet", 0.9), ("noisy", 0.7)])
def test_five_percent_are_found_within_thirty_seconds_a_cell(condition, least):
    (found,) = [one for one in rates(FULL) if one.condition == condition]
    assert found.found[0.05].of >= 20
    assert found.found[0.1].value == 1.0
    assert all(found.found[share].count == 0 for share in (0.01, 0.02, 0.03)), "within the threshold"
    assert found.found[0.05].value >= least
    assert found.seconds_per_cell <= 30
