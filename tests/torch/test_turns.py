"""Interleaved steps, with a clock that ticks as told and a time of day that only this clock moves."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from itertools import pairwise

import pytest

from harness.devices.fake import FakeDevice
from harness.measuring import turns
from harness.measuring.metric import Step
from harness.measuring.turns import (
    COLD,
    FEWEST_PASSES,
    LONGEST_WARMUP,
    MOST_PASSES,
    PATIENCE,
    VISIT,
    TimedStep,
    interleave,
)
from harness.records import Budget


class FakeClock:
    """Every step of a name costs what `cost` says; `log` is what was timed: name, repetitions, flushed or not."""

    def __init__(self, cost):
        self.cost = cost
        self.log = []
        self.now = 0.0
        self.device = FakeDevice()
        self.waited = 0.0

    def time(self, step, repeats=1, flush=False):
        for _ in range(repeats):
            step()
        self.log.append((step.name, repeats, flush))
        seconds = self.seconds(step.name, repeats)
        self.now += seconds
        return seconds

    def seconds(self, name, repeats):
        return self.cost[name] * repeats


class Scripted(FakeClock):
    """The batches take these seconds per step, one after the other, and the last of them for ever."""

    def __init__(self, *ticks):
        super().__init__({})
        self.ticks = list(ticks)

    def seconds(self, name, repeats):
        tick = self.ticks.pop(0) if len(self.ticks) > 1 else self.ticks[0]
        return tick * repeats


class Work:
    def __init__(self, name, fails_at=None):
        self.name = name
        self.calls = 0
        self.fails_at = fails_at

    def __call__(self):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError(f"{self.name} broke")


def timed_steps(cost, seconds=1.0, clock=None, cold=False, **works):
    clock = clock or FakeClock(cost)
    steps = [Step("latency", "train", "s", works.get(name) or Work(name), cold=cold) for name in cost]
    return clock, [TimedStep(step, clock, nullcontext, seconds) for step in steps]


def never(step, problem):
    raise AssertionError(problem)


def interleaved(steps, **more):
    """A round in which nothing may fail; returns the names of whose turn it was, warm-ups first."""
    begun = []
    alive = interleave(steps, Budget(), never, lambda step: begun.append(step.step.run.name), **more)
    assert alive == steps
    return begun


def spent_in_visits(step):
    return sum(step.settling) + step.repeats * sum(step.samples.seconds)


# The order


@pytest.mark.parametrize("passes", [2, 5, 20])
def test_the_order_is_forward_and_backward_over_all_passes(passes):
    _, steps = timed_steps({"a": 0.1, "b": 0.1, "c": 0.1}, seconds=0.1 * passes + 0.01)
    names = ["a", "b", "c"]
    visits = [name for number in range(passes) for name in (names if number % 2 == 0 else names[::-1])]
    assert interleaved(steps) == names + visits
    assert [len(step.samples.seconds) for step in steps] == [passes] * 3


def test_sample_i_of_every_step_is_of_pass_i_and_ranks_number_all_visits_of_the_round():
    _, steps = timed_steps({"a": 0.001, "b": 0.02, "c": 0.1})
    interleaved(steps)
    orders = [step.reading().facts["order"] for step in steps]
    passes = list(zip(*orders, strict=True))
    assert len(passes) > FEWEST_PASSES
    for number, ranks in enumerate(passes):
        assert sorted(ranks) == [3 * number, 3 * number + 1, 3 * number + 2]
        assert list(ranks) == sorted(ranks, reverse=number % 2 == 1)


# Visits


@pytest.mark.parametrize("seconds", [1e-6, 1e-5, 0.0009, 0.0034, 0.0045, 0.006, 0.0099])
def test_every_visit_of_a_fast_step_is_one_sample_of_a_batch_of_ten_milliseconds_at_least(seconds):
    clock, (step,) = timed_steps({"fast": seconds})
    interleaved([step])
    reading = step.reading()
    assert reading.facts["repeats"] * seconds >= VISIT * (1 - 1e-9)
    assert reading.facts["repeats"] * seconds < 1.05 * VISIT + seconds
    assert reading.values == pytest.approx([seconds] * len(reading.values))
    batches = [entry for entry in clock.log if entry[1] == step.repeats]
    assert len(reading.values) <= len(batches) <= len(reading.values) + 1  # the warm-up may end with such a batch
    assert not any(flushed for _, _, flushed in clock.log)


@pytest.mark.parametrize("seconds", [1e-6, 0.0034, 0.0045, 0.006, 0.02, 0.049, 0.06, 0.2, 0.33])
def test_a_steps_visits_take_about_its_share_of_the_round(seconds):
    _, (step,) = timed_steps({"a": seconds}, seconds=1.0)
    interleaved([step])
    assert 0.8 <= spent_in_visits(step) <= 1.05


def test_of_a_long_share_the_batches_grow_and_not_the_number_of_visits():
    _, steps = timed_steps({"a": 0.001, "b": 0.004}, seconds=20.0)
    interleaved(steps)
    for step in steps:
        assert len(step.samples.seconds) == MOST_PASSES
        assert spent_in_visits(step) == pytest.approx(20.0, rel=0.05)


def test_a_step_that_is_longer_than_its_share_is_visited_once_forward_and_once_backward():
    _, steps = timed_steps({"fast": 1e-5, "slow": 3.0}, seconds=0.1)
    interleaved(steps)
    fast, slow = (step.reading() for step in steps)
    assert slow.values == (3.0, 3.0)
    assert slow.facts["repeats"] == 1
    assert len(fast.values) == 2
    assert fast.facts["repeats"] * 1e-5 == pytest.approx(0.048, rel=0.01), "half of its share, less what settling takes"


@pytest.mark.parametrize(("slower", "passes"), [(PATIENCE - 0.5, 10), (10 * PATIENCE, FEWEST_PASSES)])
def test_a_round_that_turns_out_far_slower_than_its_warm_up_ends_after_one_pass_there_and_back(
    monkeypatch, slower, passes
):
    clock, steps = timed_steps({"a": 0.1, "b": 0.1}, clock=Scripted(*[0.1] * 4, 0.1 * slower))
    monkeypatch.setattr(turns, "monotonic", lambda: clock.now)
    interleaved(steps)
    assert [len(step.samples.seconds) for step in steps] == [passes, passes]


# What is kept apart


class ColdCaches(FakeClock):
    """The first step after another variant's costs ten times as much."""

    last = None

    def seconds(self, name, repeats):
        first = 10 if name != self.last else 1
        self.last = name
        return self.cost[name] * (repeats - 1 + first)


