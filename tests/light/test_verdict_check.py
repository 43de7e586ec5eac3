"""Checks against a baseline: what is found, rule by rule, and what is missing. Exit codes are in test_exit_codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic_run import CONV, OREPA, FakeRun, cell, cells_frame, full_run, noisy
from verdict_runs import BASELINE, one_metric, verdicts

from harness.catalog import quantity_of
from harness.verdict.against_baseline import check
from harness.verdict.baseline import make_baseline
from harness.verdict.comparability import Level
from harness.verdict.rules import Verdict, default_limit, judge_bounded, judge_count

# what is found


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_same_code_again_changes_nothing(seed):
    result = check(full_run(seed), BASELINE, strict=True)
    assert set(result.counts) == {Verdict.SAME}
    assert result.exit_code == 0


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_slow_block_is_found_and_nothing_else(seed):
    result = check(full_run(seed, slow=2.0), BASELINE)
    assert {(c, m) for c, m, _, _ in verdicts(result)} == {(OREPA, "train_step"), (OREPA, "latency")}
    assert result.exit_code == 1


def test_one_extra_saved_tensor_is_found_and_nothing_else():
    result = check(full_run(1, extra=512), BASELINE)
    assert verdicts(result) == {(OREPA, "saved_memory", "", "REGRESSED")}
    assert result.exit_code == 1


def test_fewer_bytes_are_an_improvement():
    result = check(full_run(1, extra=-512), BASELINE)
    assert verdicts(result, Verdict.IMPROVED) == {(OREPA, "saved_memory", "", "IMPROVED")}
    assert result.exit_code == 0


def test_a_slower_reference_does_not_pass_as_everyones_improvement():
    result = check(full_run(1, reference_slow=2.0), BASELINE)
    assert {(c, m) for c, m, _, _ in verdicts(result)} == {(CONV, "train_step"), (CONV, "latency")}
    assert result.exit_code == 1


@pytest.mark.parametrize("busy", [2.5, 30.0])
def test_a_busy_machine_slows_everyone_and_fails_nobody(busy):
    result = check(full_run(1, busy=busy), BASELINE)
    assert not verdicts(result)
    assert result.exit_code == 0


def test_a_slower_reference_is_found_on_a_busy_machine_too():
    result = check(full_run(1, busy=2.5, reference_slow=2.0), BASELINE)
    assert {(c, m) for c, m, _, _ in verdicts(result)} == {(CONV, "train_step"), (CONV, "latency")}


def test_an_absolute_time_may_change_by_a_third():
    result = check(full_run(1, slow=1.33, reference_slow=1.33), BASELINE)
    assert not verdicts(result)


def test_a_gate_may_be_narrower_or_off():
    narrow = full_run(1, slow=1.35, gates={"train_step": {"threshold": 0.1}, "latency": {"gate": False}})
    result = check(narrow, BASELINE)
    assert (OREPA, "train_step", "", "REGRESSED") in verdicts(result)
    off = check(full_run(1, slow=2.0, gates={m: {"gate": False} for m in ("train_step", "latency")}), BASELINE)
    assert off.counts[Verdict.REGRESSED] == 2
    assert off.exit_code == 0


def test_a_microsecond_is_no_change_whatever_its_share():
    def tiny(seed, factor):
        rng = np.random.default_rng(seed)
        run = FakeRun(cells_frame([cell("conv"), cell("orepa")]))
        return run.put(CONV, "latency", noisy(1e-6, rng)).put(OREPA, "latency", factor * noisy(1e-6, rng))

    assert check(tiny(1, 1.7), make_baseline(tiny(0, 1.0))).exit_code == 0
    assert check(tiny(1, 3.0), make_baseline(tiny(0, 1.0))).exit_code == 1


def test_three_rounds_are_no_verdict():
    times = [1.0, 1.01, 0.99]
    baseline = make_baseline(one_metric("train_step", times))
    result = check(one_metric("train_step", [2 * time for time in times]), baseline)
    (row,) = [row for row in result.rows if row.cell == OREPA]
    assert row.verdict is Verdict.INCONCLUSIVE
    assert "3 rounds, 4 are needed" in row.reason


def test_a_single_seed_that_gives_the_same_accuracy_again_is_the_same():
    baseline = make_baseline(one_metric("accuracy", [0.93]))
    assert check(one_metric("accuracy", [0.93]), baseline, strict=True).exit_code == 0
    assert check(one_metric("accuracy", [0.92]), baseline, strict=True).exit_code == 4


def test_a_lower_accuracy_is_a_regression_and_a_higher_one_is_not():
    seeds = np.array([0.90, 0.905, 0.902, 0.899, 0.904])
    baseline = make_baseline(one_metric("accuracy", seeds))
    assert check(one_metric("accuracy", seeds * 0.9), baseline).exit_code == 1
    better = check(one_metric("accuracy", seeds * 1.05), baseline)
    assert verdicts(better, Verdict.IMPROVED)
    assert better.exit_code == 0


def changed(*numbers: int) -> FakeRun:
    return one_metric("changed_predictions", numbers, "fused")


def test_what_may_be_zero_has_no_logs_and_is_compared_all_the_same():
    none = make_baseline(changed(0, 0, 0, 0))
    assert check(changed(0, 0, 0, 0), none, strict=True).exit_code == 0
    assert check(changed(9, 8, 9, 10), none).exit_code == 1
    assert verdicts(check(changed(0, 0, 0, 0), make_baseline(changed(9, 8, 9, 10))), Verdict.IMPROVED)
    assert check(changed(1, 0, 0, 0), none, strict=True).exit_code == 4
    assert check(changed(1), make_baseline(changed(0)), strict=True).exit_code == 4


def test_a_training_that_diverged_is_a_regression():
    baseline = make_baseline(one_metric("accuracy", [0.9, 0.91]))
    result = check(one_metric("accuracy", [0.9, np.nan]), baseline)
    assert verdicts(result) == {(OREPA, "accuracy", "", "REGRESSED")}
    assert check(one_metric("accuracy", [0.9, np.nan]), make_baseline(one_metric("accuracy", [0.9, np.nan]))).rows


# the rules one by one


@pytest.mark.parametrize(
    ("before", "now", "better", "expected"),
    [
        (100, 100, "lower", "SAME"), (100, 101, "lower", "REGRESSED"), (100, 99, "lower", "IMPROVED"),
        (100, 101, "higher", "IMPROVED"), (100, 99, "higher", "REGRESSED"), (100, float("nan"), "lower", "REGRESSED"),
    ],
)  # fmt: skip
def test_counts_are_compared_for_equality(before, now, better, expected):
    from harness.verdict.rules import Gate

    assert judge_count(before, now, better, Gate())[0] == expected
    if np.isfinite(now):
        assert judge_count(before, now, better, Gate(threshold=0.02))[0] == "SAME"


@pytest.mark.parametrize(
    ("now", "better", "limit", "expected"),
    [
        (4e-6, "lower", 5e-6, "SAME"), (6e-6, "lower", 5e-6, "REGRESSED"), (float("nan"), "lower", 5e-6, "REGRESSED"),
        (float("inf"), "lower", None, "REGRESSED"), (1e-9, "lower", None, "SAME"), (1.0, "lower", None, "INCONCLUSIVE"),
        (0.5, "higher", 0.9, "REGRESSED"), (0.95, "higher", 0.9, "SAME"),
    ],
)  # fmt: skip
def test_bounded_readings_are_held_to_their_limit(now, better, limit, expected):
    assert judge_bounded(1e-8, now, better, limit)[0] == expected


def test_every_dtype_has_a_limit():
    assert set(quantity_of("fusion_error").limits) == {"float64", "float32", "tf32", "float16", "bfloat16"}
    assert default_limit("fusion_error_max", "float32") == 5e-6
    assert default_limit("something_else", "float32") is None


def test_the_suites_limit_comes_before_the_default():
    baseline = make_baseline(one_metric("fusion_error", 1e-7))
    run = one_metric("fusion_error", 1e-7)
    assert check(run, baseline).exit_code == 1  # conv's stand-in of 0.5 is beyond 5e-6
    run.gates["fusion_error"] = {"limit": 1.0, "threshold": None}
    assert check(run, baseline).exit_code == 0


# what is missing


def test_a_failed_cell_is_missing_and_the_exit_code_says_so():
    run = FakeRun(cells_frame([cell("conv"), cell("orepa")])).put(CONV, "params", 0.5)
    run.fail(OREPA, "timeout", "600 s")
    result = check(run, make_baseline(one_metric("params", 7)))
    (row,) = [row for row in result.rows if row.verdict is Verdict.MISSING]
    assert (row.cell, row.reason, row.command) == (OREPA, "timeout: 600 s", run.command_for(OREPA))
    assert result.exit_code == 3


def test_a_failed_task_that_was_retried_is_forgiven():
    run = one_metric("params", 7)
    failed = run.fail(OREPA, metric="params").taken.pop()
    run.taken.insert(0, replace(failed, task=run.taken[-1].task))
    assert check(run, make_baseline(one_metric("params", 7))).exit_code == 0


@pytest.mark.parametrize("status", ["unsupported", "skipped"])
def test_unsupported_is_not_a_failure(status):
    run = FakeRun(cells_frame([cell("conv"), cell("orepa")])).put(CONV, "params", 0.5).fail(OREPA, status)
    result = check(run, make_baseline(one_metric("params", 7)))
    assert (result.exit_code, check(run, make_baseline(one_metric("params", 7)), strict=True).exit_code) == (0, 4)


def test_a_restricted_run_is_checked_as_far_as_it_goes():
    baseline = make_baseline(one_metric("params", 7))
    only = FakeRun(cells_frame([cell("conv")])).put(CONV, "params", 0.5)
    result = check(only, baseline)
    assert verdicts(result, Verdict.MISSING) == {(OREPA, "params", "", "MISSING")}
    assert [row.label for row in result.rows if row.verdict is Verdict.MISSING] == ["orepa"]
    assert result.exit_code == 0
    assert check(only, baseline, strict=True).exit_code == 4


def test_what_the_baseline_lacks_is_new_and_fails_nothing():
    run = one_metric("params", 7).put(OREPA, "saved_memory", 5)
    result = check(run, make_baseline(one_metric("params", 7)), strict=True)
    assert verdicts(result, Verdict.NEW) == {(OREPA, "saved_memory", "", "NEW")}
    assert result.exit_code == 0


def test_a_quantity_that_changed_its_unit_or_kind_is_not_compared():
    baseline = make_baseline(one_metric("params", 7))
    baseline["cells"][OREPA]["readings"]["params"]["unit"] = "B"
    result = check(one_metric("params", 7), baseline)
    (row,) = [row for row in result.rows if row.cell == OREPA]
    assert (row.verdict, row.standing, row.command) == (
        Verdict.INCONCLUSIVE,
        Level.REFUSED,
        f"harness run suites/quick.yaml --only {OREPA}",
    )
    assert "make the baseline again" in row.reason
    assert np.isnan(row.ratio)
