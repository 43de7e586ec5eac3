"""What verdicts are worth on this machine, from experiments whose right answers are known (`harness aa`).

From every experiment's samples the verdicts are made as `ab` makes them: median of passes, Student's t over rounds,
false discoveries controlled over the experiment's matrix. Then they are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from harness.records import Json
from harness.store.pairs import round_log_ratio
from harness.verdict.rules import PAIRED_TIME_THRESHOLD, Paired, Verdict, judge_paired
from harness.verdict.statistics import CONFIDENCE, spread

DETECTION = 0.95
"""Share of experiments in which an effect must be found to be called detectable."""

BOUND = 0.95
"""Confidence of the bounds on counted shares."""

THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Those that are tried, relative."""

SUITED = 0.95
"""Share of unchanged readings that a suitable threshold calls SAME; the rest would be INCONCLUSIVE."""

FOUND_WRONG = (Verdict.REGRESSED, Verdict.IMPROVED)

Spread = tuple[float, float, int]
"""Mean, standard deviation and number of a reading's log ratios."""


@dataclass(frozen=True)
class Trial:
    """One verdict whose right answer is known: the true ratio is 1 + `slowed`."""

    experiment: int
    condition: str
    cell: str
    reading: str
    slowed: float
    verdict: Verdict
    ratio: float
    low: float
    high: float
    rounds: int
    ended: str
    seconds: float
    """Wall seconds of the experiment per cell."""


@dataclass(frozen=True)
class Share:
    """How many of how many, with exact (Clopper-Pearson) bounds; each is one-sided, with 95 % confidence."""

    count: int
    of: int

    @property
    def value(self) -> float:
        return self.count / self.of if self.of else math.nan

    @property
    def upper(self) -> float:
        """The rate is below this, with 95 % confidence."""
        from scipy.special import betaincinv

        if not self.of:
            return math.nan
        return 1.0 if self.count == self.of else float(betaincinv(self.count + 1, self.of - self.count, BOUND))

    @property
    def lower(self) -> float:
        """The rate is above this, with 95 % confidence."""
        from scipy.special import betaincinv

        if not self.of:
            return math.nan
        return 0.0 if not self.count else float(betaincinv(self.count, self.of - self.count + 1, 1 - BOUND))


@dataclass(frozen=True)
class ErrorRates:
    """The counts for one condition. `found`: injected share -> in how many it was called REGRESSED."""

    condition: str
    experiments: int
    threshold: float
    false_alarms: Share
    same: Share
    covered: Share
    confidence: float
    found: dict[float, Share]
    seconds_per_cell: float
    rounds: float
    suited: float | None

    @property
    def smallest(self) -> float | None:
        """The smallest injected share from which on all were found in 95 % of the experiments."""
        good = None
        for share in sorted(self.found, reverse=True):
            if self.found[share].value < DETECTION:
                break
            good = share
        return good


def trials_of(experiments: Iterable[Json], confidence: float, threshold: float = PAIRED_TIME_THRESHOLD) -> list[Trial]:
    """Every reading of every experiment with its verdict; false discoveries are controlled within an experiment."""
    read = ((experiment, _spreads(experiment)) for experiment in experiments)
    return [trial for experiment, logs in read for trial in _trials(experiment, logs, confidence, threshold)]


def _spreads(experiment: Json) -> dict[str, Spread]:
    return {reading: spread(ratios) for reading, ratios in log_ratios(experiment).items()}


def _trials(experiment: Json, logs: dict[str, Spread], confidence: float, threshold: float) -> Iterator[Trial]:
    answers = judge_paired([Paired(ratios, "lower", threshold) for ratios in logs.values()], confidence)
    rules = ", ".join(sorted({end["rule"] for end in experiment["ended"].values()}))
    for (reading, ratios), answer in zip(logs.items(), answers, strict=True):
        cell = reading.partition("/")[0]
        yield Trial(
            experiment["experiment"], experiment["condition"], cell, reading, experiment["slowed"][cell],
            answer.verdict, answer.ratio, answer.low, answer.high, ratios[2],
            rules, experiment["seconds"] / len(experiment["slowed"]),
        )  # fmt: skip


def log_ratios(experiment: Json) -> dict[str, list[float]]:
    """Reading -> one log ratio head / base per round that both sides have."""
    base, head = experiment["samples"]
    logs: dict[str, list[float]] = {}
    for round_, readings in head.items():
        for reading, values in readings.items():
            ratio = round_log_ratio(values, base.get(round_, {}).get(reading, ()))
            if math.isfinite(ratio):
                logs.setdefault(reading, []).append(ratio)
    return logs


def error_rates(
    experiments: Sequence[Json], confidence: float, threshold: float = PAIRED_TIME_THRESHOLD
) -> list[ErrorRates]:
    """The error rates of each condition that the experiments were made in."""
    return [
        _rates([e for e in experiments if e["condition"] == condition], condition, confidence, threshold)
        for condition in dict.fromkeys(e["condition"] for e in experiments)
    ]


def _rates(experiments: Sequence[Json], condition: str, confidence: float, threshold: float) -> ErrorRates:
    rows = trials_of(experiments, confidence, threshold)
    null = [row for row in rows if not row.slowed]
    decided = [row for row in rows if math.isfinite(row.low)]
    shares = sorted({row.slowed for row in rows if row.slowed})
    return ErrorRates(
        condition,
        len(experiments),
        threshold,
        false_alarms=_share(null, lambda row: row.verdict in FOUND_WRONG),
        same=_share(null, lambda row: row.verdict is Verdict.SAME),
        covered=_share(decided, lambda row: row.low <= 1 + row.slowed <= row.high),
        confidence=CONFIDENCE,
        found={
            share: _share([row for row in rows if row.slowed == share], lambda row: row.verdict is Verdict.REGRESSED)
            for share in shares
        },
        seconds_per_cell=median(row.seconds for row in rows) if rows else math.nan,
        rounds=median(row.rounds for row in rows) if rows else math.nan,
        suited=suited_threshold(experiments, confidence),
    )


def suited_threshold(experiments: Sequence[Json], confidence: float) -> float | None:
    """The smallest threshold without a false alarm here that calls 95 % of what did not change SAME; None if none."""
    read = [(experiment, _spreads(experiment)) for experiment in experiments]
    for threshold in THRESHOLDS:
        rows = (row for experiment, logs in read for row in _trials(experiment, logs, confidence, threshold))
        null = [row for row in rows if not row.slowed]
        if not null:
            return None
        quiet = not any(row.verdict in FOUND_WRONG for row in null)
        if quiet and _share(null, lambda row: row.verdict is Verdict.SAME).value >= SUITED:
            return threshold
    return None


def _share(rows: Sequence[Trial], holds: Callable[[Trial], bool]) -> Share:
    return Share(sum(holds(row) for row in rows), len(rows))
