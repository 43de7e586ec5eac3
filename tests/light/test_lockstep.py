"""Two sides take turns: the alternator with threads, executors that are scripted, looks at head / base."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from harness.execution.ab.lockstep import BASE, HEAD, AlternatingExecutor, Alternator, PairedExecutors, PairedStopping
from harness.execution.executor import Death
from harness.planning import plan
from harness.records import Budget, Reading, Record, Status, Task, TaskKind
from harness.worker.messages import Order

PATIENCE = 20.0
"""Seconds after which a thread that should have come through is called stuck; none of them ever needs one."""


def together(*works):
    """Run all at once; an AssertionError when one of them hangs."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"


def visitor(alternator, side, times, log):
    def visit():
        alternator.join(side)
        for _ in range(times):
            alternator.acquire(side)
            log.append(side)
            alternator.release(side)
        alternator.leave(side)

    return visit


@pytest.fixture
def alternator():
    found = Alternator()
    found.reset()
    return found


def test_turns_are_a_b_b_a_over_and_over(alternator):
    log = []
    together(visitor(alternator, HEAD, 20, log), visitor(alternator, BASE, 20, log))
    assert log == [BASE, HEAD, HEAD, BASE] * 10


def test_one_side_does_not_get_the_lock_while_the_other_holds_it(alternator):
    inside, most = [], []

    def visit(side):
        for _ in range(200):
            alternator.acquire(side)
            inside.append(side)
            most.append(len(inside))
            inside.remove(side)
            alternator.release(side)
        alternator.leave(side)

    together(lambda: visit(BASE), lambda: visit(HEAD))
    assert len(most) == 400
    assert max(most) == 1


@pytest.mark.parametrize("first", [BASE, HEAD])
def test_a_side_that_leaves_early_does_not_block_the_other(alternator, first):
    log = []
    together(visitor(alternator, first, 3, log), visitor(alternator, 1 - first, 11, log))
    assert (log.count(first), log.count(1 - first)) == (3, 11)
    assert log[:4] == [BASE, HEAD, HEAD, BASE]


@pytest.mark.parametrize("present", [BASE, HEAD])
def test_a_side_that_never_comes_does_not_block_the_other(alternator, present):
    log = []
    together(visitor(alternator, present, 5, log), lambda: alternator.leave(1 - present))
    assert log == [present] * 5


def test_a_side_that_dies_in_its_turn_releases_it(alternator):
    log = []

    def dies():
        alternator.acquire(BASE)
        alternator.leave(BASE)

    together(dies, visitor(alternator, HEAD, 3, log))
    assert log == [HEAD] * 3


def test_a_side_that_was_away_and_is_back_is_waited_for_again(alternator):
    log = []
    visitor(alternator, BASE, 1, log)()
    alternator.join(BASE)
    together(visitor(alternator, HEAD, 3, log), visitor(alternator, BASE, 3, log))
    assert log == [BASE, HEAD, HEAD, BASE, BASE, HEAD, BASE]


def test_a_side_that_comes_back_during_a_turn_of_the_other_waits_until_that_is_over(alternator):
    alternator.leave(BASE)
    alternator.acquire(HEAD)
    alternator.join(BASE)
    came = threading.Event()
    threading.Thread(target=lambda: (alternator.acquire(BASE), came.set()), daemon=True).start()
    assert not came.wait(0.2)
    alternator.leave(HEAD)
    assert came.wait(PATIENCE)


ORDER = Order(Task(TaskKind.VISIT, (), (), 0, Budget()), "key", "print")


class Scripted:
    """An executor whose worker sends `messages`; `replies` is what came back, `order` what was asked for last."""

    def __init__(self, messages=(), death=None):
        self.messages, self.death = messages, death
        self.replies, self.order, self.stopped = [], None, threading.Event()

    def probe(self, names):
        return {"devices": names}

    def perform(self, order, emit):
        self.order = order
        self.replies += [emit(message) for message in self.messages]
        return self.death

    def stop(self):
        self.stopped.set()


def test_an_alternating_executor_answers_every_turn_and_hands_on_what_is_not_about_turns(alternator):
    scripted = Scripted([{"begin": ["c", "m"]}, {"turn": True}, {"turn_done": True}, {"record": {}}])
    side, heard = AlternatingExecutor(scripted, alternator, BASE), []
    side.slowed = {"c": 0.05}
    assert side.perform(ORDER, heard.append) is None
    assert scripted.replies == [None, {"go": True}, None, None]
    assert heard == [{"begin": ["c", "m"]}, {"record": {}}]
    assert scripted.order == replace(ORDER, lockstep=True, slowed={"c": 0.05})
    assert side.probe(["cpu"]) == {"devices": ["cpu"]}


def test_clockless_work_needs_no_turns(alternator):
    scripted, heard = Scripted([{"record": {}}]), []
    clockless = replace(ORDER, task=replace(ORDER.task, kind=TaskKind.CELL))
    AlternatingExecutor(scripted, alternator, HEAD).perform(clockless, heard.append)
    assert (scripted.order, heard) == (clockless, [{"record": {}}])


