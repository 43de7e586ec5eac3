"""The worker: one order in, records out.

`perform` runs in this very process; process.py calls it in a fresh one. What it emits is described in messages.py.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
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
from harness.measuring.turns import TimedStep, Turn, interleave
from harness.metrics import METRICS
from harness.records import Cell, Json, Reading, Record, Status, TaskKind, Variant
from harness.worker.binding import bound_to, cores_for
from harness.worker.messages import Emit, Order


def perform(order: Order, emit: Emit) -> None:
    """Measure all that the order's task asks for and emit a record for each cell and metric, whatever happens."""
    writer, task = _RecordWriter(order, emit), order.task
    for wanted in task.metrics:
        if task.kind is TaskKind.VISIT:
            with bound_to(cores := cores_for(task.cells)):
                _visit(writer, wanted, {"cores": cores} if cores else {})
        else:
            for cell in task.cells:
                with writer.recording(cell, wanted.name) as entry:
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
class _RecordWriter:
    """Emits the records of one order, and before each what is begun."""

    order: Order
    emit: Emit

    def begin(self, cell: Cell, metric: str) -> None:
        self.emit({"begin": [cell.id, metric]})

    @contextmanager
    def recording(self, cell: Cell, metric: str) -> Iterator[_Entry]:
        """Begin a record and emit it at the end; an exception becomes its status."""
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
            task=self.order.key,
            kind=self.order.task.kind,
            cell=entry.cell.id,
            metric=entry.metric,
            round=self.order.task.round,
            fingerprint=self.order.fingerprint,
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


def _visit(writer: _RecordWriter, wanted: Variant, facts: Mapping[str, Json]) -> None:
    """One round of one timed metric: the steps of every variant of the group, interleaved."""
    metric, task = METRICS[wanted.name], writer.order.task
    entries = [_Entry(cell, wanted.name, time.perf_counter()) for cell in task.cells]
    steps: list[TimedStep] = []
    entry_of: dict[int, _Entry] = {}
    for entry in entries:
        for step in _timed_steps(writer, entry, metric, wanted):
            steps.append(step)
            entry_of[id(step)] = entry

    def failed(step: TimedStep, problem: Exception) -> None:
        entry_of[id(step)].problem = problem

    def begin(step: TimedStep) -> None:
        writer.begin(entry_of[id(step)].cell, wanted.name)

    interleave(steps, task.budget, failed, begin, _turns(writer.emit) if writer.order.lockstep else nullcontext)
    for step in steps:
        if step.samples.seconds:
            reading = step.reading()
            entry_of[id(step)].readings.append(replace(reading, facts={**reading.facts, **facts}))
    out = [entry.cell.block.label for entry in entries if entry.problem and status_of(entry.problem).failed]
    for entry in entries:
        if out and not entry.problem:
            entry.status, entry.reason = Status.PARTIAL, f"its group had lost {', '.join(out)} in this round"
        writer.send(entry)


def _turns(emit: Emit) -> Turn:
    """What a visit runs inside when another process takes turns with this one: ask, wait for the reply, release."""

    @contextmanager
    def turn() -> Iterator[None]:
        emit({"turn": True})
        try:
            yield
        finally:
            emit({"turn_done": True})

    return turn


def _timed_steps(writer: _RecordWriter, entry: _Entry, metric: Metric, wanted: Variant) -> list[TimedStep]:
    """Build one variant's steps; a variant that cannot be built fails alone."""
    writer.begin(entry.cell, wanted.name)
    try:
        subject = Subject(entry.cell)
        with subject.settings():
            steps = metric.steps(subject, wanted.options)
        share = writer.order.task.budget.seconds / len(steps)
        slowdown = writer.order.slowed.get(entry.cell.id, 0.0)
        facts: dict[str, Json] = {"slowed": slowdown} if slowdown else {}
        steps = [replace(step, facts={**step.facts, **facts}) for step in steps]
        return [TimedStep(step, Clock(subject.device, slowdown), subject.settings, share) for step in steps]
    except Exception as problem:  # as in `recording`
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
