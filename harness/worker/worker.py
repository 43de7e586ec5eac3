"""The worker: one task in, records out. The only room of execution that imports torch.

`perform` runs in this very process; local.py calls it in a fresh one. Besides records it emits *beginnings*, so that
whoever watches knows which variant and metric was in hand when the process died.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from harness import devices
from harness.devices import Clock
from harness.errors import HarnessError, Unsupported
from harness.measuring.explaining import explained
from harness.measuring.metric import Metric
from harness.measuring.subject import Subject
from harness.measuring.trials import is_out_of_memory
from harness.measuring.turns import Seat, Turn, take_turns
from harness.metrics import METRICS
from harness.records import Cell, Json, Reading, Record, Status, Task, TaskKind, Variant
from harness.worker.binding import bound_to, cores_for

Emit = Callable[[Json], object]
"""Takes ``{"begin": [cell, metric]}`` or ``{"record": {...}}``."""


def perform(
    task: Task,
    key: str,
    fingerprint: str,
    emit: Emit,
    *,
    turn: Turn = nullcontext,
    slowed: Mapping[str, float] | None = None,
) -> None:
    """Measure all that `task` asks for and emit a record for each cell and metric, whatever happens in them.

    `turn`: what every visit runs inside. `slowed`: cell id -> the share by which a batch of steps is made longer.
    """
    desk = _Desk(task, key, fingerprint, emit, slowed or {})
    for wanted in task.metrics:
        if task.kind is TaskKind.VISIT:
            with bound_to(cores := cores_for(task.cells)):
                _visit(desk, wanted, turn, {"cores": cores} if cores else {})
        else:
            for cell in task.cells:
                with desk.caught(cell, wanted.name) as entry:
                    metric, subject = (
                        METRICS[wanted.name],
                        Subject(cell, seed=task.round if task.kind is TaskKind.TRAINING else 0),
                    )
                    with subject.settings(metric.on_device):
                        entry.readings = metric.readings(subject, wanted.options)


@dataclass
class _Entry:
    """A record in the making."""

    cell: Cell
    metric: str
    started: float
    readings: list[Reading] = field(default_factory=list)
    problem: Exception | None = None
    status: Status = Status.OK
    reason: str = ""


@dataclass
class _Desk:
    """Where records are filled in and sent off."""

    task: Task
    key: str
    fingerprint: str
    emit: Emit
    slowed: Mapping[str, float]

    def begin(self, cell: Cell, metric: str) -> None:
        self.emit({"begin": [cell.id, metric]})

    @contextmanager
    def caught(self, cell: Cell, metric: str) -> Iterator[_Entry]:
        """Begin a record and send it off at the end; an exception becomes its status."""
        self.begin(cell, metric)
        entry = _Entry(cell, metric, time.perf_counter())
        try:
            yield entry
        except Exception as problem:  # a block's failure is a result like any other
            entry.problem = problem
        self.send(entry)

    def send(self, entry: _Entry) -> None:
        problem = explained(entry.problem, entry.cell) if entry.problem else None
        record = Record(
            task=self.key,
            kind=self.task.kind,
            cell=entry.cell.id,
            metric=entry.metric,
            round=self.task.round,
            fingerprint=self.fingerprint,
            status=status_of(problem) if problem else entry.status,
            readings=tuple(entry.readings),
            reason=_one_line(problem) if problem else entry.reason,
            traceback="".join(traceback.format_exception(problem)) if problem else "",
            seconds=time.perf_counter() - entry.started,
        )
        self.emit({"record": record.to_json()})


def _one_line(problem: Exception) -> str:
    if isinstance(problem, HarnessError):
        return f"{problem.problem} (try: {problem.remedy})"
    return f"{type(problem).__name__}: {problem}".strip().splitlines()[0][:300]


def status_of(problem: Exception) -> Status:
    """Which status an exception stands for."""
    if isinstance(problem, Unsupported | NotImplementedError):
        return Status.UNSUPPORTED
    return Status.OOM if is_out_of_memory(problem) else Status.ERROR


def _visit(desk: _Desk, wanted: Variant, turn: Turn, facts: Mapping[str, Json]) -> None:
    """One round of one timed metric: every variant of the group at the table, taking turns."""
    metric, budget = METRICS[wanted.name], desk.task.budget
    entries = {cell.id: _Entry(cell, wanted.name, time.perf_counter()) for cell in desk.task.cells}
    seats: list[Seat] = []
    whose: dict[int, _Entry] = {}
    for entry in entries.values():
        for seat in _seats(desk, entry, metric, wanted):
            seats.append(seat)
            whose[id(seat)] = entry

    def failed(seat: Seat, problem: Exception) -> None:
        whose[id(seat)].problem = problem

    take_turns(seats, budget, failed, lambda seat: desk.begin(whose[id(seat)].cell, wanted.name), turn)
    for seat in seats:
        if seat.samples.seconds:
            reading = seat.reading()
            whose[id(seat)].readings.append(replace(reading, facts={**reading.facts, **facts}))
    lost = [entry.cell.block.label for entry in entries.values() if entry.problem and status_of(entry.problem).failed]
    for entry in entries.values():
        if lost and not entry.problem:
            entry.status, entry.reason = Status.PARTIAL, f"its group had lost {', '.join(lost)} in this round"
        desk.send(entry)


def _seats(desk: _Desk, entry: _Entry, metric: Metric, wanted: Variant) -> list[Seat]:
    """Build one variant's steps; a variant that cannot be built fails alone."""
    desk.begin(entry.cell, wanted.name)
    try:
        subject = Subject(entry.cell)
        with subject.settings():
            steps = metric.steps(subject, wanted.options)
        share = desk.task.budget.seconds / len(steps)
        slowdown = desk.slowed.get(entry.cell.id, 0.0)
        told: dict[str, Json] = {"slowed": slowdown} if slowdown else {}
        return [
            Seat(replace(step, facts={**step.facts, **told}), Clock(subject.device, slowdown), subject.settings, share)
            for step in steps
        ]
    except Exception as problem:  # as in `caught`
        entry.problem = problem
        return []


def probe(names: list[str]) -> Json:
    """What is known of each device here: facts when it is available, the reason when it is not."""
    found = {}
    for name in names:
        device = devices.get(name)
        absent = device.available()
        found[name] = {"absent": absent} if absent else {"absent": None, "facts": device.facts(), "now": device.state()}
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "devices": found}
