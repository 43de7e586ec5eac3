"""What a step measured against itself says of a machine's clock: pure arithmetic over the rounds' numbers.

A round is one fresh process, in which the two twins of a step take turns. Its log ratio is the median over the passes
of log(B / A), as in a measurement of two blocks; since A and B are the same, all of it is noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from harness.records import Json
from harness.store.pairs import round_log_ratio
from harness.verdict.statistics import MINIMUM_ROUNDS, spread, student_interval

ROUNDS = 8
"""Processes: their spread is then known to -29 and +80 % (90 %); twice as many would have half the time each."""

JUDGED_ROUNDS = 10
"""A suite's default budget, for which the smallest effect is told."""

MOST_ROUNDS = 200
"""More than anyone waits for."""


@dataclass(frozen=True)
class Noise:
    """The clock of this machine; ratios minus one, shares and counts per second.

    `sd` is that of a round's log ratio, `sd_most` what it may be all the same (95 %). `resolves` is the half-width of
    a 99 % interval of `JUDGED_ROUNDS` rounds, `resolves_most` with `sd_most`. `step` is in seconds. `drift` is how much
    slower the slowest round was than the fastest; `switches` are involuntary ones per second; `cpu` is the processor
    time that a thread had, of the time that passed; `steal` the share that a hypervisor gave to others, None where it
    does not say.
    """

    rounds: int
    passes: int
    step: float
    sd: float
    sd_most: float
    resolves: float
    resolves_most: float
    drift: float
    switches: float
    cpu: float
    steal: float | None

    def rounds_for(self, effect: float) -> int | None:
        """Rounds after which so small a relative effect can be told; None when not in `MOST_ROUNDS`."""
        fitting = (n for n in range(MINIMUM_ROUNDS, MOST_ROUNDS + 1) if _half_width(self.sd, n) <= effect)
        return next(fitting, None)


def noise_of(rounds: Sequence[Json], steal: float | None = None) -> Noise:
    """From what `harness.measuring.noise.pairs` gave in each process. ValueError with fewer than two rounds."""
    if len(rounds) < 2:
        raise ValueError("the spread between rounds needs two of them")
    twins = [tuple(zip(*one["passes"], strict=True)) for one in rounds]
    logs = [round_log_ratio(second, first) for first, second in twins]
    steps = [median(seconds for pair in one["passes"] for seconds in pair) for one in rounds]
    _, sd, n = spread(logs)
    most = _upper(sd, n)
    wall = sum(one["wall"] for one in rounds)
    return Noise(
        rounds=len(rounds),
        passes=sum(len(one["passes"]) for one in rounds),
        step=median(steps),
        sd=sd,
        sd_most=most,
        resolves=_half_width(sd, JUDGED_ROUNDS),
        resolves_most=_half_width(most, JUDGED_ROUNDS),
        drift=max(steps) / min(steps) - 1,
        switches=sum(one["involuntary"] for one in rounds) / wall,
        cpu=sum(one["cpu"] for one in rounds) / sum(one["wall"] * one["threads"] for one in rounds),
        steal=steal,
    )


def _half_width(sd: float, rounds: int) -> float:
    """Of a 99 % interval over so many rounds, as a ratio minus one."""
    _, high = student_interval(0.0, sd, rounds)
    return math.expm1(float(high))


def _upper(sd: float, n: int) -> float:
    """The standard deviation that is exceeded with 5 %: chi-squared with n - 1 degrees of freedom."""
    from scipy.special import chdtri

    return sd * math.sqrt((n - 1) / float(chdtri(n - 1, 0.95)))
