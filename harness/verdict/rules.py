"""When a reading has changed: the thresholds, each with its reason, and the rules that use them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

from harness.catalog import quantity_of
from harness.verdict.statistics import CONFIDENCE, MINIMUM_ROUNDS, Difference, false_discoveries, welch

FALSE_DISCOVERIES = 0.05
"""Of the readings that are called changed, the share whose change is below the threshold after all (Benjamini and
Hochberg over the matrix). The hypothesis that is tested is "not beyond the threshold", so on unchanged code, whose
truth is 1, false alarms are far rarer than this: `harness aa` counts them."""

PAIRED_TIME_THRESHOLD = 0.03
"""Relative, for two revisions that took turns on one machine in one hour (`ab`): what most machines can resolve in ten
rounds. `harness aa` says what yours can."""

ACROSS_RUNS_TIME_THRESHOLD = 0.25
"""Relative, for a timed ratio of *another* run, where a suite's gate names no threshold.

Side by side in one run 3 % can be judged. Between two runs there is a bias that no number of rounds
shows: memory layout, the neighbours' load, the kernel's mood. With `BETWEEN_RUNS` for it the difference of
two runs is known to +-11 % at 99 % from that alone, to +-14 % with five noisy rounds each; a threshold
below that could never say SAME. 25 % says it for 86 % of unchanged readings (five rounds, sd 5 % a round) and
finds a slowdown by 1.5 in 78 %, by 2 in all of 1,000. Finer questions: `ab`."""

BETWEEN_RUNS = 0.03
"""Assumed standard deviation of a timed log ratio between runs of the same code on the same machine."""

TIME_FLOOR = 1e-6
"""Seconds: less is the resolution of clocks and of one Python call, whatever its share."""

ACCURACY_THRESHOLD = 0.02
"""Relative: about two seeds' standard deviation of a short training; less needs more seeds than anyone runs."""

WIDE_THRESHOLD = 0.5
"""Relative, for absolute times: the machine's mood moves them by tens of per cent, a factor of two is news."""

CLOSE_TOLERANCE = 1e-4
"""Largest difference of a close value from the stored one, relative to max(1, |stored|).

`fused_output` is computed in float64 from weights drawn in float32, and machines draw those alike but for last bits
(normal_ is vectorised), which the layers then multiply. Seen over six kinds of layer and 22 networks of up to 121
layers: 1e-7 relative noise on every weight moves a number by 2e-7 to 1e-6, torch's plain CPU kernels instead of its
AVX2 or AVX-512 ones by up to 1.4e-6, another number of threads by 1e-14. This is seventy times the most of it. What
matters is larger: an eps of 1e-3 for 1e-5 moves a number by 2e-4 (a layer of orepa) to 2e-3, one branch less by 1."""


class Verdict(StrEnum):
    """What became of a reading, in the order in which they are shown."""

    REGRESSED = "REGRESSED"
    MISSING = "MISSING"
    INCONCLUSIVE = "INCONCLUSIVE"
    IMPROVED = "IMPROVED"
    INCOMPARABLE = "INCOMPARABLE"
    NEW = "NEW"
    SAME = "SAME"


@dataclass(frozen=True)
class Gate:
    """How one quantity is judged; None keeps the default of its kind. `floor` is in its SI unit."""

    gate: bool = True
    threshold: float | None = None
    floor: float | None = None
    limit: float | None = None
    side_by_side: float | None = None

    @classmethod
    def of(cls, gates: Mapping[str, Mapping[str, Any]], metric: str) -> Gate:
        return cls(**{key: value for key, value in gates.get(metric, {}).items() if value is not None})

    def floor_in(self, unit: str) -> float:
        """The absolute change that is allowed, in this unit; of times the clock's resolution where none is set."""
        return self.floor if self.floor is not None else (TIME_FLOOR if unit == "s" else 0.0)


def with_floor(threshold: float, floor: float, value: float) -> float:
    """A relative threshold for this value, raised where the absolute `floor` allows more."""
    return max(threshold, floor / value) if value > 0 else threshold


def is_timed(unit: str) -> bool:
    """Depends on how fast the machine is: seconds and rates."""
    return unit == "s" or unit.endswith("/s")


def default_limit(metric: str, dtype: str) -> float | None:
    """The limit of a bounded quantity where neither suite nor baseline has one."""
    return quantity_of(metric).limits.get(dtype)


