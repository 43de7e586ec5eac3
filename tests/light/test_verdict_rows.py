"""What each row of a check says, and the file that a baseline is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_run import CONV, MACHINE, OREPA, FakeRun, cell, cells_frame, full_run
from verdict_runs import BASELINE, one_metric

from harness.errors import HarnessError
from harness.verdict.against_baseline import check
from harness.verdict.baseline import NoBaseline, load_baseline, make_baseline, write_baseline
from harness.verdict.rules import Verdict


def of_kind(kind: str, metric: str, values, fingerprint=MACHINE) -> FakeRun:
    """conv and orepa with one quantity of that kind; `values` are orepa's, conv has ones."""
    run = FakeRun(cells_frame([cell("conv"), cell("orepa")]), fingerprint=fingerprint)
    run.put(CONV, metric, np.ones(len(values))).put(OREPA, metric, values)
    for one in run.rows:
        one["kind"] = kind
    return run


STEADY, SLOW = [1.40, 1.41, 1.39, 1.40], [2.80, 2.81, 2.79, 2.80]
LOOSE = [1.0, 4.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("kind", "metric", "before", "now", "verdict", "ratio", "interval"),
    [
        ("count", "saved_memory", [100], [100], "SAME", 1.0, False),
        ("count", "saved_memory", [100], [150], "REGRESSED", 1.5, False),
        ("count", "saved_memory", [100], [50], "IMPROVED", 0.5, False),
        ("bounded", "fusion_error", [1e-7], [2e-7], "SAME", 2.0, False),
        ("bounded", "fusion_error", [1e-7], [1e-5], "REGRESSED", 100.0, False),
        ("bounded", "error_without_limit", [1e-7], [2e-7], "INCONCLUSIVE", 2.0, False),
        ("close", "fused_output", [1.5], [1.5], "SAME", None, False),
        ("close", "fused_output", [1.5], [1.6], "REGRESSED", None, False),
        ("sampled", "train_step", STEADY, STEADY[::-1], "SAME", 1.0, True),
        ("sampled", "train_step", STEADY, SLOW, "REGRESSED", 2.0, True),
        ("sampled", "train_step", SLOW, STEADY, "IMPROVED", 0.5, True),
        ("sampled", "train_step", STEADY, LOOSE, "INCONCLUSIVE", 1.0102, True),
        ("sampled", "train_step", STEADY[:3], SLOW[:3], "INCONCLUSIVE", 2.0, True),
        ("sampled", "changed_predictions", [0, 0, 0, 0], [9, 8, 9, 10], "REGRESSED", None, False),
    ],
)  # fmt: skip
def test_every_verdict_of_every_kind_carries_what_it_rests_on(kind, metric, before, now, verdict, ratio, interval):
    run = of_kind(kind, metric, now)
    result = check(run, make_baseline(of_kind(kind, metric, before)))
    (row,) = [row for row in result.rows if row.cell == OREPA]
    assert (row.verdict, row.kind, row.metric) == (verdict, kind, metric)
    assert (row.rounds, row.command) == (len(now), run.command_for(OREPA))
    if kind == "sampled":
        assert row.before == pytest.approx(np.mean(before), rel=0.01)
    else:
        assert (row.before, row.now) == (before[0], now[0])
    assert np.isnan(row.ratio) if ratio is None else row.ratio == pytest.approx(ratio, rel=0.01)
    assert (row.low <= row.ratio <= row.high) if interval else np.isnan([row.low, row.high]).all()
    assert row.reason or row.verdict == "SAME"
    assert (row.unit, row.yardstick) == (("x", CONV) if interval else (row.unit, ""))


