"""Summaries of rounds and ratios to the reference, on frames made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_run import CONV, DBB, OREPA, FakeRun, cell, cells_frame, full_run

from harness.records import AXES, Reading, Record, Status, TaskKind
from harness.store.frames import rounds_frame
from harness.store.pairs import round_log_ratio
from harness.verdict.compare import between_runs, comparisons, paired


def two_blocks() -> FakeRun:
    return FakeRun(cells_frame([cell("conv"), cell("orepa")]))


class Visited:
    """Records of rounds with all of their samples, as a journal has them; `turns`: whether the variants took turns."""

    def __init__(self) -> None:
        self.taken: list[Record] = []

    def put(
        self, cell: str, rounds, metric: str = "latency", turns: bool = True, status: Status = Status.OK
    ) -> Visited:
        for number, values in enumerate(rounds):
            facts = {"order": list(range(len(values)))} if turns else {}
            reading = Reading(metric, "train", "s", tuple(float(value) for value in values), facts)
            readings = (reading,) if status.measured else ()
            self.taken.append(Record(f"round {number}", TaskKind.VISIT, cell, metric, number, "f", status, readings))
        return self

    def records(self) -> list[Record]:
        return self.taken

    def rounds(self) -> pd.DataFrame:
        return rounds_frame(self.records())


CELLS = cells_frame([cell("conv"), cell("orepa")])


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


@pytest.mark.parametrize("turns", [True, False])
def test_where_both_took_turns_a_rounds_ratio_is_the_median_over_passes_else_that_of_the_medians(turns):
    base, value = [1.0, 4.0, 4.1], [2.0, 2.0, 8.2]
    run = Visited().put(CONV, [base], turns=turns).put(OREPA, [value], turns=turns)
    (ratio,) = paired(CELLS, run.rounds())["log_ratio"]
    assert ratio == pytest.approx(np.log(2.0) if turns else np.log(2.0 / 4.0))


@pytest.mark.parametrize("who", [CONV, OREPA])
def test_turns_of_one_side_alone_are_no_turns(who):
    run = Visited().put(CONV, [[1.0, 4.0, 4.1]], turns=who == CONV)
    run.put(OREPA, [[2.0, 2.0, 8.2]], turns=who == OREPA)
    (ratio,) = paired(CELLS, run.rounds())["log_ratio"]
    assert ratio == pytest.approx(np.log(2.0 / 4.0))


def test_passes_that_one_side_lacks_or_that_gave_no_number_are_left_out_of_both():
    assert round_log_ratio([2.0, 4.0, 9.0], [1.0, 2.0]) == pytest.approx(np.log(2.0))
    assert round_log_ratio([2.0, 0.0, 5.0, np.nan], [1.0, 1.0, 0.0, 1.0]) == pytest.approx(np.log(2.0))
    assert np.isnan(round_log_ratio([], [1.0]))
    assert np.isnan(round_log_ratio([0.0], [1.0]))


def test_a_neighbour_that_slows_half_of_the_passes_of_both_sides_changes_no_ratio():
    # he is there in every second pass or a little more, and he comes and goes between the two visits of a pass
    rng = np.random.default_rng(0)
    passes, truth = 41, 1.1
    quiet, busy, of_medians = Visited(), Visited(), []
    for who, factor in ((CONV, 1.0), (OREPA, truth)):
        quiet.put(who, [[factor] * passes] * 6)
    both = {CONV: [], OREPA: []}
    for _ in range(6):
        here = np.where(rng.permutation(passes) < passes // 2, 3.0, 1.0)
        other = here.copy()
        other[rng.choice(np.flatnonzero(here == 1.0), 2, replace=False)] = 3.0  # comes within two of the passes
        both[CONV].append(here)
        both[OREPA].append(truth * other)
        of_medians.append(np.median(truth * other) / np.median(here))
    for who, rounds in both.items():
        busy.put(who, rounds)
    found = [comparisons(CELLS, run.rounds()).iloc[0] for run in (quiet, busy)]
    assert [row["ratio"] for row in found] == pytest.approx([truth, truth])
    assert (found[1]["low"], found[1]["high"]) == pytest.approx((truth, truth))
    assert min(of_medians) > 1.5 * truth, "the ratio of the medians is wrong by more than half"


def test_intervals_have_the_confidence_that_is_asked_for_and_p_has_not():
    run = two_blocks().put(CONV, "train_step", [1.0, 2.0, 3.0, 4.0]).put(OREPA, "train_step", [1.5, 2.9, 4.6, 6.1])
    expected = stats.ttest_1samp(np.log([1.5, 2.9 / 2, 4.6 / 3, 6.1 / 4]), 0)
    for confidence in (0.9, 0.9975):
        found = row(comparisons(run.cells, run.rounds(), confidence), OREPA, "train_step")
        ends = expected.confidence_interval(confidence)
        np.testing.assert_allclose(np.log([found["low"], found["high"]]), ends)
        assert found["p"] == pytest.approx(expected.pvalue)


def test_between_two_runs_the_same_cells_rounds_are_paired_pass_by_pass():
    base = Visited().put(CONV, [[1.0, 4.0, 4.1], [1.0, 1.0]]).put(OREPA, [[1.0], [1.0], [1.0]])
    head = Visited().put(CONV, [[2.0, 2.0, 8.2], [3.0, 3.0], [9.0]]).put(OREPA, [[1.5], [1.25]])
    found = between_runs(base.rounds(), head.rounds())
    assert found[CONV, "latency", "train"] == pytest.approx(np.log([2.0, 3.0]))
    assert found[OREPA, "latency", "train"] == pytest.approx(np.log([1.5, 1.25]))
    assert len(found) == 2


def test_between_two_runs_only_what_is_sampled_and_measured_on_both_sides_has_ratios():
    base = Visited().put(CONV, [[5.0]], metric="params").put(CONV, [[1.0]] * 2).put(OREPA, [[1.0]])
    head = Visited().put(CONV, [[5.0]], metric="params").put(CONV, [[2.0]]).put(OREPA, [[1.0]], status=Status.OOM)
    assert between_runs(base.rounds(), head.rounds()) == {(CONV, "latency", "train"): pytest.approx([np.log(2.0)])}


def test_between_two_runs_the_medians_are_compared_where_turns_were_not_taken():
    base = Visited().put(CONV, [[1.0, 4.0, 4.1]], turns=False)
    head = Visited().put(CONV, [[2.0, 2.0, 8.2]], turns=False)
    assert between_runs(base.rounds(), head.rounds())[CONV, "latency", "train"] == pytest.approx([np.log(0.5)])


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