def test_a_worker_that_dies_in_its_turn_does_not_block_the_other_side(alternator):
    death = Death(Status.KILLED, "gone", "")
    side, log = AlternatingExecutor(Scripted([{"turn": True}], death), alternator, BASE), []
    together(lambda: log.append(side.perform(ORDER, print)), visitor(alternator, HEAD, 2, log))
    assert sorted(map(str, log)) == sorted(map(str, [death, HEAD, HEAD]))


def test_both_sides_visits_alternate_when_their_workers_ask_for_turns():
    turns = []

    class Visits(Scripted):
        def perform(self, order, emit):
            for _ in range(6):
                assert emit({"turn": True}) == {"go": True}
                turns.append(self)
                emit({"turn_done": True})

    scripted = [Visits(), Visits()]
    pair = PairedExecutors(scripted)
    pair.run_both(lambda side: pair.sides[side].perform(ORDER, print))
    assert [scripted.index(one) for one in turns] == [0, 1, 1, 0] * 3


class Endless(Scripted):
    """Performs until it is stopped."""

    def perform(self, order, emit):
        assert self.stopped.wait(PATIENCE), "nobody stopped it"
        raise RuntimeError("stopped")


def test_an_exception_on_one_side_stops_what_the_other_performs():
    executors = [Scripted(), Endless()]
    pair = PairedExecutors(executors)

    def work(side):
        if side == BASE:
            raise KeyboardInterrupt
        pair.sides[side].perform(ORDER, print)

    with pytest.raises(KeyboardInterrupt):
        pair.run_both(work)
    assert all(executor.stopped.is_set() for executor in executors)


def test_an_exception_on_the_second_side_stops_the_first_as_well():
    executors = [Endless(), Scripted()]
    pair = PairedExecutors(executors)

    def work(side):
        if side == HEAD:
            raise OSError("the disk is full")
        pair.sides[side].perform(ORDER, print)

    with pytest.raises(OSError, match="disk is full"):
        pair.run_both(work)
    assert all(executor.stopped.is_set() for executor in executors)


def test_both_returns_what_each_side_gave():
    assert PairedExecutors([Scripted(), Scripted()]).run_both(lambda side: f"side {side}") == ["side 0", "side 1"]


# Looks at head / base


@pytest.fixture
def made(suite_of):
    return plan(suite_of("axes: {block: [conv, acb], backbone: layer}\nmetrics: [latency]\nbudget: {precision: 0.05}"))


def record(task, cell, values, status=Status.OK, seconds=1.0):
    readings = (Reading("latency", "train", "s", values, {"order": list(range(len(values)))}),)
    readings = readings if status.measured else ()
    return Record(task.key, task.kind, cell.id, "latency", task.round, "p", status, readings, seconds=seconds)


def test_ratios_are_of_the_same_cell_on_both_sides_pass_by_pass_the_reference_included(made):
    stopping = PairedStopping(made.groups, made.tasks)
    ratios = np.exp(np.random.default_rng(0).normal(np.log(1.1), 0.02, (4, 2)))
    for task in made.tasks[:4]:
        for cell in task.cells:
            ratio = ratios[task.round, int(cell.block.name == "acb")]
            base = (1.0, 3.0, 1.0)  # another process takes the second pass of both
            stopping.learn_from(BASE, record(task, cell, base))
            stopping.learn_from(HEAD, record(task, cell, tuple(ratio * value for value in base)))
    (group,) = made.groups
    for number, cell in enumerate(group.cells):
        logs = stopping.log_ratios(group)[cell.id, "latency", "train"]
        assert logs == pytest.approx(np.log(ratios[:, number]))
        low, high = stats.ttest_1samp(logs, 0).confidence_interval(0.9975)
        assert stopping.widths(group, 0.9975)[cell.id, "latency", "train"] == pytest.approx(np.exp(high - low) - 1)


def test_a_round_that_one_side_lacks_gives_no_ratio_and_a_side_that_failed_none_either(made):
    stopping = PairedStopping(made.groups, made.tasks)
    first, second, third = made.tasks[:3]
    cell = first.cells[0]
    for side in (BASE, HEAD):
        stopping.learn_from(side, record(first, cell, (1.0 + side, 1.0 + side)))
    stopping.learn_from(HEAD, record(second, cell, (5.0, 5.0)))
    stopping.learn_from(BASE, record(third, cell, (5.0, 5.0)))
    stopping.learn_from(HEAD, record(third, cell, (), Status.OOM))
    (logs,) = stopping.log_ratios(made.groups[0]).values()
    assert logs == pytest.approx([np.log(2)])


def test_the_groups_seconds_are_counted_once_and_a_look_settles_for_both_sides(made):
    stopping = PairedStopping(made.groups, made.tasks)
    for task in made.tasks[:4]:
        for cell in task.cells:
            for side in (BASE, HEAD):
                stopping.learn_from(side, record(task, cell, (1.0, 1.0), seconds=3.0))
    look = stopping.look(made.tasks[3], "p")
    assert (look.facts["rule"], look.facts["seconds"]) == ("precision", 12.0)
    stopping.learn_from(HEAD, look)
    assert all(stopping.settled(task) for task in made.tasks[4:])
    assert not stopping.settled(made.tasks[3])