@pytest.mark.parametrize(
    ("kind", "metric", "values"),
    [
        ("count", "saved_memory", [0]), ("count", "saved_memory", [100]), ("bounded", "fusion_error", [1e-7]),
        ("close", "fused_output", [1.5]), ("sampled", "train_step", STEADY), ("sampled", "changed_predictions", [0] * 4),
    ],
)  # fmt: skip
def test_what_only_one_side_has_carries_its_value_and_the_command(kind, metric, values):
    run = of_kind(kind, metric, values)
    baseline = make_baseline(run)
    del baseline["cells"][OREPA]
    (new,) = [row for row in check(run, baseline).rows if row.verdict is Verdict.NEW]
    assert (new.now, new.rounds) == (pytest.approx(np.mean(values), rel=1e-4), len(values))
    assert np.isnan(new.before)
    without = FakeRun(cells_frame([cell("conv")]), fingerprint=MACHINE).put(CONV, "params", 5)
    missing = {row.cell: row for row in check(without, make_baseline(run)).rows if row.verdict is Verdict.MISSING}
    assert missing[OREPA].before == pytest.approx(np.mean(values), rel=1e-4)
    assert np.isnan(missing[OREPA].now)
    assert (missing[OREPA].kind, missing[OREPA].rounds) == (kind, 0)
    # a cell that --only left out is measured by the same kind of command
    assert {row.command for row in (new, missing[OREPA])} == {run.command_for(OREPA)}


def test_what_is_refused_still_shows_both_sides():
    other = replace(MACHINE, machine={**MACHINE.machine, "threads": 4})
    run = of_kind("sampled", "train_step", SLOW, other)
    result = check(run, make_baseline(of_kind("sampled", "train_step", STEADY)))
    (row,) = [row for row in result.rows if row.cell == OREPA]
    assert (row.verdict, row.rounds, row.command) == (Verdict.INCOMPARABLE, 4, run.command_for(OREPA))
    assert (row.before, row.now, row.ratio) == (
        pytest.approx(1.4, rel=0.01),
        pytest.approx(2.8, rel=0.01),
        pytest.approx(2, rel=0.01),
    )
    assert row.low < row.ratio < row.high
    assert row.reason == "threads: 2 then, 4 now"


# the file


def test_a_baseline_survives_the_disk_and_is_one_line_per_reading(tmp_path):
    path = tmp_path / "made" / "quick.json"
    write_baseline(BASELINE, path)
    assert load_baseline(path) == json.loads(json.dumps(BASELINE))
    lines = path.read_text().splitlines()
    assert sum('"kind"' in line for line in lines) == 20
    assert all(line.count('"kind"') <= 1 for line in lines)
    assert [p.name for p in path.parent.iterdir()] == ["quick.json"]


def test_the_same_run_gives_the_same_file(tmp_path):
    backwards = full_run(seed=0)
    backwards.rows.reverse()
    write_baseline(BASELINE, tmp_path / "a")
    write_baseline(make_baseline(backwards), tmp_path / "b")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_what_no_gate_watches_is_not_kept():
    kept = make_baseline(full_run(gates={"params": {"gate": False}}))["cells"][CONV]["readings"]
    assert "train_step" in kept
    assert not any(name.startswith("params") for name in kept)


def test_not_a_number_is_written_as_json_and_read_back(tmp_path):
    write_baseline(make_baseline(one_metric("fusion_error", np.nan)), tmp_path / "b")
    assert check(one_metric("fusion_error", 1e-7), load_baseline(tmp_path / "b")).rows


def test_a_missing_baseline_is_exit_5_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(NoBaseline, match="harness baseline RUN --out") as caught:
        load_baseline(tmp_path / "none.json")
    assert caught.value.exit_code == 5


def test_a_run_without_readings_makes_no_baseline():
    with pytest.raises(NoBaseline, match="no reading to keep"):
        make_baseline(FakeRun(cells_frame([cell("conv")])).fail(CONV))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json", "not a readable baseline"), ("[]", "does not say format"), ('{"format": "other"}', "does not say"),
        ('{"format": "harness-baseline", "version": 99}', "version 99"),
        ('{"format": "harness-baseline", "version": 1, "cells": {"a": {}}}', "KeyError"),
        ('{"format": "harness-baseline", "version": 1, "cells": []}', "AttributeError"),
    ],
)  # fmt: skip
def test_a_damaged_baseline_is_refused_with_a_remedy(tmp_path, content, complaint):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(HarnessError, match=complaint) as caught:
        load_baseline(tmp_path / "b.json")
    assert "harness baseline RUN" in caught.value.remedy
    assert not isinstance(caught.value, NoBaseline)
