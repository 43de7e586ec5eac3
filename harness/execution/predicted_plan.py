"""Predictions of a plan: the memory that each cell would hold at its highest, made in workers; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import psutil
from rich.console import Console

from harness import catalog
from harness.execution.local import MEMORY_SHARE, LocalExecutor
from harness.execution.progress import ProgressDisplay
from harness.planning import Plan
from harness.records import Json, Record, Status, Task, TaskKind, Variant
from harness.worker.messages import Order

METRIC = "predicted_train_memory"

MAX_WORKERS = 4
"""Each worker holds up to a gigabyte."""


@dataclass(frozen=True)
class Prediction:
    """Bytes at the peak of a training step, or None and the reason; `room` is what there is, None if unknown."""

    peak: int | None
    reason: str = ""
    room: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the step fits the room; None where either is unknown."""
        return None if self.peak is None or self.room is None else self.peak <= self.room


def predict_plan(plan: Plan, memory: int | None = None, console: Console | None = None) -> dict[str, Prediction]:
    """Cell id -> prediction. The room is `memory` bytes where given, else what the cell's device has here."""
    budget = plan.suite.budget.for_workers()
    tasks = [Task(TaskKind.CELL, (cell,), (Variant(METRIC),), 0, budget) for cell in plan.cells]
    with ExitStack() as stack:
        # side by side: a prediction has no clock, and one core serves it as well as several
        workers = min(psutil.cpu_count() or 1, MAX_WORKERS, len(tasks))
        executors = [stack.enter_context(LocalExecutor()) for _ in range(workers)]
        idle: SimpleQueue[LocalExecutor] = SimpleQueue()
        for executor in executors:
            idle.put(executor)
        names = list(dict.fromkeys(cell.device.name for cell in plan.cells))
        with _borrowed(idle) as executor:
            rooms = {name: memory or _room(name, executor.probe([name]), budget.memory) for name in names}
        display = stack.enter_context(ProgressDisplay(tasks, console or Console(stderr=True)))

        def predict(task: Task) -> Prediction:
            with _borrowed(idle) as executor:
                return _predict(executor, task, rooms[task.cells[0].device.name])

        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(_stop, pool, executors)
        coming, found = pool.map(predict, tasks), {}
        for number, task in enumerate(tasks):
            display.started(task, number)
            found[task.cells[0].id] = next(coming)
            display.finished(task, number)
    return found


def _stop(pool: ThreadPoolExecutor, executors: Sequence[LocalExecutor]) -> None:
    """After Ctrl-C: what has not begun does not begin, and what runs is ended."""
    pool.shutdown(wait=False, cancel_futures=True)
    for executor in executors:
        executor.stop()


@contextmanager
def _borrowed(idle: SimpleQueue[LocalExecutor]) -> Iterator[LocalExecutor]:
    """An executor that nobody else uses meanwhile."""
    executor = idle.get()
    try:
        yield executor
    finally:
        idle.put(executor)


def _predict(executor: LocalExecutor, task: Task, room: int | None) -> Prediction:
    records: list[Record] = []

    def emit(message: Json) -> None:
        if "record" in message:
            records.append(Record.from_json(message["record"]))

    death = executor.perform(Order(task, task.key, ""), emit)
    if death is not None:
        return Prediction(None, f"{death.status}: {death.reason}", room)
    (record,) = records
    if record.status is not Status.OK:
        return Prediction(None, f"{record.status}: {record.reason}", room)
    return Prediction(int(record.readings[0].values[0]), "", room)


def _room(name: str, probe: Json, limit: int | None) -> int | None:
    """Bytes that a task may use on a device; on the CPU a run holds its tasks to this."""
    if catalog.device(name)["host"]:
        return limit or int(MEMORY_SHARE * psutil.virtual_memory().total)
    facts: Mapping[str, Json] = probe["devices"][name].get("facts") or {}
    return facts.get("memory_bytes")