def judge_count(before: float, now: float, better: str, gate: Gate) -> tuple[Verdict, str]:
    """Counts are equal or they are not; a gate may still allow a relative `threshold` or an absolute `floor`."""
    if not math.isfinite(now):
        return Verdict.REGRESSED, f"{now} where {before:g} was"
    allowed = max((gate.threshold or 0.0) * abs(before), gate.floor or 0.0)
    if abs(now - before) <= allowed:
        return Verdict.SAME, ""
    worse = (now > before) == (better == "lower")
    return (Verdict.REGRESSED if worse else Verdict.IMPROVED), f"{now - before:+.10g}"


def judge_bounded(before: float, now: float, better: str, limit: float | None) -> tuple[Verdict, str]:
    """Within its limit a bounded quantity is as good as any other; what is not a number is never within."""
    if not math.isfinite(now):
        return Verdict.REGRESSED, f"{now} is within no limit"
    sign = 1.0 if better == "lower" else -1.0
    if limit is None:
        if sign * (now - before) <= 0:
            return Verdict.SAME, "no limit is set; not worse than before"
        return Verdict.INCONCLUSIVE, "worse than before, and no limit is set"
    if sign * (now - limit) > 0:
        return Verdict.REGRESSED, f"beyond its limit {limit:g}"
    return Verdict.SAME, ""


def judge_close(
    before: Sequence[float], now: Sequence[float], tolerance: float
) -> tuple[Verdict, str, tuple[float, float]]:
    """Element by element within `tolerance` of what was stored, or changed: there is no better and no worse.

    The third is the pair of values, before and now, that differ most.
    """
    if len(before) != len(now) or not before:
        first = tuple(values[0] if values else math.nan for values in (before, now))
        return Verdict.REGRESSED, f"changed: {len(now)} values where {len(before)} were", (first[0], first[1])
    apart = [_apart(*pair) for pair in zip(before, now, strict=True)]
    differing = sum(difference > tolerance for difference in apart)
    worst = max(range(len(apart)), key=lambda place: apart[place])
    size = f"by {apart[worst]:.2g}" if math.isfinite(apart[worst]) else "not a finite number"
    found = f"most of all the {_ordinal(worst + 1)}: {size} (tolerance {tolerance:g})"
    pair = before[worst], now[worst]
    if not differing:
        return Verdict.SAME, f"{len(now)} values, {found}", pair
    return Verdict.REGRESSED, f"changed: {differing} of {len(now)} values differ, {found}", pair


def _apart(before: float, now: float) -> float:
    """The difference relative to max(1, |before|); infinite where either is not a number."""
    sound = math.isfinite(before) and math.isfinite(now)
    return abs(now - before) / max(1.0, abs(before)) if sound else math.inf


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


@dataclass(frozen=True)
class Sampled:
    """A sampled reading's question: two summaries (mean, sd, n) over rounds and what counts as a change.

    Summaries are of logs, `threshold` a ratio minus one and `between` a standard deviation of logs; for a
    `linear` question (values that may be zero have no logs) all are in the quantity's unit.
    """

    before: tuple[float, float, int]
    now: tuple[float, float, int]
    better: str
    threshold: float
    between: float
    linear: bool = False

    @property
    def limit(self) -> float:
        """The threshold on the scale of the summaries."""
        return self.threshold if self.linear else math.log1p(self.threshold)

    @property
    def limit_text(self) -> str:
        return f"{self.threshold:.3g}" if self.linear else f"{100 * self.threshold:.3g} %"

    @property
    def rounds(self) -> int:
        return int(min(self.before[2], self.now[2]))

    @property
    def identical(self) -> bool:
        return _identical(self.before, self.now)


@dataclass(frozen=True)
class Paired:
    """What is asked of a reading whose two sides took turns: its log ratios now / before (mean, sd, n over rounds)."""

    logs: tuple[float, float, int]
    better: str
    threshold: float
    linear: ClassVar[bool] = False
    """A time is never zero: it always has a log."""

    @property
    def limit(self) -> float:
        """The threshold on the scale of the logs."""
        return math.log1p(self.threshold)

    @property
    def limit_text(self) -> str:
        return f"{100 * self.threshold:.3g} %"

    @property
    def rounds(self) -> int:
        return int(self.logs[2])

    @property
    def identical(self) -> bool:
        return False


