"""What other tools' rules, and harness's own, say about the same raw samples of two sides.

A rule is a pure function of the seconds per step of side A (before) and side B (now), pooled over all rounds, and
says "worse", "better" or "same". Each was read in the source of the version that `RULES` names and is written anew
here. Thresholds are the tools' own defaults; where a tool has none, the figure of its manual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.planning.looks import CONFIDENCE, shared_confidence
from harness.verdict.rules import FALSE_DISCOVERIES
from harness.verdict.statistics import false_discoveries, spread, student_interval, student_p

Samples = NDArray[np.float64]
Says = Literal["worse", "better", "same"]

LEAST_SAMPLES = 21
"""Per side. asv tests fewer exactly and very few by intervals, and pyperf's table has other steps there: not written
here, since a study pools hundreds."""

PYPERF_STEPS = ((200, 1.960), (100, 1.984), (80, 1.990), (60, 2.000), (50, 2.009), (40, 2.021))
"""Degrees of freedom from which a critical value of t is used (pyperf/_utils.py, tdist95conf_level)."""

ASV_FACTOR, ASV_P = 1.1, 0.002
GOOGLE_ALPHA = 0.05
HARNESS_THRESHOLD = 0.03


@dataclass(frozen=True)
class Rule:
    """A rule with where it was read; `text` is a table's cell."""

    name: str
    source: str
    text: str
    judge: Callable[[Samples, Samples], Says]


@dataclass(frozen=True)
class Judged:
    """harness's answer for one reading: `unsure` is its INCONCLUSIVE. The interval is of B / A."""

    says: Literal["worse", "better", "same", "unsure"]
    ratio: float
    low: float
    high: float


def mean_over_5_percent(a: Samples, b: Samples) -> Says:
    """pytest-benchmark 5.3.1, `--benchmark-compare-fail=mean:5%` (utils.py, PercentageRegressionCheck).

    It fails when now / before * 100 - 100 > 5 and never asks whether the difference is noise. It has no word for
    better: that is its mirror image here.
    """
    return _beyond(float(np.mean(b) / np.mean(a)), 5)


def minimum_over_3_percent(a: Samples, b: Samples) -> Says:
    """The same check of the same tool on the fastest sample, `--benchmark-compare-fail=min:3%`."""
    return _beyond(float(np.min(b) / np.min(a)), 3)


def pyperf_t_test(a: Samples, b: Samples) -> Says:
    """pyperf 2.10.0, `pyperf compare_to` (_compare.py, is_significant_benchs; _utils.py, is_significant).

    Student's two-sample t on all values of all processes pooled, equal variances, two-tailed at 95 % with a critical
    value from a table in steps. `--min-speed` is None by default: any significant difference is reported, and named
    faster or slower by the means. Without any spread its t-test divides by zero and it takes that for significant.
    """
    if len(a) != len(b):
        raise ValueError("pyperf's t-test wants as many values before as now")
    same_mean = np.mean(a) == np.mean(b)
    if same_mean:
        return "same"
    spreadless = np.ptp(a) == 0 and np.ptp(b) == 0
    if spreadless or abs(stats.ttest_ind(a, b, equal_var=True).statistic) >= pyperf_critical(len(a) + len(b) - 2):
        return "worse" if np.mean(b) > np.mean(a) else "better"
    return "same"


def pyperf_critical(freedom: int) -> float:
    """The critical t of pyperf's table, for 40 degrees of freedom and more."""
    for least, critical in PYPERF_STEPS:
        if freedom >= least:
            return critical
    raise ValueError(f"{freedom} degrees of freedom: at least {LEAST_SAMPLES} samples a side are needed")


def asv_compare(a: Samples, b: Samples) -> Says:
    """asv 0.6.6, `asv compare` and `asv continuous` (commands/compare.py, _is_result_better; _stats.py).

    Worse when the median before is below the median now / 1.1 *and* the raw samples differ with p < 0.002 in a
    two-sided Mann-Whitney test. (Without raw samples asv asks whether two 99 % intervals overlap; `asv continuous`
    records samples by default, `asv run` only with --record-samples.)
    """
    before, now = float(np.median(a)), float(np.median(b))
    if now < before / ASV_FACTOR:
        direction: Says = "better"
    elif before < now / ASV_FACTOR:
        direction = "worse"
    else:
        return "same"
    return direction if asv_p(a, b) < ASV_P else "same"


