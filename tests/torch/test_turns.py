"""Taking turns, with a clock that ticks as told and a time of day that only this clock moves."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from itertools import pairwise

import pytest

from harness.devices.fake import FakeDevice
from harness.measuring import turns
from harness.measuring.metric import Step
from harness.measuring.turns import COLD, FEWEST_PASSES, LONGEST_WARMUP, MOST_PASSES, PATIENCE, VISIT, Seat, take_turns
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


def table(cost, seconds=1.0, clock=None, cold=False, **works):
    clock = clock or FakeClock(cost)
    steps = [Step("latency", "train", "s", works.get(name) or Work(name), cold=cold) for name in cost]
    return clock, [Seat(step, clock, nullcontext, seconds) for step in steps]


def never(seat, problem):
    raise AssertionError(problem)


def play(seats, **more):
    """A round in which nothing may fail; returns the names of whose turn it was, warm-ups first."""
    begun = []
    alive = take_turns(seats, Budget(), never, lambda seat: begun.append(seat.step.run.name), **more)
    assert alive == seats
    return begun


def spent_in_visits(seat):
    return sum(seat.settling) + seat.repeats * sum(seat.samples.seconds)


# The order


@pytest.mark.parametrize("passes", [2, 5, 20])
def test_the_order_is_forward_and_backward_over_all_passes(passes):
    _, seats = table({"a": 0.1, "b": 0.1, "c": 0.1}, seconds=0.1 * passes + 0.01)
    names = ["a", "b", "c"]
    visits = [name for number in range(passes) for name in (names if number % 2 == 0 else names[::-1])]
    assert play(seats) == names + visits
    assert [len(seat.samples.seconds) for seat in seats] == [passes] * 3


def test_sample_i_of_every_seat_is_of_pass_i_and_ranks_number_all_visits_of_the_round():
    _, seats = table({"a": 0.001, "b": 0.02, "c": 0.1})
    play(seats)
    orders = [seat.reading().facts["order"] for seat in seats]
    passes = list(zip(*orders, strict=True))
    assert len(passes) > FEWEST_PASSES
    for number, ranks in enumerate(passes):
        assert sorted(ranks) == [3 * number, 3 * number + 1, 3 * number + 2]
        assert list(ranks) == sorted(ranks, reverse=number % 2 == 1)


# Visits


@pytest.mark.parametrize("seconds", [1e-6, 1e-5, 0.0009, 0.0034, 0.0045, 0.006, 0.0099])
def test_every_visit_of_a_fast_step_is_one_sample_of_a_batch_of_ten_milliseconds_at_least(seconds):
    clock, (seat,) = table({"fast": seconds})
    play([seat])
    reading = seat.reading()
    assert reading.facts["repeats"] * seconds >= VISIT * (1 - 1e-9)
    assert reading.facts["repeats"] * seconds < 1.05 * VISIT + seconds
    assert reading.values == pytest.approx([seconds] * len(reading.values))
    batches = [entry for entry in clock.log if entry[1] == seat.repeats]
    assert len(reading.values) <= len(batches) <= len(reading.values) + 1  # the warm-up may end with such a batch
    assert not any(flushed for _, _, flushed in clock.log)


@pytest.mark.parametrize("seconds", [1e-6, 0.0034, 0.0045, 0.006, 0.02, 0.049, 0.06, 0.2, 0.33])
def test_a_seats_visits_take_about_its_share_of_the_round(seconds):
    _, (seat,) = table({"a": seconds}, seconds=1.0)
    play([seat])
    assert 0.8 <= spent_in_visits(seat) <= 1.05


def test_of_a_long_share_the_batches_grow_and_not_the_number_of_visits():
    _, seats = table({"a": 0.001, "b": 0.004}, seconds=20.0)
    play(seats)
    for seat in seats:
        assert len(seat.samples.seconds) == MOST_PASSES
        assert spent_in_visits(seat) == pytest.approx(20.0, rel=0.05)


def test_a_step_that_is_longer_than_its_share_is_visited_once_forward_and_once_backward():
    _, seats = table({"fast": 1e-5, "slow": 3.0}, seconds=0.1)
    play(seats)
    fast, slow = (seat.reading() for seat in seats)
    assert slow.values == (3.0, 3.0)
    assert slow.facts["repeats"] == 1
    assert len(fast.values) == 2
    assert fast.facts["repeats"] * 1e-5 == pytest.approx(0.048, rel=0.01), "half of its share, less what settling takes"


@pytest.mark.parametrize(("slower", "passes"), [(PATIENCE - 0.5, 10), (10 * PATIENCE, FEWEST_PASSES)])
def test_a_round_that_turns_out_far_slower_than_its_warm_up_ends_after_one_pass_there_and_back(
    monkeypatch, slower, passes
):
    clock, seats = table({"a": 0.1, "b": 0.1}, clock=Scripted(*[0.1] * 4, 0.1 * slower))
    monkeypatch.setattr(turns, "monotonic", lambda: clock.now)
    play(seats)
    assert [len(seat.samples.seconds) for seat in seats] == [passes, passes]


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
    _, seats = table(cost, clock=ColdCaches(cost))
    play(seats)
    for seat in seats:
        reading, seconds = seat.reading(), cost[seat.step.run.name]
        settled = {round(value / seconds) for value in reading.facts["settling"]}
        assert settled == {1, 10}, "where a pass ends and the next begins the same seat comes twice in a row"
        assert len(reading.facts["settling"]) == len(reading.values)
        assert reading.values == pytest.approx([seconds] * len(reading.values)), "no sample has the cold step in it"
        assert reading.facts["warmup"][0] == pytest.approx(10 * seconds)


def test_a_step_that_takes_long_anyway_is_not_run_untimed_first():
    clock, (seat,) = table({"long": COLD})
    play([seat])
    reading = seat.reading()
    assert reading.facts["settling"] == []
    assert len(clock.log) == len(reading.facts["warmup"]) + len(reading.values)


def test_warm_up_goes_on_until_the_time_settles_and_is_kept_apart():
    _, (seat,) = table({"a": 0.1}, seconds=10.0, clock=Scripted(1.0, 0.5, 0.2, 0.1, 0.1))
    play([seat])
    reading = seat.reading()
    assert reading.facts["warmup"] == [1.0, 0.5, 0.2, 0.1, 0.1]
    assert set(reading.values) == {0.1}


def test_warm_up_that_never_settles_ends_all_the_same():
    ticks = [0.1 * 1.5**i for i in range(20, 0, -1)]
    _, (seat,) = table({"a": 0.1}, seconds=1e9, clock=Scripted(*ticks))
    seat.warm(2)
    assert seat.warmup == pytest.approx(ticks[:LONGEST_WARMUP])
    _, (seat,) = table({"a": 0.1}, seconds=1.0, clock=Scripted(*ticks))
    seat.warm(3)
    assert seat.warmup == pytest.approx(ticks[:3]), "what was asked for is done, even where the share is spent"


class Launching(FakeClock):
    """Every batch costs a tenth of a millisecond besides its steps."""

    def seconds(self, name, repeats):
        return 1e-4 + self.cost[name] * repeats


def test_a_short_step_alone_is_not_trusted_and_timed_again_in_batches_until_they_are_long_enough():
    cost = {"a": 1e-6}
    clock, (seat,) = table(cost, clock=Launching(cost))
    play([seat])
    assert seat.step_seconds == pytest.approx(1e-6, rel=0.03), "a hundred times less than a single one says"
    assert clock.seconds("a", seat.repeats) >= 0.99 * VISIT
    assert len(seat.warmup) < 10


# A cold step


def test_a_cold_step_is_a_visit_of_its_own_flushed_every_time_and_never_settles():
    clock, (seat,) = table({"a": 0.001}, cold=True)
    play([seat])
    reading = seat.reading()
    assert {(repeats, flushed) for _, repeats, flushed in clock.log} == {(1, True)}
    assert (reading.facts["repeats"], reading.facts["settling"]) == (1, [])
    assert len(clock.log) == len(reading.facts["warmup"]) + len(reading.values)
    assert len(reading.values) == MOST_PASSES


# Who fails


@pytest.mark.parametrize("fails_at", [1, 3, 7])
def test_a_step_that_raises_at_warm_up_at_first_or_later_is_left_out_and_the_others_go_on(fails_at):
    bad = Work("b", fails_at)  # two steps of warm-up, then one a visit
    _, seats = table({"a": 0.1, "b": 0.1, "c": 0.1}, seconds=1.01, b=bad)
    failures, begun = [], []
    alive = take_turns(seats, Budget(), lambda seat, problem: failures.append((seat, str(problem))), begun.append)
    assert failures == [(seats[1], "b broke")]
    assert bad.calls == fails_at, "it is not called again"
    assert begun.count(seats[1]) == max(1, fails_at - 1)
    assert alive == [seats[0], seats[2]]
    assert [len(seat.samples.seconds) for seat in seats] == [10, max(0, fails_at - 3), 10]
    after = [seat for seat in begun[begun.index(seats[1]) :] if seat is not seats[1]][-18:]
    assert all(before is not here for before, here in list(pairwise(after))[::2]), "they still take turns"


def test_a_round_without_anyone_left_ends():
    _, seats = table({"a": 0.1, "b": 0.1}, a=Work("a", 1), b=Work("b", 4))
    failures = []
    assert take_turns(seats, Budget(), lambda seat, _: failures.append(seat), lambda seat: None) == []
    assert failures == seats


# What visits run inside


def test_every_warm_up_and_every_visit_is_one_turn_inside_the_seats_own_settings():
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
    _, seats = table({"a": 0.1, "b": 0.1, "c": 0.001}, seconds=1.01, **works)
    for seat in seats:
        name = seat.step.run.name
        seat.settings = lambda name=name: within(f"settings of {name}")
    take_turns(seats, Budget(), lambda seat, problem: None, lambda seat: None, turn)
    assert set(log) == {(name, "turn", f"settings of {name}") for name in "abc"}
    assert inside == [], "a step that raises gives its turn back"
    assert len(turns_taken) == len(seats) + 10 + 3 + 10, "b raises in its third visit"
    assert len(set(turns_taken)) == len(turns_taken), "something is run in every turn"
