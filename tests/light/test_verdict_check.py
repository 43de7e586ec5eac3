"""Baselines and checks: every verdict, what it rests on and what each row says. Exit codes are in test_exit_codes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic_run import CONV, DBB, MACHINE, OREPA, FakeRun, cell, cells_frame, full_run, noisy

from harness.errors import HarnessError
from harness.records import Fingerprint, Variant
from harness.verdict.baseline import NoBaseline, load_baseline, make_baseline, write_baseline
from harness.verdict.checking import check
from harness.verdict.machines import Level
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
    (row,) = [row for row in result.rows if row.cell == OREPA]
    assert (row.verdict, row.standing, row.command) == (
        Verdict.INCONCLUSIVE,
        Level.REFUSED,
        f"harness run suites/quick.yaml --only {OREPA}",
    )
    assert "make the baseline again" in row.reason
    assert np.isnan(row.ratio)


# another machine


CARD = {"model": "Some Card", "driver": "550.1"}


def machine(torch: str = "2.14.1", **fields: object) -> Fingerprint:
    return Fingerprint("abc", {"torch": torch}, {"cpu": {"model": "Some CPU"}, "threads": 2, **fields})


def times(result: Check, label: str = "") -> list[Row]:
    return [row for row in result.rows if row.metric in ("train_step", "latency") and label in row.label]


def test_on_another_machine_times_are_refused_and_counts_still_gate():
    other = machine(cpu={"model": "Another CPU"})
    result = check(full_run(1, slow=2.0, fingerprint=other), BASELINE, strict=True)
    refused = [row for row in result.rows if row.verdict is Verdict.INCOMPARABLE]
    assert refused == times(result)
    assert {row.reason for row in refused} == {"cpu model: Some CPU then, Another CPU now"}
    assert {row.standing for row in refused} == {Level.REFUSED}
    (note,) = result.notes
    assert note.startswith("times on cpu are not compared (cpu model: Some CPU then, Another CPU now): make a baseline")
    assert result.exit_code == 0
    assert check(full_run(1, extra=512, fingerprint=other), BASELINE).exit_code == 1


def test_with_another_torch_times_are_judged_and_advice():
    result = check(full_run(1, slow=2.0, fingerprint=machine("2.15.0")), BASELINE, strict=True)
    assert {(row.verdict, row.gated, row.standing) for row in times(result, "orepa") if row.form != "fused"} == {
        (Verdict.REGRESSED, False, Level.COMPARABLE)
    }
    assert result.notes == ("times on cpu are advice and fail nothing (torch: 2.14.1 then, 2.15.0 now)",)
    assert result.exit_code == 0
    assert check(full_run(1, extra=512, fingerprint=machine("2.15.0")), BASELINE).exit_code == 1
    others = [row for row in result.rows if row not in times(result)]
    assert {(row.gated, row.standing) for row in others} == {(True, Level.SAME)}


def test_advice_gives_the_verdict_that_the_same_machine_would_have_given():
    here, advice = (check(full_run(1, slow=2.0, fingerprint=machine(t)), BASELINE) for t in ("2.14.1", "2.15.0"))
    assert [replace(row, gated=True, standing=Level.SAME) for row in advice.rows] == list(here.rows)


def test_a_slower_reference_is_found_with_another_torch_too():
    result = check(full_run(1, reference_slow=2.0, fingerprint=machine("2.15.0")), BASELINE)
    assert {(c, m) for c, m, _, _ in verdicts(result)} == {(CONV, "train_step"), (CONV, "latency")}


def test_where_nothing_is_timed_the_machine_is_only_mentioned():
    run = one_metric("params", 7, fingerprint=machine("2.15.0", threads=4))
    result = check(run, make_baseline(one_metric("params", 7)))
    assert result.notes == ("threads: 2 then, 4 now", "torch: 2.14.1 then, 2.15.0 now")
    assert (result.exit_code, set(result.counts)) == (0, {Verdict.SAME})


def on_devices(seed: int, *devices: str, slow: float = 1.0, **kwargs) -> FakeRun:
    """conv and orepa timed on each device; `slow` is what a change did to orepa on the last one."""
    rng = np.random.default_rng(seed)
    cells = [cell(block, device=Variant(device)) for device in devices for block in ("conv", "orepa")]
    run = FakeRun(cells_frame(cells), **kwargs)
    for one in cells:
        factor = slow if (one.block.name, one.device.name) == ("orepa", devices[-1]) else 1.0
        run.put(one.id, "latency", factor * noisy(0.05, rng), "train")
    return run


def test_only_the_device_of_a_cell_matters_for_its_times():
    before = make_baseline(on_devices(0, "cuda", "cpu", fingerprint=machine(cuda=CARD)))
    newer = machine(cuda={**CARD, "model": "Another Card"})
    result = check(on_devices(1, "cuda", "cpu", slow=2, fingerprint=newer), before)
    assert {row.verdict for row in times(result, "cuda")} == {Verdict.INCOMPARABLE}
    assert verdicts(result) == {(cell("orepa").id, "latency", "train", "REGRESSED")}
    assert result.exit_code == 1


def test_a_new_driver_makes_the_times_of_its_device_advice_alone():
    before = make_baseline(on_devices(0, "cpu", "cuda", fingerprint=machine(cuda=CARD)))
    now = on_devices(1, "cpu", "cuda", slow=2, fingerprint=machine(cuda={**CARD, "driver": "560.0"}))
    result = check(now, before)
    assert {row.standing for row in times(result, "cuda")} == {Level.COMPARABLE}
    assert {row.standing for row in times(result, "cpu")} == {Level.SAME}
    assert (result.counts[Verdict.REGRESSED], result.exit_code) == (1, 0)


def test_options_of_a_device_do_not_hide_it():
    cells = [cell(block, device=Variant("cuda", {"cudnn_benchmark": True})) for block in ("conv", "orepa")]

    def run(card: dict[str, str]) -> FakeRun:
        made = FakeRun(cells_frame(cells), fingerprint=machine(cuda=card))
        return made.put(cells[0].id, "latency", [1.0] * 4).put(cells[1].id, "latency", [1.5] * 4)

    assert check(run(CARD), make_baseline(run(CARD))).counts == {Verdict.SAME: 2}
    assert check(run({**CARD, "model": "Other"}), make_baseline(run(CARD))).counts == {Verdict.INCOMPARABLE: 2}


def test_a_ratio_between_devices_needs_both_of_them_to_be_the_same():
    cells = [cell(device=Variant(device)) for device in ("cpu", "cuda")]

    def run(card: dict[str, str], ratio: float = 1.0) -> FakeRun:
        made = FakeRun(cells_frame(cells, "device", "cpu"), fingerprint=machine(cuda=card))
        rng = np.random.default_rng(1)
        return made.put(cells[0].id, "latency", noisy(1.0, rng)).put(cells[1].id, "latency", noisy(ratio, rng))

    baseline = make_baseline(run(CARD))
    on_cpu, on_cuda = cells[0].id, cells[1].id
    result = check(run({**CARD, "model": "Other"}, 0.1), baseline)
    assert {row.cell: row.verdict for row in result.rows} == {on_cpu: Verdict.SAME, on_cuda: Verdict.INCOMPARABLE}
    assert check(run(CARD, 3.0), baseline).exit_code == 1


def test_where_the_references_device_is_another_one_the_ratio_is_refused():
    cells = [cell(device=Variant(device)) for device in ("cuda", "cpu")]

    def run(card: dict[str, str]) -> FakeRun:
        made = FakeRun(cells_frame(cells, "device", "cuda"), fingerprint=machine(cuda=card))
        return made.put(cells[0].id, "latency", [1.0] * 4).put(cells[1].id, "latency", [5.0] * 4)

    result = check(run({**CARD, "model": "Other"}), make_baseline(run(CARD)))
    assert result.counts == {Verdict.INCOMPARABLE: 2}


def test_a_slower_reference_does_not_hide_behind_a_slower_card():
    cells = [cell(device=Variant(device)) for device in ("cpu", "cuda")]

    def run(card: dict[str, str], slow: float = 1.0) -> FakeRun:
        made = FakeRun(cells_frame(cells, "device", "cpu"), fingerprint=machine(cuda=card))
        rng = np.random.default_rng(1)
        return made.put(cells[0].id, "latency", slow * noisy(1, rng)).put(cells[1].id, "latency", slow * noisy(1, rng))

    result = check(run({**CARD, "model": "Other"}, slow=3.0), make_baseline(run(CARD)))
    assert verdicts(result) == {(cells[0].id, "latency", "", "REGRESSED")}


def test_a_ratio_to_another_reference_is_not_compared():
    baseline = make_baseline(full_run(0))
    baseline["cells"][OREPA]["reference"] = DBB
    rows = [row for row in check(full_run(1, slow=2), baseline).rows if row.verdict is Verdict.INCOMPARABLE]
    assert {row.metric for row in rows} == {"train_step", "latency", "accuracy"}


# what each row says


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
