"""Interleaved timing of a group's variants, v1..vn then vn..v1 and so on, in visits of about ten milliseconds.

One call is one round: warm-up, then as many passes over all variants as the budget pays for. Every visit is a batch of
steps long enough for the clock and gives one sample, so sample number i of every step is of pass i, and two variants
are compared pass by pass, milliseconds apart. Short visits matter more than anything that is done to the numbers
afterwards: another process that takes the processor for half a second then hits both variants of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from time import monotonic

from harness.devices import Clock
from harness.measuring.metric import Step
from harness.measuring.samples import Samples
from harness.records import Budget, Reading

VISIT = 0.01
"""Seconds. A visit lasts at least so long: 10,000 times what the clock resolves, and well below the second for which
other processes come and go. Measured with a step of 2 ms on two cores, one of them taken by another process half of the
time: a round's log ratio varied by 1 % with 64 visits of 10 ms and by 5 % with 16 of 40 ms."""

MOST_PASSES = 100
FEWEST_PASSES = 2
"""One forward and one backward pass over all steps, so that a drift cancels."""

PATIENCE = 4.0
"""Times the steps' shares together: on a machine so busy that steps take many times as long a round ends early. Twice
that is normal where another process takes turns with this one."""

SETTLED = 0.1
LONGEST_WARMUP = 10
"""Warm-up ends when a step's time is within 10 % of the one before, or after so many steps."""

COLD = 0.05
"""Seconds. A shorter step is run, untimed, before the batch of a visit: another variant had the caches, or another
process the core. In a longer step what that costs is lost, and running one would cost as much as it is worth."""

SETTLE = 0.002
"""Seconds that a visit settles for, at least one step: a process that has slept finds its caches cold."""

Turn = Callable[[], AbstractContextManager[None]]
"""What every visit runs inside; another process that takes turns with this one waits meanwhile."""


@dataclass
class TimedStep:
    """One step of one variant, its clock, and what was measured of it. `share`: its seconds of the round."""

    step: Step
    clock: Clock
    settings: Callable[[], AbstractContextManager[None]]
    share: float
    repeats: int = 1
    step_seconds: float = VISIT
    """Until it is known."""
    warmup: list[float] = field(default_factory=list)
    settling: list[float] = field(default_factory=list)
    samples: Samples = field(default_factory=Samples)

    def time(self, repeats: int = 1) -> float:
        return self.clock.time(self.step.run, repeats, flush=self.step.cold)

    def warm(self, steps: int) -> None:
        """Run until the time of a step settles; what that took is kept as a fact, apart from the samples."""
        with self.settings():
            for _ in range(max(steps, LONGEST_WARMUP)):
                self.warmup.append(self.time())
                settled = len(self.warmup) > 1 and _close(self.warmup[-1], self.warmup[-2])
                if len(self.warmup) >= steps and (settled or sum(self.warmup) > self.share):
                    break
            # the least of them: on a busy machine the others say how busy it is
            least = max(min(self.warmup), 1e-9)
            self.step_seconds = least if self.step.cold else self._calibrated(least)

    def _calibrated(self, seconds: float) -> float:
        """Seconds of a step from a batch that is long enough for the clock; one step alone is not, if it is short."""
        repeats = 1
        while seconds * repeats < VISIT:
            repeats = min(math.ceil(1.1 * VISIT / seconds), 10 * repeats)
            batch = max(self.time(repeats), 1e-9)
            self.warmup.append(batch / repeats)
            if batch >= VISIT / 2:
                return min(seconds, batch / repeats)
            seconds = batch / repeats
        return seconds

    @property
    def shortest_visit(self) -> float:
        """Seconds that a visit takes at least, the untimed step included."""
        return self.shortest_batch + self.settling_steps * self.step_seconds

    @property
    def shortest_batch(self) -> float:
        """Whole steps that last `VISIT` or longer; of a cold one that time goes to the flush."""
        return max(
            VISIT, self.step_seconds if self.step.cold else math.ceil(VISIT / self.step_seconds) * self.step_seconds
        )

    @property
    def settling_steps(self) -> int:
        """Untimed steps before the batch of a visit."""
        if self.step_seconds >= COLD or self.step.cold:
            return 0
        return max(1, math.ceil(SETTLE / self.step_seconds))

    def visit(self, rank: int) -> None:
        """One sample: a batch of `repeats` steps, the `rank`-th visit of the round over all steps."""
        with self.settings():
            if steps := self.settling_steps:
                self.settling.append(self.time(steps) / steps)
            with self.samples.recording(self.clock.device, rank, self.repeats) as batch:
                batch.seconds = self.time(self.repeats)
                batch.waited = self.clock.waited

    def reading(self) -> Reading:
        facts = {
            "repeats": self.repeats,
            "warmup": _short(self.warmup),
            "settling": _short(self.settling),
            **self.samples.facts(self.clock.device),
            **self.step.facts,
        }
        return Reading(self.step.metric, self.step.form, self.step.unit, tuple(self.samples.seconds), facts)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= SETTLED * min(a, b)


def _short(values: Iterable[float]) -> list[float]:
    """Warm-up is shown, not analysed: four digits do."""
    return [float(f"{value:.4g}") for value in values]


def interleave(
    steps: Sequence[TimedStep],
    budget: Budget,
    failed: Callable[[TimedStep, Exception], None],
    begin: Callable[[TimedStep], None],
    turn: Turn = nullcontext,
) -> list[TimedStep]:
    """Warm up every step and visit it in every pass; one that raises is handed to `failed` and left out.

    `begin` is called before each turn of a step, so that a death of the process can be traced to it. `turn`: what every
    visit runs inside. Returns the steps that are left.
    """
    alive = list(steps)

    def attempt(step: TimedStep, action: Callable[[], None]) -> None:
        begin(step)
        try:
            with turn():
                action()
        except Exception as problem:  # whatever a block raises is its own result, not the group's
            alive.remove(step)
            failed(step, problem)

    for step in steps:
        attempt(step, partial(step.warm, budget.warmup))
    passes = plan_passes(alive)
    patience = PATIENCE * sum(step.share for step in alive)
    rank, began = 0, monotonic()
    for number in range(passes):
        if number >= FEWEST_PASSES and monotonic() - began > patience:
            break
        for step in [*alive] if number % 2 == 0 else [*reversed(alive)]:
            attempt(step, partial(step.visit, rank))
            rank += 1
    return alive


def plan_passes(steps: Sequence[TimedStep]) -> int:
    """How many passes the steps' shares of time pay for; every step's batch is made to fill its own share.

    The slowest step decides: a visit cannot be shorter than one step.
    """
    if not steps:
        return 0
    affordable = min(math.floor(step.share / step.shortest_visit) for step in steps)
    passes = min(max(affordable, FEWEST_PASSES), MOST_PASSES)
    for step in steps:
        length = max(step.shortest_batch, step.share / passes - (step.shortest_visit - step.shortest_batch))
        # a cold step is a visit of its own: every one costs a flush, which is not in its time
        step.repeats = 1 if step.step.cold else max(1, round(length / step.step_seconds))
    return passes
