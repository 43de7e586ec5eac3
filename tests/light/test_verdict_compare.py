"""Summaries of rounds and ratios to the reference, on frames made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_run import CONV, DBB, OREPA, FakeRun, cell, cells_frame, full_run

from harness.records import AXES
from harness.verdict.compare import comparisons


def two_blocks() -> FakeRun:
    return FakeRun(cells_frame([cell("conv"), cell("orepa")]))


def row(frame: pd.DataFrame, cell_id: str, metric: str, form: str = "") -> pd.Series:
    (found,) = frame[(frame["cell"] == cell_id) & (frame["metric"] == metric) & (frame["form"] == form)].index
    return frame.loc[found]


def test_a_ratio_is_the_geometric_mean_of_the_rounds_ratios_with_students_interval():
    run = two_blocks().put(CONV, "train_step", [1.0, 2.0, 3.0, 4.0]).put(OREPA, "train_step", [1.5, 2.9, 4.6, 6.1])
    found = row(comparisons(run.cells, run.rounds()), OREPA, "train_step")
    logs = np.log([1.5, 2.9 / 2, 4.6 / 3, 6.1 / 4])
    expected = stats.ttest_1samp(logs, 0)
    assert found["ratio"] == pytest.approx(np.exp(logs.mean()))
    np.testing.assert_allclose(np.log([found["low"], found["high"]]), expected.confidence_interval(0.99))
    assert (found["p"], found["rounds"], found["reference"]) == (pytest.approx(expected.pvalue), 4, CONV)


def test_rounds_are_paired_by_number_and_a_round_without_its_reference_is_left_out():
    run = two_blocks().put(CONV, "latency", [1.0, 2.0]).put(OREPA, "latency", [2.0, 4.0, 100.0])
    found = row(comparisons(run.cells, run.rounds()), OREPA, "latency")
    assert (found["ratio"], found["rounds"]) == (pytest.approx(2.0), 2)


def test_of_a_repeated_round_the_last_counts():
    run = two_blocks().put(CONV, "latency", [1.0]).put(OREPA, "latency", [9.0]).put(OREPA, "latency", [3.0])
    assert row(comparisons(run.cells, run.rounds()), OREPA, "latency")["ratio"] == pytest.approx(3.0)


def test_counts_have_a_difference_and_no_interval():
    run = two_blocks().put(CONV, "saved_memory", 100).put(OREPA, "saved_memory", 150)
    found = row(comparisons(run.cells, run.rounds()), OREPA, "saved_memory")
    assert (found["ratio"], found["difference"]) == (1.5, 50)
    assert np.isnan(found["low"])


def test_accuracies_differ_by_points_even_when_one_is_zero():
    run = two_blocks().put(CONV, "accuracy", [0.9, 0.8, 0.0]).put(OREPA, "accuracy", [0.95, 0.9, 0.1])
    found = row(comparisons(run.cells, run.rounds()), OREPA, "accuracy")
    expected = stats.ttest_1samp([0.05, 0.1, 0.1], 0).confidence_interval(0.99)
    assert found["difference"] == pytest.approx(0.25 / 3)
    np.testing.assert_allclose([found["difference_low"], found["difference_high"]], expected)
    assert np.isnan(found["ratio"])


def test_without_a_reference_nothing_is_compared():
    run = FakeRun(cells_frame([cell("conv"), cell("orepa")], reference=None)).put(CONV, "params", 5)
    assert comparisons(run.cells, run.rounds()).empty
    assert len(run.frame()) == 1


def test_a_reference_that_failed_leaves_ratios_unknown():
    run = two_blocks().fail(CONV).put(OREPA, "latency", [1.0, 1.1, 1.2, 1.3])
    found = row(comparisons(run.cells, run.rounds()), OREPA, "latency")
    assert np.isnan(found["ratio"])
    assert found["rounds"] == 0


def test_the_tidy_frame_has_axes_first_and_one_row_per_reading():
    frame = full_run().frame()
    rest = [
        "cell",
        "group",
        "reference",
        "metric",
        "form",
        "kind",
        "better",
        "value",
        "unit",
        "low",
        "high",
        "n",
        "status",
    ]
    assert list(frame.columns) == [*AXES, *rest]
    assert not frame.duplicated(["cell", "metric", "form"]).any()
    assert set(frame["status"]) == {"ok"}


def test_rates_are_derived_and_their_intervals_turned_round():
    run = two_blocks().put(CONV, "train_step", [0.1, 0.2]).put(CONV, "latency", [0.5, 0.5], "train")
    run.put(CONV, "macs", 1000, "train").put(CONV, "macs_kernel", 48, "train")
    frame = run.frame()
    step, rate = row(frame, CONV, "train_step"), row(frame, CONV, "throughput")
    assert rate["value"] == pytest.approx(8 / np.sqrt(0.02))
    assert rate["low"] == pytest.approx(8 / step["high"])
    macs = row(frame, CONV, "mac_rate", "train")  # the kernel is composed once for the batch of eight
    assert (macs["value"], macs["unit"], macs["better"]) == (pytest.approx((8 * 1000 + 48) / 0.5), "MAC/s", "higher")


def test_a_bounded_reading_keeps_its_worst_round_and_not_a_number_is_worse():
    run = two_blocks().put(CONV, "fusion_error", [1e-7, 3e-7, 2e-7]).put(OREPA, "fusion_error", [1e-7, np.nan])
    assert row(run.frame(), CONV, "fusion_error")["value"] == 3e-7
    assert np.isnan(row(run.frame(), OREPA, "fusion_error")["value"])


def test_a_failed_cell_has_a_row_with_its_status_for_whatever_its_group_has():
    run = FakeRun(cells_frame([cell("conv"), cell("orepa"), cell("dbb")]))
    run.put(CONV, "params", 5, "train").put(CONV, "latency", [1.0], "fused").fail(OREPA, "oom")
    run.put(DBB, "params", 7, "train").fail(DBB, "unsupported", metric="accuracy")
    frame = run.frame().set_index(["cell", "metric", "form"])
    assert frame.at[(OREPA, "params", "train"), "status"] == "oom"
    assert np.isnan(frame.at[(OREPA, "latency", "fused"), "value"])
    assert frame.at[(DBB, "accuracy", ""), "status"] == "unsupported"
    assert (DBB, "latency", "fused") not in frame.index


def test_a_run_without_any_reading_has_an_empty_frame():
    run = two_blocks()
    assert run.frame().empty
    assert "metric" in run.frame().columns
    assert run.fail(CONV).frame().empty
