"""The statistics against closed forms, against scipy's own tests, and against their promise by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.verdict.rules import ACROSS_RUNS_TIME_THRESHOLD, BETWEEN_RUNS, Sampled, Verdict, judge_sampled
from harness.verdict.statistics import (
    false_discoveries,
    log_ratios,
    one_sided_p,
    spread,
    student_interval,
    student_p,
    welch,
)


def test_log_ratios_pair_rounds_and_refuse_what_has_no_logarithm():
    ratios = log_ratios([2.0, 0.0, np.nan, 3.0, np.inf], [1.0, 1.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(ratios, [np.log(2), np.nan, np.nan, np.nan, np.nan])


def test_spread_of_nothing_and_of_one():
    assert spread([])[2] == 0
    mean, sd, n = spread([1.5, np.nan])
    assert (mean, n) == (1.5, 1)
    assert np.isnan(sd)


def test_the_interval_and_p_are_those_of_scipys_one_sample_test():
    x = np.random.default_rng(1).normal(0.02, 0.03, 7)
    mean, sd, n = spread(x)
    expected = stats.ttest_1samp(x, 0.0)
    low, high = student_interval(mean, sd, n)
    np.testing.assert_allclose([low, high], expected.confidence_interval(0.99))
    np.testing.assert_allclose(student_p(mean, sd, n), expected.pvalue)
    above = stats.ttest_1samp(x, np.log(1.03), alternative="greater").pvalue
    below = stats.ttest_1samp(x, -np.log(1.03), alternative="less").pvalue
    np.testing.assert_allclose(student_p(mean, sd, n, np.log(1.03)), min(1, 2 * min(above, below)))


def test_welch_is_scipys_when_nothing_is_added():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 0.02, 5), rng.normal(0.1, 0.06, 9)
    difference = welch(spread(a), spread(b))
    expected = stats.ttest_ind(b, a, equal_var=False)
    np.testing.assert_allclose(difference.interval(), expected.confidence_interval(0.99))
    np.testing.assert_allclose(difference.freedom, expected.df)
    shifted = stats.ttest_ind_from_stats(
        b.mean() - 0.05, b.std(ddof=1), 9, a.mean(), a.std(ddof=1), 5, equal_var=False, alternative="greater"
    )
    np.testing.assert_allclose(difference.p_beyond(0.05), shifted.pvalue)


def test_what_runs_differ_by_widens_the_interval():
    exact = welch((0.0, 0.0, 5), (0.1, 0.0, 5), between=0.03)
    half = stats.norm.ppf(0.995) * np.sqrt(2) * 0.03
    np.testing.assert_allclose(exact.interval(), (0.1 - half, 0.1 + half))


def test_without_spread_the_estimate_is_the_truth():
    difference = welch((0.0, 0.0, 5), (0.1, 0.0, 5))
    assert difference.interval() == (0.1, 0.1)
    np.testing.assert_array_equal(one_sided_p([0.1, 0.0, -0.1], 0.0, 4), [0.0, 1.0, 1.0])


def test_one_round_has_no_interval():
    assert np.isnan(student_interval(0.1, np.nan, 1)).all()
    assert np.isnan(student_p(0.1, np.nan, 1))
    assert np.isnan(welch((0.0, np.nan, 1), (0.1, 0.02, 5)).interval()).all()


def test_false_discoveries_are_scipys_and_skip_what_has_no_p():
    p = np.array([0.001, np.nan, 0.02, 0.5])
    adjusted = false_discoveries(p)
    np.testing.assert_allclose(adjusted[[0, 2, 3]], stats.false_discovery_control(p[[0, 2, 3]]))
    assert np.isnan(adjusted[1])
    assert false_discoveries([]).size == 0


@pytest.mark.parametrize("rounds", [4, 5, 10])
@pytest.mark.parametrize("noise", ["normal", "contaminated"])
def test_a_99_percent_interval_misses_the_truth_in_one_of_a_hundred(rounds, noise):
    rng = np.random.default_rng(rounds)
    logs = rng.normal(0.1, 0.03, (20_000, rounds))
    if noise == "contaminated":
        logs += rng.normal(0, 0.15, logs.shape) * (rng.random(logs.shape) < 0.15)
    low, high = student_interval(logs.mean(axis=1), logs.std(axis=1, ddof=1), rounds)
    missed = np.mean((low > 0.1) | (high < 0.1))
    assert missed == pytest.approx(0.01, abs=0.0025) if noise == "normal" else missed < 0.0125


def simulated(rng, verdicts: int, effect: float, between: float, within: float, rounds: int) -> list[Verdict]:
    """One verdict per simulated pair of runs; each run has a bias of its own that all its rounds share."""
    sides = []
    for shift in (0.0, effect):
        bias = rng.normal(shift, between, (verdicts, 1))
        logs = bias + rng.normal(0, within, (verdicts, rounds))
        sides.append([spread(row) for row in logs])
    questions = [
        Sampled(before, now, "lower", ACROSS_RUNS_TIME_THRESHOLD, BETWEEN_RUNS)
        for before, now in zip(*sides, strict=True)
    ]
    # each verdict alone: a matrix's false-discovery control could only make alarms rarer
    return [judge_sampled([question])[0].verdict for question in questions]


@pytest.mark.parametrize("between", [0.03, 0.06])
@pytest.mark.parametrize("rounds", [5, 10])
def test_the_same_code_on_another_day_raises_no_alarm(rounds, between):
    verdicts = simulated(np.random.default_rng(7), 1000, effect=0.0, between=between, within=0.05, rounds=rounds)
    assert verdicts.count(Verdict.REGRESSED) == 0
    if between == 0.03:
        assert verdicts.count(Verdict.SAME) > 700  # it answers, instead of never deciding


@pytest.mark.parametrize("rounds", [4, 5, 10])
def test_twice_as_slow_on_another_day_is_always_found(rounds):
    rng = np.random.default_rng(8)
    verdicts = simulated(rng, 1000, effect=np.log(2), between=0.03, within=0.05, rounds=rounds)
    assert verdicts.count(Verdict.REGRESSED) == 1000


def test_a_matrix_of_forty_readings_raises_no_alarm_and_finds_the_one_slow_block():
    rng = np.random.default_rng(9)
    alarms = found = 0
    for _ in range(100):
        bias = rng.normal(0, 0.03, (2, 40, 1))
        logs = bias + rng.normal(0, 0.05, (2, 40, 5))
        logs[1, 0] += np.log(2)
        questions = [
            Sampled(spread(a), spread(b), "lower", ACROSS_RUNS_TIME_THRESHOLD, BETWEEN_RUNS)
            for a, b in zip(*logs, strict=True)
        ]
        first, *others = [answer.verdict for answer in judge_sampled(questions)]
        found += first is Verdict.REGRESSED
        alarms += others.count(Verdict.REGRESSED)
    assert (found, alarms) == (100, 0)