def test_the_step_that_finds_the_caches_of_another_variant_is_no_sample_and_is_kept_as_a_fact():
    cost = {"a": 0.002, "b": 0.003}
    _, steps = timed_steps(cost, clock=ColdCaches(cost))
    interleaved(steps)
    for step in steps:
        reading, seconds = step.reading(), cost[step.step.run.name]
        settled = {round(value / seconds) for value in reading.facts["settling"]}
        assert settled == {1, 10}, "where a pass ends and the next begins the same step comes twice in a row"
        assert len(reading.facts["settling"]) == len(reading.values)
        assert reading.values == pytest.approx([seconds] * len(reading.values)), "no sample has the cold step in it"
        assert reading.facts["warmup"][0] == pytest.approx(10 * seconds)


def test_a_step_that_takes_long_anyway_is_not_run_untimed_first():
    clock, (step,) = timed_steps({"long": COLD})
    interleaved([step])
    reading = step.reading()
    assert reading.facts["settling"] == []
    assert len(clock.log) == len(reading.facts["warmup"]) + len(reading.values)


def test_warm_up_goes_on_until_the_time_settles_and_is_kept_apart():
    _, (step,) = timed_steps({"a": 0.1}, seconds=10.0, clock=Scripted(1.0, 0.5, 0.2, 0.1, 0.1))
    interleaved([step])
    reading = step.reading()
    assert reading.facts["warmup"] == [1.0, 0.5, 0.2, 0.1, 0.1]
    assert set(reading.values) == {0.1}