def asv_p(a: Samples, b: Samples) -> float:
    """asv's Mann-Whitney p (_stats.py, mann_whitney_u): normal, uncorrected, ties broken the least significant way.

    That is its method for more than 20 samples; fewer are refused.
    """
    if max(len(a), len(b)) < LEAST_SAMPLES:
        raise ValueError(f"asv tests fewer than {LEAST_SAMPLES} samples in another way")
    ordered = np.sort(b)
    above = int(np.searchsorted(ordered, a, side="left").sum())  # pairs in which a's value is the larger
    above_or_equal = int(np.searchsorted(ordered, a, side="right").sum())
    pairs = len(a) * len(b)
    nearest = min(max(pairs // 2, above), above_or_equal)
    deviation = math.sqrt(pairs * (len(a) + len(b) + 1) / 12)
    return float(2 * stats.norm.cdf((min(nearest, pairs - nearest) - pairs / 2) / deviation))


def google_u_test(a: Samples, b: Samples) -> Says:
    """google/benchmark 1.7.1, tools/compare.py benchmarks (tools/gbench/report.py, calc_utest; Debian's package).

    scipy's two-sided Mann-Whitney test over all repetitions, significant when p < 0.05 (`--alpha`), on by default from
    two repetitions on, of real time and of CPU time; here of real time. It colours a line and sets no exit code. Which
    side is the worse is read from U.
    """
    test = stats.mannwhitneyu(b, a, alternative="two-sided")
    if not test.pvalue < GOOGLE_ALPHA:
        return "same"
    return "worse" if test.statistic > len(a) * len(b) / 2 else "better"


def harness_matrix(
    logs: Sequence[Sequence[float]] | NDArray[np.float64],
    confidence: float | None = None,
    threshold: float = HARNESS_THRESHOLD,
) -> list[Judged]:
    """harness's rule for all readings of one experiment, each given as its rounds' log ratios B / A.

    Student's t interval over rounds at the confidence of one look of four (99.75 %). Worse or better: the interval
    excludes 1, the effect is beyond the threshold, and p against the threshold, multiplied by the looks and adjusted
    over the experiment's readings (Benjamini and Hochberg), is at most 5 %. Same: the interval lies within the
    thresholds. Written anew here, so that the verdicts of the samples' file are checked by another program.
    """
    if not len(logs):
        return []
    level = shared_confidence(10, 0.01) if confidence is None else confidence
    mean, sd, n = np.array([spread(np.asarray(values)) for values in logs]).T
    low, high = student_interval(mean, sd, n, level)
    limit = math.log1p(threshold)
    shared = (1 - CONFIDENCE) / (1 - level)
    p = false_discoveries(np.minimum(1.0, shared * student_p(mean, sd, n, limit)))
    return [_judged(*row, limit, FALSE_DISCOVERIES) for row in zip(mean, low, high, p, strict=True)]


def _judged(mean: float, low: float, high: float, p: float, limit: float, level: float) -> Judged:
    says: Literal["worse", "better", "same", "unsure"] = "unsure"
    if -limit <= low and high <= limit:
        says = "same"
    elif abs(mean) > limit and (low > 0 or high < 0) and p <= level:
        says = "worse" if mean > 0 else "better"
    return Judged(says, math.exp(mean), math.exp(low), math.exp(high))


def _beyond(ratio: float, percent: float) -> Says:
    change = ratio * 100 - 100
    if change > percent:
        return "worse"
    return "better" if change < -percent else "same"


HARNESS = "harness"
HARNESS_TEXT = (
    f"t interval over rounds of the median log ratio of turns, {CONFIDENCE:.0%} over at most four looks, excludes 1; "
    f"effect > {HARNESS_THRESHOLD:.0%}; p against that survives Benjamini-Hochberg over the experiment"
)

RULES = (
    Rule("mean > 5 %", "pytest-benchmark 5.3.1, `--benchmark-compare-fail=mean:5%`",
         "means differ by more than 5 %", mean_over_5_percent),
    Rule("min > 3 %", "pytest-benchmark 5.3.1, `--benchmark-compare-fail=min:3%`",
         "fastest samples differ by more than 3 %", minimum_over_3_percent),
    Rule("pyperf", "pyperf 2.10.0, `pyperf compare_to`",
         "pooled two-sample t-test, two-tailed 95 %, no least effect", pyperf_t_test),
    Rule("asv", "asv 0.6.6, `asv compare`, `asv continuous`",
         "medians differ by more than a factor of 1.1 and Mann-Whitney p < 0.002", asv_compare),
    Rule("google/benchmark", "google/benchmark 1.7.1, `tools/compare.py`",
         "Mann-Whitney p < 0.05, two-sided, no least effect", google_u_test),
)  # fmt: skip
"""In the order of every table."""
