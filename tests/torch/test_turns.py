"""Taking turns, with a clock that ticks as told."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from harness.metrics.base import Step
from harness.metrics.turns import SHORTEST_SAMPLE, Seat, take_turns
from harness.records import Budget


class FakeClock:
    """Every step of a name costs what `cost` says; `log` is the order in which steps ran."""

    def __init__(self, cost):
        self.cost = cost
        self.log = []

    def time(self, step, repeats=1):
        for _ in range(repeats):
            step()
        self.log.append((step.name, repeats))
        return self.cost[step.name] * repeats


class Work:
    def __init__(self, name, fails_at=None):
        self.name = name
        self.calls = 0
        self.fails_at = fails_at

    def __call__(self):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError(f"{self.name} broke")


def table(cost, seconds=1.0, **works):
    clock = FakeClock(cost)
    return clock, [
        Seat(Step("latency", "train", "s", works.get(name) or Work(name)), clock, nullcontext, seconds) for name in cost
    ]


def never(seat, problem):
    raise AssertionError(problem)


def visits(clock):
    """Names in the order of their turns, repetitions left out."""
    order = []
    for name, _ in clock.log:
        if not order or order[-1] != name:
            order.append(name)
    return order


def test_the_order_is_there_and_back_again():
    clock, seats = table({"a": 0.05, "b": 0.1, "c": 0.2})
    take_turns(seats, Budget(), never, lambda seat: None)
    # warm-up in order, then a b c c b a: neighbours of the same name run together
    assert visits(clock) == ["a", "b", "c", "a", "b", "c", "b", "a"]


def test_samples_are_seconds_per_step_and_fill_the_share():
    _, seats = table({"a": 0.05}, seconds=1.0)
    take_turns(seats, Budget(), never, lambda seat: None)
    reading = seats[0].reading()
    assert set(reading.values) == {0.05}
    assert 18 <= len(reading.values) <= 20
    assert reading.facts["positions"] == sorted(reading.facts["positions"])
    assert len(reading.facts["warmup"]) >= 2


def test_fast_steps_are_timed_in_batches_and_slow_ones_at_least_once_a_visit():
    _, seats = table({"fast": 1e-5, "slow": 3.0}, seconds=0.1)
    take_turns(seats, Budget(), never, lambda seat: None)
    fast, slow = (seat.reading() for seat in seats)
    assert fast.facts["repeats"] == round(SHORTEST_SAMPLE / 1e-5)
    assert fast.values == pytest.approx([1e-5] * len(fast.values))
    assert slow.values == (3.0, 3.0)


def test_warm_up_goes_on_until_the_time_settles():
    class Settling(FakeClock):
        ticks = iter([1.0, 0.5, 0.2, 0.1, 0.1, *[0.1] * 1000])

        def time(self, step, repeats=1):
            return next(self.ticks) * repeats

    seat = Seat(Step("latency", "train", "s", Work("a")), Settling({}), nullcontext, 10.0)
    seat.warm(2)
    assert seat.warmup == [1.0, 0.5, 0.2, 0.1, 0.1]


@pytest.mark.parametrize("fails_at", [1, 4, 12])
def test_a_step_that_raises_is_left_out_and_the_others_go_on(fails_at):
    bad = Work("b", fails_at)
    _, seats = table({"a": 0.1, "b": 0.1, "c": 0.1}, b=bad)
    failures, begun = [], []
    alive = take_turns(seats, Budget(), lambda seat, problem: failures.append((seat, str(problem))), begun.append)
    assert failures == [(seats[1], "b broke")]
    assert bad.calls == fails_at, "it is not called again"
    assert alive == [seats[0], seats[2]]
    assert all(len(seat.samples) == 10 for seat in alive)
    assert begun[:3] == seats