def test_warm_up_that_never_settles_ends_all_the_same():
    ticks = [0.1 * 1.5**i for i in range(20, 0, -1)]
    _, (step,) = timed_steps({"a": 0.1}, seconds=1e9, clock=Scripted(*ticks))
    step.warm(2)
    assert step.warmup == pytest.approx(ticks[:LONGEST_WARMUP])
    _, (step,) = timed_steps({"a": 0.1}, seconds=1.0, clock=Scripted(*ticks))
    step.warm(3)
    assert step.warmup == pytest.approx(ticks[:3]), "what was asked for is done, even where the share is spent"


class Launching(FakeClock):
    """Every batch costs a tenth of a millisecond besides its steps."""

    def seconds(self, name, repeats):
        return 1e-4 + self.cost[name] * repeats


def test_a_short_step_alone_is_not_trusted_and_timed_again_in_batches_until_they_are_long_enough():
    cost = {"a": 1e-6}
    clock, (step,) = timed_steps(cost, clock=Launching(cost))
    interleaved([step])
    assert step.step_seconds == pytest.approx(1e-6, rel=0.03), "a hundred times less than a single one says"
    assert clock.seconds("a", step.repeats) >= 0.99 * VISIT
    assert len(step.warmup) < 10


# A cold step


def test_a_cold_step_is_a_visit_of_its_own_flushed_every_time_and_never_settles():
    clock, (step,) = timed_steps({"a": 0.001}, cold=True)
    interleaved([step])
    reading = step.reading()
    assert {(repeats, flushed) for _, repeats, flushed in clock.log} == {(1, True)}
    assert (reading.facts["repeats"], reading.facts["settling"]) == (1, [])
    assert len(clock.log) == len(reading.facts["warmup"]) + len(reading.values)
    assert len(reading.values) == MOST_PASSES


# Who fails


@pytest.mark.parametrize("fails_at", [1, 3, 7])
def test_a_step_that_raises_at_warm_up_at_first_or_later_is_left_out_and_the_others_go_on(fails_at):
    bad = Work("b", fails_at)  # two steps of warm-up, then one a visit
    _, steps = timed_steps({"a": 0.1, "b": 0.1, "c": 0.1}, seconds=1.01, b=bad)
    failures, begun = [], []
    alive = interleave(steps, Budget(), lambda step, problem: failures.append((step, str(problem))), begun.append)
    assert failures == [(steps[1], "b broke")]
    assert bad.calls == fails_at, "it is not called again"
    assert begun.count(steps[1]) == max(1, fails_at - 1)
    assert alive == [steps[0], steps[2]]
    assert [len(step.samples.seconds) for step in steps] == [10, max(0, fails_at - 3), 10]
    after = [step for step in begun[begun.index(steps[1]) :] if step is not steps[1]][-18:]
    assert all(before is not here for before, here in list(pairwise(after))[::2]), "they still take turns"


def test_a_round_without_anyone_left_ends():
    _, steps = timed_steps({"a": 0.1, "b": 0.1}, a=Work("a", 1), b=Work("b", 4))
    failures = []
    assert interleave(steps, Budget(), lambda step, _: failures.append(step), lambda step: None) == []
    assert failures == steps


# What visits run inside


def test_every_warm_up_and_every_visit_is_one_turn_inside_the_steps_own_settings():
    inside, log, turns_taken = [], [], []

    @contextmanager
    def within(word):
        inside.append(word)
        try:
            yield
        finally:
            inside.remove(word)

    @contextmanager
    def turn():
        turns_taken.append(len(log))
        with within("turn"):
            yield

    class Watched(Work):
        def __call__(self):
            log.append((self.name, *inside))
            super().__call__()

    works = {"a": Watched("a"), "b": Watched("b", fails_at=5), "c": Watched("c")}
    _, steps = timed_steps({"a": 0.1, "b": 0.1, "c": 0.001}, seconds=1.01, **works)
    for step in steps:
        name = step.step.run.name
        step.settings = lambda name=name: within(f"settings of {name}")
    interleave(steps, Budget(), lambda step, problem: None, lambda step: None, turn)
    assert set(log) == {(name, "turn", f"settings of {name}") for name in "abc"}
    assert inside == [], "a step that raises gives its turn back"
    assert len(turns_taken) == len(steps) + 10 + 3 + 10, "b raises in its third visit"
    assert len(set(turns_taken)) == len(turns_taken), "something is run in every turn"