@dataclass(frozen=True)
class Answer:
    """`ratio` is now / before with its 99 % interval; NaN where it cannot be known."""

    verdict: Verdict
    reason: str
    ratio: float
    low: float
    high: float


def judge_sampled(questions: list[Sampled]) -> list[Answer]:
    """Verdicts for all sampled readings of a check together, by Welch on the two sides' summaries; see `judge`."""
    if not questions:
        return []
    before, now = (np.array([getattr(q, side) for q in questions], dtype=float).T for side in ("before", "now"))
    between = np.array([q.between for q in questions])
    return judge(questions, welch(tuple(before), tuple(now), between))


def judge_paired(questions: list[Paired], confidence: float) -> list[Answer]:
    """Verdicts for all readings of two revisions that took turns, by Student's t on the rounds' log ratios."""
    if not questions:
        return []
    mean, sd, n = np.array([q.logs for q in questions], dtype=float).T
    with np.errstate(divide="ignore", invalid="ignore"):
        change = Difference(mean, sd / np.sqrt(n), np.maximum(n - 1, 1))
    return judge(questions, change, confidence)


def judge(questions: Sequence[Sampled | Paired], change: Difference, confidence: float = CONFIDENCE) -> list[Answer]:
    """One verdict per question; false discoveries are controlled over all of them.

    REGRESSED: the interval lies on the worse side of 1, the effect is beyond the threshold, and the p
    against the threshold survives Benjamini and Hochberg. IMPROVED is the mirror image. SAME: the interval
    lies within the thresholds, or the two sides are one and the same. Fewer than four rounds on either
    side: INCONCLUSIVE. With a `confidence` above 99 %, the error of several looks, p is multiplied alike.
    """
    limits = np.array([q.limit for q in questions])
    low, high = change.interval(confidence)
    enough = np.array([q.rounds for q in questions]) >= MINIMUM_ROUNDS
    mirrored = Difference(-change.estimate, change.error, change.freedom)
    shared = 2 * (1 - CONFIDENCE) / (1 - confidence)
    p = np.minimum(1.0, shared * np.minimum(change.p_beyond(limits), mirrored.p_beyond(limits)))
    p = np.where(enough, p, np.nan)
    # adjusting only makes p larger: where none is small, scipy.stats need not be loaded (a second)
    adjusted = false_discoveries(p) if (p <= FALSE_DISCOVERIES).any() else p
    answers = []
    for i, question in enumerate(questions):
        ends = (float(change.estimate[i]), float(low[i]), float(high[i]))
        verdict, reason = _sampled_verdict(question, ends, float(adjusted[i]))
        ratios = (math.nan,) * 3 if question.linear else tuple(math.exp(end) for end in ends)
        answers.append(Answer(verdict, reason, *ratios))
    return answers


def _sampled_verdict(question: Sampled | Paired, ends: tuple[float, float, float], p: float) -> tuple[Verdict, str]:
    estimate, low, high = ends
    if question.identical:
        return Verdict.SAME, "identical"
    rounds = question.rounds
    if rounds < MINIMUM_ROUNDS:
        return Verdict.INCONCLUSIVE, f"{rounds} round{'s' * (rounds != 1)}, {MINIMUM_ROUNDS} are needed"
    limit = question.limit
    if -limit <= low and high <= limit:
        return Verdict.SAME, ""
    beyond = abs(estimate) > limit and (low > 0 or high < 0)
    if beyond and p <= FALSE_DISCOVERIES:
        worse = (estimate > 0) == (question.better == "lower")
        return (Verdict.REGRESSED if worse else Verdict.IMPROVED), f"surely by more than {question.limit_text}"
    if beyond:
        return Verdict.INCONCLUSIVE, "beyond the threshold, but not surely (p against it, over all readings)"
    return Verdict.INCONCLUSIVE, f"the interval is too wide for a threshold of {question.limit_text}"


def _identical(before: tuple[float, float, int], now: tuple[float, float, int]) -> bool:
    """The same training from the same seeds gives the same numbers: nothing to test (baselines keep 9 digits)."""
    if before[2] != now[2] or not before[2]:
        return False
    same_mean = math.isclose(before[0], now[0], rel_tol=1e-8, abs_tol=1e-9)
    both_single = math.isnan(before[1]) and math.isnan(now[1])
    return same_mean and (both_single or math.isclose(before[1], now[1], rel_tol=1e-6, abs_tol=1e-9))
