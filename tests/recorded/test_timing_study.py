"""The timing study's scripts: other tools' rules against scipy, harness's rule and every count by simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from timing_samples import page, round_logs, rules, sides, study, written

from harness.planning.looks import looks, shared_confidence
from harness.verdict.statistics import student_interval

PAGE = Path(__file__).parents[2] / "docs" / "timing.md"
LOOKS = looks(10, 0.01)
CONFIDENCE = shared_confidence(10, 0.01)


def stopped_after(logs: np.ndarray, precision: float = 0.01) -> np.ndarray:
    """The number of rounds after which each experiment ends: the first look with a narrow interval, or the last."""
    ended = np.full(len(logs), LOOKS[-1])
    for look in reversed(LOOKS):
        part = logs[:, :look]
        low, high = student_interval(part.mean(axis=1), part.std(axis=1, ddof=1), look, CONFIDENCE)
        ended[np.exp(high - low) - 1 <= precision] = look
    return ended


# ------------------------------------------------------------------------------------------------------- the other rules


def test_a_percentage_rule_looks_at_one_number_of_each_side():
    a = np.array([1.0, 1.0, 1.0, 5.0])  # mean 2, minimum 1
    assert rules.mean_over_5_percent(a, a * 1.051) == "worse"
    assert rules.mean_over_5_percent(a, a * 1.049) == "same"
    assert rules.mean_over_5_percent(a, a * 0.949) == "better"
    assert rules.minimum_over_3_percent(a, np.array([1.031, 2.0, 2.0, 2.0])) == "worse"
    assert rules.minimum_over_3_percent(a, np.array([1.029, 9.0, 9.0, 9.0])) == "same"
    assert rules.minimum_over_3_percent(a, np.array([0.969, 9.0, 9.0, 9.0])) == "better"


def test_pyperf_is_students_pooled_test_with_critical_values_in_steps():
    rng = np.random.default_rng(1)
    said = set()
    for shift in np.linspace(-0.02, 0.02, 41):
        a, b = rng.normal(1, 0.02, 30), rng.normal(1 + shift, 0.02, 30)
        t = stats.ttest_ind(b, a).statistic
        expected = "same" if abs(t) < 2.009 else "worse" if t > 0 else "better"  # 58 degrees: the table's step at 50
        assert rules.pyperf_t_test(a, b) == expected
        said.add(expected)
    assert said == {"same", "worse", "better"}
    for freedom in (40, 50, 60, 80, 100, 200, 2000):  # a step's value is that of its least degrees of freedom, or near
        assert rules.pyperf_critical(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=0.013)


def test_pyperf_takes_two_constants_for_significant_and_wants_equal_counts():
    ones = np.ones(30)
    assert rules.pyperf_t_test(ones, ones) == "same"
    assert rules.pyperf_t_test(ones, ones * 1.0001) == "worse"
    with pytest.raises(ValueError, match="as many values"):
        rules.pyperf_t_test(ones, np.ones(29))
    with pytest.raises(ValueError, match="at least 21"):
        rules.pyperf_critical(38)


def test_asvs_p_is_the_uncorrected_normal_approximation():
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.01, 0.05):
        a, b = rng.normal(1, 0.02, 40), rng.normal(1 + shift, 0.02, 35)
        expected = stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=False).pvalue
        assert rules.asv_p(a, b) == pytest.approx(expected, rel=1e-9)


def test_asv_breaks_ties_the_least_significant_way():
    ones = np.ones(25)
    assert rules.asv_p(ones, ones) == pytest.approx(1, abs=0.01)  # 625 pairs, all tied: U may be 312
    # 10 of 25 lie above, 15 are tied: U of A is 0 + up to 375 ties, and 312 is half of the pairs
    assert rules.asv_p(ones, np.array([1.0] * 15 + [2.0] * 10)) == pytest.approx(1, abs=0.01)
    # 20 lie above, 5 are tied: U is at most 125; variance 625 * 51 / 12
    z = (125 - 312.5) / math.sqrt(625 * 51 / 12)
    assert rules.asv_p(ones, np.array([1.0] * 5 + [2.0] * 20)) == pytest.approx(2 * stats.norm.cdf(z))


def test_asv_wants_a_factor_of_medians_and_a_small_p():
    rng = np.random.default_rng(3)
    a = rng.normal(1, 0.01, 50)
    assert rules.asv_compare(a, a * 1.09) == "same"  # surely slower, but by less than the factor
    assert rules.asv_compare(a, a * 1.12) == "worse"
    assert rules.asv_compare(a, a / 1.12) == "better"
    few_of_many = np.where(np.arange(50) < 26, 1.2, 0.9)  # the median is beyond the factor, the ranks are not sure
    assert rules.asv_compare(a, few_of_many) == "same"
    with pytest.raises(ValueError, match="fewer than 21"):
        rules.asv_p(a[:20], a[:20])


def test_google_benchmark_is_scipys_u_test_at_5_percent():
    rng = np.random.default_rng(4)
    said = set()
    for shift in np.linspace(-0.02, 0.02, 41):
        a, b = rng.normal(1, 0.02, 30), rng.normal(1 + shift, 0.02, 30)
        p = stats.mannwhitneyu(a, b, alternative="two-sided").pvalue
        expected = "same" if p >= 0.05 else "worse" if stats.rankdata([*a, *b])[30:].mean() > 30.5 else "better"
        assert rules.google_u_test(a, b) == expected
        said.add(expected)
    assert said == {"same", "worse", "better"}


# ---------------------------------------------------------------------------------------------------------- harness's own


def test_harness_says_what_its_interval_and_its_p_allow():
    spread = 0.001 * np.array([-1, 1, -1, 1, 0.5, -0.5])
    logs = [spread, spread + np.log(1.05), spread - np.log(1.05), spread + np.log(1.03), 50 * spread + 0.1, spread[:1]]
    answers = rules.harness_matrix(logs)
    assert [answer.says for answer in answers] == ["same", "worse", "better", "unsure", "unsure", "unsure"]
    expected = np.exp(stats.ttest_1samp(logs[1], 0).confidence_interval(1 - 0.01 / 4))
    np.testing.assert_allclose([answers[1].low, answers[1].high], expected)
    assert rules.harness_matrix([]) == []


def test_harness_adjusts_p_over_the_whole_experiment():
    rng = np.random.default_rng(5)
    limit = math.log1p(rules.HARNESS_THRESHOLD)
    logs = rng.normal(limit + 0.012, 0.008, (1, 10))
    p = stats.ttest_1samp(logs[0], limit, alternative="greater").pvalue * 2
    assert 0.0025 / 20 < p < 0.0025  # sure enough alone, not as one of twenty
    others = rng.normal(0, 0.008, (19, 10))
    assert rules.harness_matrix(logs)[0].says == "worse"
    assert rules.harness_matrix(np.concatenate([logs, others]))[0].says == "unsure"


@pytest.mark.parametrize("kind", ["normal", "t3", "contaminated", "slow"])
def test_the_interval_keeps_its_level_with_four_looks_and_stopping_on_width(kind):
    logs = round_logs(sides(np.random.default_rng(6), kind, 2000, delta=0.03, passes=24))
    ended = stopped_after(logs, precision=0.03)
    assert len(set(ended)) == 4  # it does stop early: the looks are at work
    missed = 0
    for look in LOOKS:
        for answer in rules.harness_matrix(logs[ended == look, :look]):
            missed += not answer.low <= 1.03 <= answer.high
    assert missed / len(logs) <= 0.012


@pytest.mark.parametrize("kind", ["normal", "t3", "contaminated", "slow"])
def test_no_false_alarm_in_a_thousand_verdicts_and_power_rises_with_the_slowdown(kind):
    rng = np.random.default_rng(7)
    found = {}
    for delta in (0.0, 0.02, 0.05, 0.1):
        logs = round_logs(sides(rng, kind, 1000 if delta == 0 else 200, delta, passes=24))
        says = [answer.says for matrix in np.split(logs, len(logs) // 10) for answer in rules.harness_matrix(matrix)]
        assert says.count("better") == 0
        found[delta] = says.count("worse") / len(says)
    assert found[0.0] == 0
    assert found[0.02] <= found[0.05] <= found[0.1]
    assert found[0.1] > 0.99


def test_a_slow_period_that_hits_both_sides_misleads_the_means_and_not_the_turns():
    a, b = sides(np.random.default_rng(8), "slow", 1, passes=480)[:, 0]
    late = np.concatenate([b[:5], 1.5 * b[5:]])  # a neighbour stays for the second half
    assert rules.mean_over_5_percent(a[:5].ravel(), late[5:].ravel()) == "worse"
    early = np.concatenate([a[:5], 1.5 * a[5:]])
    assert rules.harness_matrix([np.median(np.log(late / early), axis=1)])[0].says == "same"


# ------------------------------------------------------------------------------------------------------ the study's script


def test_the_study_counts_what_an_independent_count_counts(tmp_path, capsys):
    verdicts = written(tmp_path, {"quiet": "normal", "noisy": "contaminated"}, (0.0, 0.05, 0.1))
    target = tmp_path / "page.md"
    target.write_text("before\n<!-- study:begin -->\nold\n<!-- study:end -->\nafter\n", encoding="utf-8")
    assert study.main([str(tmp_path), "--page", str(target)]) == 0
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert target.read_text(encoding="utf-8").endswith(f"{text.strip()}\n\n<!-- study:end -->\nafter\n")
    assert "old" not in target.read_text(encoding="utf-8")
    assert (tmp_path / "figure.png").stat().st_size > 10_000

    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    samples = pd.read_csv(tmp_path / "samples.csv.gz")
    cells = dict(iter(samples.groupby(["condition", "experiment", "reading", "delta"])))
    for row in summary["false_alarms"]:
        chosen = [cell for key, cell in cells.items() if key[0] == row["condition"] and key[3] == 0]
        assert row["n"] == len(chosen) == 12
        assert row["alarms"] == sum(_alarm(row["rule"], row["way"], cell, verdicts) for cell in chosen)
        assert row["upper"] == pytest.approx(
            stats.beta.ppf(0.95, row["alarms"] + 1, row["n"] - row["alarms"]), rel=1e-5
        )
    assert {(row["rule"], row["way"]) for row in summary["false_alarms"]} == {("harness", "turns")} | {
        (rule.name, way) for rule in rules.RULES for way in ("turns", "halves")
    }
    for row in summary["coverage"]:
        own = verdicts[(verdicts["condition"] == row["condition"]) & (verdicts["delta"] == row["delta"])]
        assert row["covered"] == sum((own["low"] <= 1 + row["delta"]) & (own["high"] >= 1 + row["delta"]))
    for row in (row for row in summary["detections"] if row["rule"] == "harness"):
        own = verdicts[(verdicts["condition"] == row["condition"]) & (verdicts["delta"] == row["delta"])]
        assert (row["n"], row["worse"]) == (len(own), (own["verdict"] == "REGRESSED").sum())
    assert [row["seconds"] for row in summary["effort"]] == [25.5] * 6
    assert summary["recomputed"]["verdicts_differ"] == []
    assert summary["recomputed"]["ends_apart"] < 1e-9


def _alarm(rule: str, way: str, cell: pd.DataFrame, verdicts: pd.DataFrame) -> bool:
    """Whether a rule raises a false alarm, by scipy and arithmetic alone."""
    if rule == "harness":
        own = (verdicts["experiment"] == cell["experiment"].iloc[0]) & (verdicts["reading"] == cell["reading"].iloc[0])
        return verdicts.loc[own, "verdict"].item() in ("REGRESSED", "IMPROVED")
    a, b = cell["a"], cell["b"]
    if way == "halves":
        a, b = a[cell["round"] < 5], b[cell["round"] >= 5]
    by_rule = {
        "mean > 5 %": abs(b.mean() / a.mean() - 1) > 0.05,
        "min > 3 %": abs(b.min() / a.min() - 1) > 0.03,
        "pyperf": abs(stats.ttest_ind(a, b).statistic) >= (1.984 if way == "halves" else 1.96),
        "asv": max(a.median() / b.median(), b.median() / a.median()) > 1.1 and stats.mannwhitneyu(a, b).pvalue < 0.002,
        "google/benchmark": stats.mannwhitneyu(a, b).pvalue < 0.05,
    }
    return bool(by_rule[rule])


def test_the_page_of_the_repository_can_be_refreshed_and_defines_every_rule(tmp_path):
    target = tmp_path / "timing.md"
    old = PAGE.read_text(encoding="utf-8")
    target.write_text(old, encoding="utf-8")
    page.refresh(target, page.definitions())
    new = target.read_text(encoding="utf-8")
    assert all(rule.source in new for rule in rules.RULES)
    for outside in (0, -1):
        marker = (page.BEGIN, page.END)[outside]
        assert new.split(marker)[outside] == old.split(marker)[outside]


def test_what_a_study_lacks_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "draw", lambda *_: None)  # a figure says nothing of what is missing
    verdicts = written(tmp_path, {"quiet": "normal"}, (0.0,), experiments=3)
    samples = pd.read_csv(tmp_path / "samples.csv.gz")
    samples.loc[0, "a"] = np.nan
    samples[samples["reading"] == "k3"].to_csv(tmp_path / "samples.csv.gz", index=False)
    verdicts.assign(low=np.nan, high=np.nan).to_csv(tmp_path / "verdicts.csv.gz", index=False)
    assert study.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for words in (
        "condition noisy was not measured",
        "condition quiet has no cells with a delta of 1%, 2%, 3%, 5%, 10%",
        "1 passes have no positive time on both sides",
        "3 verdicts have no samples",
        "No injected slowdowns",
    ):
        assert words in said
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["coverage"] == []


def test_what_is_no_study_is_refused_with_a_remedy(tmp_path, capsys):
    assert study.main([str(tmp_path)]) == 2
    assert "samples.csv.gz does not exist" in capsys.readouterr().err
    verdicts = written(tmp_path, {"quiet": "normal"}, (0.0,), experiments=1)
    (tmp_path / "page.md").write_text("no markers", encoding="utf-8")
    assert study.main([str(tmp_path), "--page", str(tmp_path / "page.md")]) == 2
    assert "study:begin" in capsys.readouterr().err
    verdicts.assign(delta=5.0).to_csv(tmp_path / "verdicts.csv.gz", index=False)
    assert study.main([str(tmp_path)]) == 2
    assert "write 3 % as 0.03" in capsys.readouterr().err
    verdicts.drop(columns="low").to_csv(tmp_path / "verdicts.csv.gz", index=False)
    assert study.main([str(tmp_path)]) == 2
    assert "no column low" in capsys.readouterr().err
    pd.concat([verdicts, verdicts]).to_csv(tmp_path / "verdicts.csv.gz", index=False)
    assert study.main([str(tmp_path)]) == 2
    assert "two verdicts" in capsys.readouterr().err
