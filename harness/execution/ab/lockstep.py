"""Two sides measure the same tasks at the same time, in processes that take turns visit by visit: A B B A A B B A.

A neighbour, a clock that slows down, a page cache: whatever happens to one visit happens to the other side's visit a
few milliseconds later. Base and head of `ab` are such sides, and so are the two equal ones of `aa`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Protocol

from harness.execution.local import Death, Emit
from harness.execution.stopping import Key, Stopping, is_sampled, log_ratio
from harness.planning import Group
from harness.records import Json, Reading, Record, Task, TaskKind

PATTERN = (0, 1, 1, 0)
"""Who is next, over and over: each side is first as often as second, and a drift cancels within four turns."""

SIDES = (0, 1)
BASE, HEAD = SIDES


class Turnstile:
    """Lets one side through at a time, in `PATTERN`; a side that has left is not waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._inside: int | None = None
        self._present = [False, False]

    def open(self) -> None:
        """Both sides are about to come."""
        with self._changed:
            self._count, self._inside, self._present = 0, None, [True, True]

    def enter(self, side: int) -> None:
        with self._changed:
            self._present[side] = True

    def take(self, side: int) -> None:
        """Return when it is this side's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._inside is None and self._is_next(side))
            self._inside = side

    def give(self, side: int) -> None:
        """This side's turn is over."""
        with self._changed:
            if self._inside == side:
                self._inside = None
                self._count += 1
            self._changed.notify_all()

    def leave(self, side: int) -> None:
        """This side has ended, whether or not it was inside."""
        self.give(side)
        with self._changed:
            self._present[side] = False
            self._changed.notify_all()

    def _is_next(self, side: int) -> bool:
        return PATTERN[self._count % len(PATTERN)] == side or not self._present[1 - side]


class DuelExecutor(Protocol):
    """An executor whose workers can take turns with another one's."""

    def probe(self, names: list[str]) -> Json: ...
    def stop(self) -> None: ...
    def perform(
        self,
        task: Task,
        key: str,
        fingerprint: str,
        emit: Emit,
        *,
        lockstep: bool = False,
        slowed: Mapping[str, float] | None = None,
    ) -> Death | None: ...


class Lockstep:
    """One side's executor: rounds of groups go through the turnstile, everything else as always."""

    def __init__(self, executor: DuelExecutor, turnstile: Turnstile, side: int) -> None:
        self.executor, self.turnstile, self.side = executor, turnstile, side
        self.slowed: Mapping[str, float] = {}
        """Cell id -> injected slowdown."""

    def probe(self, names: list[str]) -> Json:
        return self.executor.probe(names)

    def perform(self, task: Task, key: str, fingerprint: str, emit: Callable[[Json], None]) -> Death | None:
        if task.kind is not TaskKind.VISIT:
            return self.executor.perform(task, key, fingerprint, emit)

        def answer(message: Json) -> Json | None:
            if "turn" in message:
                self.turnstile.take(self.side)
                return {"go": True}
            if "turn_done" in message:
                self.turnstile.give(self.side)
                return None
            emit(message)
            return None

        self.turnstile.enter(self.side)
        try:
            return self.executor.perform(task, key, fingerprint, answer, lockstep=True, slowed=self.slowed)
        finally:
            self.turnstile.leave(self.side)


class Duel:
    """Runs both sides' work on one task at once and waits for both."""

    def __init__(self, executors: Sequence[DuelExecutor]) -> None:
        self.turnstile = Turnstile()
        self.sides = tuple(Lockstep(executor, self.turnstile, side) for side, executor in enumerate(executors))
        self._executors = executors

    def both(self, work: Callable[[int], Any]) -> list[Any]:
        """`work(side)` for both sides at the same time; on Ctrl-C what runs is ended before the exception goes on."""
        self.turnstile.open()

        def guarded(side: int) -> Any:
            try:
                return work(side)
            finally:
                self.turnstile.leave(side)

        with ThreadPoolExecutor(len(SIDES)) as pool:
            coming = [pool.submit(guarded, side) for side in SIDES]
            try:
                # whichever side fails first ends both, also while the other is at work
                for future in wait(coming, return_when=FIRST_EXCEPTION).done:
                    future.result()
                return [future.result() for future in coming]
            except BaseException:
                for side, executor in zip(SIDES, self._executors, strict=True):
                    self.turnstile.leave(side)
                    executor.stop()
                raise


class PairedStopping(Stopping):
    """Looks at head / base of every reading instead of variant / reference."""

    def __init__(self, groups: Sequence[Group], tasks: Sequence[Task]) -> None:
        super().__init__(groups, tasks)
        self._base = Stopping(groups, tasks)

    def learn_from(self, side: int, record: Record) -> None:
        """A record of one side; time is counted on the head's, which waits while the base is measured."""
        (self if side == HEAD else self._base).learn(record)

    def log_ratios(self, group: Group) -> dict[Key, list[float]]:
        logs: dict[Key, list[float]] = defaultdict(list)
        base, head = self._base.rounds_of(group), self.rounds_of(group)
        for round_ in sorted({*base, *head}):
            for key in {*base.get(round_, {}), *head.get(round_, {})}:
                if is_sampled(key[1]):
                    logs[key] += ratio_of(head.get(round_, {}).get(key), base.get(round_, {}).get(key))
        return logs


def ratio_of(head: Reading | None, base: Reading | None) -> list[float]:
    """The round's log ratio as a list of one; of none where either side is missing."""
    return [log_ratio(head, base)] if head is not None and base is not None else []
