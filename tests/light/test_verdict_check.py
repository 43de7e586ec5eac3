"""Baselines and checks: every verdict, every exit code, and which of two is the stronger."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_run import CONV, DBB, MACHINE, OREPA, FakeRun, cell, cells_frame, full_run, noisy

from harness.errors import HarnessError
from harness.verdict.baseline import NoBaseline, load_baseline, make_baseline, write_baseline
from harness.verdict.checking import check
from harness.verdict.rows import Check, Row
from harness.verdict.rules import FUSION_LIMITS, Verdict, default_limit, judge_bounded, judge_count

BASELINE = make_baseline(full_run(seed=0))


def verdicts(result: Check, *which: Verdict) -> set[tuple[str, str, str, str]]:
    chosen = which or (Verdict.REGRESSED,)
    return {(row.cell, row.metric, row.form, str(row.verdict)) for row in result.rows if row.verdict in chosen}


def one_metric(metric, values, form="", **kwargs) -> FakeRun:
    """conv and orepa with a single quantity; `values` are orepa's."""
    run = FakeRun(cells_frame([cell("conv"), cell("orepa")]), **kwargs)
    run.put(CONV, metric, np.ones_like(np.atleast_1d(values), dtype=float) * 0.5, form)
    return run.put(OREPA, metric, values, form)


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


def test_every_dtype_has_a_limit_and_a_reason():
    assert set(FUSION_LIMITS) == {"float64", "float32", "tf32", "float16", "bfloat16"}
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
    assert result.counts[Verdict.INCONCLUSIVE] == 1


# another machine


def test_on_another_machine_times_are_advice_and_counts_still_gate():
    other = replace(MACHINE, machine={"cpu": "Another CPU", "threads": 2})
    result = check(full_run(1, slow=2.0, fingerprint=other), BASELINE, strict=True)
    advice = [row for row in result.rows if row.verdict is Verdict.INCOMPARABLE]
    assert {row.metric for row in advice} == {"train_step", "latency"}
    assert any("as if it were the same: REGRESSED" in row.reason for row in advice)
    assert result.notes == ("cpu: Some CPU -> Another CPU",)
    assert result.exit_code == 0
    assert check(full_run(1, extra=512, fingerprint=other), BASELINE).exit_code == 1


def test_a_ratio_to_another_reference_is_not_compared():
    baseline = make_baseline(full_run(0))
    baseline["cells"][OREPA]["reference"] = DBB
    rows = [row for row in check(full_run(1, slow=2), baseline).rows if row.verdict is Verdict.INCOMPARABLE]
    assert {row.metric for row in rows} == {"train_step", "latency", "accuracy"}


# exit codes


def result_of(verdict_list=(), failed=(), strict=False, gated=True) -> Check:
    rows = tuple(Row("c", "c", "g", "m", "", verdict, gated) for verdict in verdict_list)
    return Check("run", "suite", rows, dict.fromkeys(failed, "oom"), (), strict)


R, I, S, M, N, X = (  # noqa: E741
    Verdict.REGRESSED, Verdict.INCONCLUSIVE, Verdict.SAME, Verdict.MISSING, Verdict.NEW, Verdict.INCOMPARABLE,
)  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "failed", "strict", "code"),
    [
        ([S], [], False, 0), ([S, I], [], False, 0), ([S, I], [], True, 4), ([S, M], [], False, 0),
        ([S, M], [], True, 4), ([R, S], [], False, 1), ([R, I], ["c"], True, 1), ([S], ["c"], False, 3),
        ([M], ["c"], True, 3), ([S, I], ["c"], True, 3), ([], [], False, 5), ([M, N], [], True, 5), ([N], [], False, 5),
        ([X], [], True, 0), ([Verdict.IMPROVED], [], True, 0),
    ],
)  # fmt: skip
def test_the_strongest_reason_decides_the_exit_code(rows, failed, strict, code):
    assert result_of(rows, failed, strict).exit_code == code


def test_what_is_not_gated_decides_nothing():
    assert result_of([R, I, M, S], strict=True, gated=False).exit_code == 0


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
