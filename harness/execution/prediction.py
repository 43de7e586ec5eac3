"""What each cell of a plan would hold in memory at its highest, predicted in worker processes; nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import psutil
from rich.console import Console

from harness.execution.local import MEMORY_SHARE, LocalExecutor
from harness.execution.progress import ProgressDisplay
from harness.planning import Plan
from harness.records import Json, Record, Status, Task, TaskKind, Variant

METRIC = "predicted_train_memory"


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
    found: dict[str, Prediction] = {}
    with ExitStack() as stack:
        executor = stack.enter_context(LocalExecutor())
        names = list(dict.fromkeys(cell.device.name for cell in plan.cells))
        rooms = {name: memory or _room(name, executor.probe([name]), budget.memory) for name in names}
        display = stack.enter_context(ProgressDisplay(tasks, console or Console(stderr=True)))
        for number, task in enumerate(tasks):
            (cell,) = task.cells
            display.started(task, number)
            found[cell.id] = _predict(executor, task, rooms[cell.device.name])
            display.finished(task, number)
    return found


def _predict(executor: LocalExecutor, task: Task, room: int | None) -> Prediction:
    records: list[Record] = []

    def emit(message: Json) -> None:
        if "record" in message:
            records.append(Record.from_json(message["record"]))

    death = executor.perform(task, task.key, "", emit)
    if death is not None:
        return Prediction(None, f"{death.status}: {death.reason}", room)
    (record,) = records
    if record.status is not Status.OK:
        return Prediction(None, f"{record.status}: {record.reason}", room)
    return Prediction(int(record.readings[0].values[0]), "", room)


def _room(name: str, probe: Json, limit: int | None) -> int | None:
    """Bytes that a task may use on a device; on the CPU a run holds its tasks to this."""
    if name == "cpu":
        return limit or int(MEMORY_SHARE * psutil.virtual_memory().total)
    facts: Mapping[str, Json] = probe["devices"][name].get("facts") or {}
    return facts.get("memory_bytes")
