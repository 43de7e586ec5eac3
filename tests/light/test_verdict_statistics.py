"""The statistics against closed forms, against scipy's own tests, and against their promise by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.verdict.rules import (
    ACROSS_RUNS_TIME_THRESHOLD,
    BETWEEN_RUNS,
    FALSE_DISCOVERIES,
    Paired,
    Sampled,
    Verdict,
    judge_paired,
    judge_sampled,
)
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


# Two sides that took turns


def paired_questions(logs, threshold=0.03, better="lower"):
    return [Paired(spread(row), better, threshold) for row in logs]


def scipys_p(logs, threshold, looks=1):
    """Two one-sided t tests against the threshold, doubled, and multiplied by the number of looks."""
    limit = np.log1p(threshold)
    above = stats.ttest_1samp(logs, limit, axis=1, alternative="greater").pvalue
    below = stats.ttest_1samp(logs, -limit, axis=1, alternative="less").pvalue
    return np.minimum(1.0, looks * 2 * np.minimum(above, below))


def expected_verdict(logs, p, threshold, confidence):
    """The rule as its docstring has it, from scipy's numbers; lower is better."""
    limit, mean = np.log1p(threshold), logs.mean()
    low, high = stats.ttest_1samp(logs, 0).confidence_interval(confidence)
    if -limit <= low and high <= limit:
        return Verdict.SAME
    if abs(mean) > limit and (low > 0 or high < 0) and p <= FALSE_DISCOVERIES:
        return Verdict.REGRESSED if mean > 0 else Verdict.IMPROVED
    return Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("confidence", "looks"), [(0.99, 1), (0.995, 2), (0.9975, 4)])
def test_paired_verdicts_are_those_of_scipys_t_tests_and_its_false_discovery_control(confidence, looks):
    rng = np.random.default_rng(10)
    effects = np.concatenate([np.zeros(120), rng.uniform(-0.12, 0.12, 180)])
    logs = effects[:, None] + rng.normal(0, 0.02, (300, 5))
    p = stats.false_discovery_control(scipys_p(logs, 0.03, looks))
    answers = judge_paired(paired_questions(logs), confidence)
    expected = [expected_verdict(row, one, 0.03, confidence) for row, one in zip(logs, p, strict=True)]
    assert [answer.verdict for answer in answers] == expected
    assert {Verdict.SAME, Verdict.REGRESSED, Verdict.IMPROVED, Verdict.INCONCLUSIVE} <= set(expected)
    low, high = stats.ttest_1samp(logs, 0, axis=1).confidence_interval(confidence)
    np.testing.assert_allclose([a.ratio for a in answers], np.exp(logs.mean(axis=1)))
    np.testing.assert_allclose([(a.low, a.high) for a in answers], np.exp(np.stack([low, high], axis=1)))


def test_the_error_of_several_looks_is_paid_for_in_p():
    rng = np.random.default_rng(11)
    logs = np.log(1.05) + rng.normal(0, 0.0115, (500, 4))
    one, four = scipys_p(logs, 0.03), scipys_p(logs, 0.03, looks=4)
    low = stats.ttest_1samp(logs, 0, axis=1).confidence_interval(0.9975).low
    # whose interval lies above 1 either way: p alone decides
    between = np.flatnonzero((one <= FALSE_DISCOVERIES) & (four > FALSE_DISCOVERIES) & (low > 0))
    assert len(between) > 5
    for i in between:
        (alone,) = judge_paired(paired_questions(logs[[i]]), 0.99)
        (shared,) = judge_paired(paired_questions(logs[[i]]), 0.9975)
        assert (alone.verdict, shared.verdict) == (Verdict.REGRESSED, Verdict.INCONCLUSIVE)
        assert "not surely" in shared.reason


def test_a_reading_alone_is_found_and_among_many_that_did_not_change_it_has_to_be_surer():
    logs = np.log(1.08) + np.array([0.02, -0.02, 0.015, -0.015])
    quiet = np.array([[0.002, -0.002, 0.001, -0.001]] * 60)
    p = scipys_p(logs[None], 0.03)[0]
    assert FALSE_DISCOVERIES / 61 < p < FALSE_DISCOVERIES
    alone, *_ = judge_paired(paired_questions([logs]), 0.99)
    among, *others = judge_paired(paired_questions([logs, *quiet]), 0.99)
    assert (alone.verdict, among.verdict) == (Verdict.REGRESSED, Verdict.INCONCLUSIVE)
    assert {answer.verdict for answer in others} == {Verdict.SAME}
    among, *others = judge_paired(paired_questions([logs, *quiet[:, :3]]), 0.99)
    assert among.verdict is Verdict.REGRESSED, "readings of too few rounds are no questions at all"


def test_fewer_than_four_rounds_and_readings_without_any_are_inconclusive_and_disturb_nobody():
    sure = np.log(1.5) + np.array([0.001, -0.001, 0.002, -0.002])
    answers = judge_paired(paired_questions([sure, sure[:3], sure[:1], []]), 0.99)
    assert [a.verdict for a in answers] == [Verdict.REGRESSED, *[Verdict.INCONCLUSIVE] * 3]
    assert [a.reason[:8] for a in answers[1:]] == ["3 rounds", "1 round,", "0 rounds"]
    assert np.isnan(answers[2].low)
    assert judge_paired([], 0.99) == []


def test_what_is_better_when_it_is_higher_regresses_downwards():
    lower = np.log(0.8) + np.array([[0.001, -0.001, 0.002, -0.002]])
    verdicts = [judge_paired(paired_questions(lower, better=better), 0.99)[0].verdict for better in ("lower", "higher")]
    assert verdicts == [Verdict.IMPROVED, Verdict.REGRESSED]
