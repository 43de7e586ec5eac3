"""Execution in lockstep: two sides measure the same tasks at once and take turns visit by visit, A B B A A B B A.

Another process, a clock that slows down, a page cache: whatever happens to one visit happens to the other side's visit
a few milliseconds later. Base and head of `ab` are such sides, and so are the two equal ones of `aa`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Self

from harness.execution.executor import Death, Executor
from harness.execution.stopping import Key, Stopping
from harness.planning import Group
from harness.records import Json, Reading, Record, Task, TaskKind
from harness.worker.messages import Emit, Order, asks

PATTERN = (0, 1, 1, 0)
"""Who is next, over and over: each side is first as often as second, and a drift cancels within four turns."""

SIDES = (0, 1)
BASE, HEAD = SIDES


class Alternator:
    """A lock that two sides hold by turns, in `PATTERN`; a side that has left is not waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turns = 0
        self._holder: int | None = None
        self._present = [False, False]

    def reset(self) -> None:
        """Both sides are about to come."""
        with self._changed:
            self._turns, self._holder, self._present = 0, None, [True, True]

    def join(self, side: int) -> None:
        """From now on this side is waited for."""
        with self._changed:
            self._present[side] = True

    def acquire(self, side: int) -> None:
        """Return when it is this side's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._holder is None and self._is_next(side))
            self._holder = side

    def release(self, side: int) -> None:
        """This side's turn is over."""
        with self._changed:
            if self._holder == side:
                self._holder = None
                self._turns += 1
            self._changed.notify_all()

    def leave(self, side: int) -> None:
        """This side has ended, whether or not it held the lock."""
        self.release(side)
        with self._changed:
            self._present[side] = False
            self._changed.notify_all()

    def _is_next(self, side: int) -> bool:
        return PATTERN[self._turns % len(PATTERN)] == side or not self._present[1 - side]


class AlternatingExecutor(Executor):
    """One side's executor: the visits of its rounds alternate with the other side's, everything else is as always."""

    def __init__(self, executor: Executor, alternator: Alternator, side: int) -> None:
        self.executor, self.alternator, self.side = executor, alternator, side
        self.slowed: Mapping[str, float] = {}
        """Cell id -> injected slowdown."""

    def __enter__(self) -> Self:
        self.executor.__enter__()
        return self

    def probe(self, names: list[str]) -> Json:
        return self.executor.probe(names)

    def stop(self) -> None:
        self.alternator.leave(self.side)
        self.executor.stop()

    def perform(self, order: Order, emit: Emit) -> Death | None:
        if order.task.kind is not TaskKind.VISIT:
            return self.executor.perform(order, emit)

        def answer(message: Json) -> Json | None:
            if asks(message):
                self.alternator.acquire(self.side)
                return {"go": True}
            if "turn_done" in message:
                self.alternator.release(self.side)
                return None
            return emit(message)

        self.alternator.join(self.side)
        try:
            return self.executor.perform(replace(order, lockstep=True, slowed=self.slowed), answer)
        finally:
            self.alternator.leave(self.side)


class PairedExecutors:
    """Runs both sides' work on one task at once and waits for both."""

    def __init__(self, executors: Sequence[Executor]) -> None:
        self.alternator = Alternator()
        self.sides = tuple(
            AlternatingExecutor(executor, self.alternator, side) for side, executor in enumerate(executors)
        )

    def run_both(self, work: Callable[[int], Any]) -> list[Any]:
        """`work(side)` for both sides at the same time; on Ctrl-C what runs is ended before the exception goes on."""
        self.alternator.reset()

        def guarded(side: int) -> Any:
            try:
                return work(side)
            finally:
                self.alternator.leave(side)

        with ThreadPoolExecutor(len(SIDES)) as pool:
            coming = [pool.submit(guarded, side) for side in SIDES]
            try:
                # whichever side fails first ends both, also while the other is at work
                for future in wait(coming, return_when=FIRST_EXCEPTION).done:
                    future.result()
                return [future.result() for future in coming]
            except BaseException:
                for side in self.sides:
                    side.stop()
                raise


class PairedStopping(Stopping):
    """Looks at head / base of every reading instead of variant / reference."""

    def __init__(self, groups: Sequence[Group], tasks: Sequence[Task]) -> None:
        super().__init__(groups, tasks)
        self._base = Stopping(groups, tasks)

    def learn_from(self, side: int, record: Record) -> None:
        """A record of one side; time is counted on the head's, which waits while the base is measured."""
        (self if side == HEAD else self._base).learn(record)

    def compared(self, group: Group) -> Iterator[tuple[Key, Reading | None, Reading | None]]:
        bases, heads = self._base.rounds_of(group), self.rounds_of(group)
        for round_ in sorted({*bases, *heads}):
            base, head = bases.get(round_, {}), heads.get(round_, {})
            for key in {*base, *head}:
                yield key, head.get(key), base.get(key)
