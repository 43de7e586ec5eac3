"""After which rounds a group is looked at, and what every look costs in confidence."""

from __future__ import annotations

CONFIDENCE = 0.99
"""Of every interval the harness prints: with a hundred readings in a report, 95 % would miss five of them."""

LEAST_ROUNDS = 4
"""Below four rounds a 99 % t interval is more than twice as wide as its standard deviation: no verdict."""

MOST_LOOKS = 4
"""Each look takes its share of the error: with four of them a t interval is a quarter wider at ten rounds."""


def looks(rounds: int, precision: float | None) -> tuple[int, ...]:
    """The numbers of finished rounds after which the intervals are judged; the last is `rounds` itself.

    Without a wanted `precision` there is one look, at the end. (10, 0.01) gives 4, 6, 8, 10.
    """
    if precision is None or rounds <= LEAST_ROUNDS:
        return (rounds,)
    steps = min(MOST_LOOKS, rounds - LEAST_ROUNDS + 1) - 1
    return tuple(round(LEAST_ROUNDS + (rounds - LEAST_ROUNDS) * step / steps) for step in range(steps + 1))


def shared_confidence(rounds: int, precision: float | None) -> float:
    """The confidence of each look's intervals, so that all looks together keep `CONFIDENCE` (Bonferroni).

    Simulated: looks at 4, 6, 8, 10 rounds, stopping when the interval is narrow, miss the truth in 0.4 %.
    """
    return 1 - (1 - CONFIDENCE) / len(looks(rounds, precision))
