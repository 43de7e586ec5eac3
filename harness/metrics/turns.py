"""The variants of a group take turns: v1..vn, then vn..v1, so that a drift of the machine hits all alike.

One call is one round. The round's first variant changes with the round (the plan rotates them); every visit is a
batch of steps long enough for the clock; the first step after a change of variant warms caches and is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from harness.devices import Clock
from harness.metrics.base import Step
from harness.records import Budget, Reading

SHORTEST_SAMPLE = 0.01
"""Seconds. A batch of steps lasts at least so long: 10,000 times what the clock resolves."""

SETTLED = 0.1
LONGEST_WARMUP = 10
"""Warm-up ends when a step's time is within 10 % of the one before, or after so many steps."""


@dataclass
class Seat:
    """One step of one variant at the table, and what was measured of it."""

    step: Step
    clock: Clock
    settings: Callable[[], AbstractContextManager[None]]
    share: float
    repeats: int = 1
    warmup: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def warm(self, steps: int) -> None:
        """Run until the time of a step settles; what that took is kept as a fact, apart from the samples."""
        with self.settings():
            for _ in range(max(steps, LONGEST_WARMUP)):
                self.warmup.append(self.clock.time(self.step.run))
                settled = len(self.warmup) > 1 and _close(self.warmup[-1], self.warmup[-2])
                if len(self.warmup) >= steps and (settled or sum(self.warmup) > self.share):
                    break
        self.repeats = max(1, round(SHORTEST_SAMPLE / max(self.warmup[-1], 1e-9)))

    def visit(self, position: int) -> None:
        """Half of this seat's share of time, at least one sample."""
        with self.settings():
            self.clock.time(self.step.run)
            spent = seconds = 0.0
            while spent + seconds <= self.share / 2 or not spent:
                seconds = self.clock.time(self.step.run, self.repeats)
                self.samples.append(seconds / self.repeats)
                self.positions.append(position)
                spent += seconds

    def reading(self) -> Reading:
        facts = {"positions": self.positions, "repeats": self.repeats, "warmup": self.warmup, **self.step.facts}
        return Reading(self.step.metric, self.step.form, self.step.unit, tuple(self.samples), facts)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= SETTLED * min(a, b)


def take_turns(
    seats: Sequence[Seat], budget: Budget, failed: Callable[[Seat, Exception], None], begin: Callable[[Seat], None]
) -> list[Seat]:
    """Let every seat warm up and be visited twice; a seat whose step raises is reported to `failed` and left out.

    `begin` is told before a seat's turn, so that a death of the process can be laid at its door.
    """
    alive = list(seats)

    def turn(seat: Seat, action: Callable[[], None]) -> None:
        begin(seat)
        try:
            action()
        except Exception as problem:  # whatever a block raises is its own result, not the group's
            alive.remove(seat)
            failed(seat, problem)

    for seat in seats:
        turn(seat, lambda seat=seat: seat.warm(budget.warmup))  # type: ignore[misc]
    order = [*alive, *reversed(alive)]
    for position, seat in enumerate(order):
        if seat in alive:
            turn(seat, lambda seat=seat, position=position: seat.visit(position))  # type: ignore[misc]
    return alive
