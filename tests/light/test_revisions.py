"""Two revisions that took turns: which readings are judged how, and by what."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from synthetic_run import CONV, OREPA, FakeRun, cell, cells_frame, full_run, noisy

from harness.verdict import Verdict, compare_revisions
from harness.verdict.rules import PAIRED_TIME_THRESHOLD, Paired, judge_paired
from harness.verdict.statistics import spread

NAMES = ("main (abc)", "HEAD (def)")


def compared(base, head, **kwargs):
    return compare_revisions(base, head, command="harness ab main HEAD --suite s.yaml", names=NAMES, **kwargs)


def verdicts(check):
    return {(row.cell, row.metric, row.form): row.verdict for row in check.rows}


def paired_runs(change: float, seed: int = 0, sd: float = 0.005, rounds: int = 10, more=()):
    """conv, orepa and `more` cells on both sides; rounds share their mood (20 %), the head's orepa changes by `change`."""
    rng = np.random.default_rng(seed)
    cells = [cell("conv"), cell("orepa"), *more]
    base, head = (FakeRun(cells_frame(cells)) for _ in range(2))
    mood = np.exp(rng.normal(0, 0.2, rounds))
    for one in cells:
        factor = 1.0 + change if one.id == OREPA else 1.0
        base.put(one.id, "train_step", 0.1 * mood * np.exp(rng.normal(0, sd, rounds)), "train")
        head.put(one.id, "train_step", factor * 0.1 * mood * np.exp(rng.normal(0, sd, rounds)), "train")
    return base, head


@pytest.mark.parametrize(
    ("change", "verdict"), [(0.0, "SAME"), (0.05, "REGRESSED"), (-0.05, "IMPROVED"), (0.015, "SAME")]
)
def test_a_change_of_five_percent_is_found_where_absolute_times_vary_by_twenty(change, verdict):
    check = compared(*paired_runs(change))
    assert verdicts(check) == {
        (CONV, "train_step", "train"): Verdict.SAME,
        (OREPA, "train_step", "train"): Verdict(verdict),
    }
    assert check.exit_code == (1 if verdict == "REGRESSED" else 0)


def test_the_interval_is_students_over_the_rounds_log_ratios():
    base, head = paired_runs(0.05, seed=3)
    (row,) = [row for row in compared(base, head).rows if row.cell == OREPA]
    values = {
        side: run.rounds().query("cell == @OREPA")["value"].to_numpy(dtype=float)
        for side, run in (("b", base), ("h", head))
    }
    logs = np.log(values["h"] / values["b"])
    low, high = stats.t.interval(0.99, len(logs) - 1, logs.mean(), stats.sem(logs))
    assert (row.ratio, row.low, row.high) == pytest.approx(tuple(np.exp([logs.mean(), low, high])))
    assert row.rounds == 10


def test_a_reference_is_judged_like_any_other():
    """Nothing here depends on the reference: a slower one is a slower one."""
    base, head = paired_runs(0.0)
    slow = head.rows[: len(head.rows) // 2]
    for row in slow:
        row["value"] *= 1.1
    assert verdicts(compared(base, head))[CONV, "train_step", "train"] is Verdict.REGRESSED
    assert verdicts(compared(base, head))[OREPA, "train_step", "train"] is Verdict.SAME


def test_a_byte_more_is_found_and_a_suite_may_allow_more_time():
    base, head = full_run(), full_run(extra=1)
    found = verdicts(compared(base, head))
    assert found[OREPA, "saved_memory", ""] is Verdict.REGRESSED
    assert sum(verdict is Verdict.REGRESSED for verdict in found.values()) == 1
    slower = paired_runs(0.05)
    slower[1].gates = {"train_step": {"side_by_side": 0.2}}
    assert set(verdicts(compared(*slower)).values()) == {Verdict.SAME}
    slower[1].gates = {"train_step": {"threshold": 0.2}}  # of check: no matter here
    assert compared(*slower).exit_code == 1


def test_a_microsecond_is_no_change_whatever_its_share():
    rng = np.random.default_rng(0)
    base, head = (FakeRun(cells_frame([cell("conv")])) for _ in range(2))
    base.put(CONV, "latency", noisy(5e-6, rng, sd=0.001), "train")
    head.put(CONV, "latency", noisy(5.5e-6, rng, sd=0.001), "train")
    assert set(verdicts(compared(base, head)).values()) == {Verdict.SAME}


def test_what_only_one_side_has_is_missing_or_new_and_a_failure_is_one():
    base, head = paired_runs(0.0)
    base.put(CONV, "params", 5, "train")
    head.put(OREPA, "params", 5, "train").fail(CONV, "oom", "no memory", "params")
    check = compared(base, head)
    found = verdicts(check)
    assert found[CONV, "params", "train"] is Verdict.MISSING
    assert found[OREPA, "params", "train"] is Verdict.NEW
    assert check.failed == {CONV: "oom: params: no memory"}
    assert check.exit_code == 3


def test_nothing_in_common_never_passes():
    base, head = (FakeRun(cells_frame([cell("conv"), cell("orepa")])) for _ in range(2))
    base.put(CONV, "params", 5, "train")
    head.put(OREPA, "params", 5, "train")
    assert compared(base, head).exit_code == 5


def test_three_rounds_are_no_verdict():
    check = compared(*paired_runs(0.5, rounds=3))
    assert set(verdicts(check).values()) == {Verdict.INCONCLUSIVE}
    assert compared(*paired_runs(0.5, rounds=3), strict=True).exit_code == 4


def test_rows_say_how_to_repeat_them():
    check = compared(*paired_runs(0.05))
    (row,) = [row for row in check.rows if row.verdict is Verdict.REGRESSED]
    assert row.command == f"harness ab main HEAD --suite s.yaml --only {OREPA}"
    assert (row.before, row.now) == (pytest.approx(0.1, rel=0.3), pytest.approx(0.105, rel=0.3))


def judged(base, head):
    """The verdicts of two runs by the rule alone, on log ratios that are taken here."""
    seconds = [np.array(run.rounds()["value"].to_list()).reshape(len(run.cells), -1) for run in (base, head)]
    logs = np.log(seconds[1] / seconds[0])
    questions = [Paired(spread(of_a_cell), "lower", PAIRED_TIME_THRESHOLD) for of_a_cell in logs]
    return [answer.verdict for answer in judge_paired(questions, head.confidence)]


def test_of_a_thousand_unchanged_readings_none_is_called_changed_on_a_noisy_machine():
    """Alone with one other and among twenty: false discoveries are controlled over all of a comparison."""
    others = [cell("conv", image_size=size) for size in range(8, 26)]
    pairs = [paired_runs(0.0, seed, sd=0.03) for seed in range(50)]
    pairs += [paired_runs(0.0, seed, sd=0.03, more=others) for seed in range(45)]
    found = [judged(*pair) for pair in pairs]
    assert sum(map(len, found)) == 1000
    assert sum(verdict in (Verdict.REGRESSED, Verdict.IMPROVED) for one in found for verdict in one) <= 1
    # the whole way is far slower, and says the same
    for pair, by_rule in [*zip(pairs, found, strict=True)][48:52]:
        whole = verdicts(compared(*pair))
        assert [whole[id_, "train_step", "train"] for id_ in pair[1].cells.index] == by_rule
