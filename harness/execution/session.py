"""A session: one pass over a run's open tasks, from the first to the last.

The loop is plain: take a task, let the executor perform it, append every record at once. A worker that dies leaves
the (cell, metric) that was under way as a failed record; what is still missing of the task is tried again without it.
A group that does not fit into memory together is measured variant by variant (apart.py), and one whose ratios are
known well enough is measured no further (stopping.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from harness.errors import HarnessError
from harness.execution.apart import halves, joined, reason_in
from harness.execution.executor import Death, Executor
from harness.planning import Group
from harness.records import Json, Record, Status, Task, TaskKind
from harness.store.journal import Journal
from harness.worker.messages import Order

STRIKES = 2
"""Failures after which a variant is left out of its group's later rounds."""

INCOMPLETE = "its group had lost a variant in this round"

Pair = tuple[str, str]
"""A cell's id and a metric's name: what one record is about."""


class Watcher(Protocol):
    """What shows the progress of a session."""

    def started(self, task: Task, number: int) -> None: ...

    def recorded(self, record: Record) -> None: ...

    def finished(self, task: Task, number: int) -> None: ...


class StoppingRule(Protocol):
    """What decides that a group has been measured enough (stopping.py)."""

    def learn(self, record: Record) -> None: ...

    def settled(self, task: Task) -> bool: ...

    def look(self, task: Task, fingerprint: str) -> Record | None: ...

    def group_of_cell(self, cell: str) -> Group | None: ...


@dataclass
class Session:
    """One pass over the open tasks, with all that it needs."""

    executor: Executor
    journal: Journal
    fingerprint: str
    watcher: Watcher
    stopping: StoppingRule
    absent: dict[str, str] = field(default_factory=dict)
    """Device name -> why it is not here; its cells are skipped."""
    strikes: dict[tuple[TaskKind, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    """Rounds in which a variant failed: however often it was tried in one of them."""
    refused: dict[Pair, Record] = field(default_factory=dict)
    """Unsupported pairs: they will not become supported in a later round."""
    apart: dict[str, str] = field(default_factory=dict)
    """Cell -> why its group is measured apart."""

    def work(self, tasks: Sequence[Task], open_work: dict[str, set[Pair]]) -> None:
        """Do whatever of `tasks` has (cell, metric) pairs in `open_work` and is not made unnecessary by a look."""
        for number, task in enumerate(tasks):
            self.step(task, open_work.get(task.key, set()), number)

    def step(self, task: Task, pending: set[Pair], number: int) -> None:
        """One task, and the look after it where one is due."""
        if pending and not self.stopping.settled(task):
            self.watcher.started(task, number)
            self._do(task, pending)
        look = self.stopping.look(task, self.fingerprint)
        if look is not None:
            self._append(look)
        self.watcher.finished(task, number)

    def append_look(self, look: Record) -> None:
        """Write down a look that was taken elsewhere."""
        self._append(replace(look, fingerprint=self.fingerprint))

    def remember(self, records: Sequence[Record]) -> None:
        """What an earlier part of this run has learned about its variants."""
        for record in records:
            self._learn(record)

    def _do(self, task: Task, pending: set[Pair]) -> None:
        settled = self._settle_without_running(task, pending)
        pending = pending - settled
        if task.kind is TaskKind.VISIT:
            why = self.apart.get(task.cells[0].id) or self._together(task, pending)
            if why:
                rest = task.expects() - settled
                self._apart(task, rest - self._settle_without_running(task, rest), why)
        else:
            self._complete(task, pending)

    def _together(self, task: Task, pending: set[Pair]) -> str:
        """All variants in one process; why they cannot share it, when memory was too short for all together."""
        several = len({cell for cell, _ in pending}) > 1
        try:
            self._complete(task, pending, shared=several)
        except _TooLargeTogether as problem:
            self.apart |= {cell.id: str(problem) for cell in task.cells}
            return str(problem)
        return ""

    def _apart(self, task: Task, pending: set[Pair], why: str) -> None:
        """Each variant in processes of its own, forward and backward; its halves are recorded as one."""
        parts: dict[Pair, list[Record]] = {}
        failed: set[str] = set()
        for half in halves(_part(task, pending)):
            own = {pair for pair in pending if pair[0] == half.cells[0].id}
            if own:
                self._complete(half, own, keep=lambda r: parts.setdefault((r.cell, r.metric), []).append(r))
            for pair in own:
                found = parts.get(pair, [])
                if len(found) == 2 or (found and not found[-1].status.measured):
                    record = joined(parts.pop(pair), why)
                    failed |= {pair[0]} if record.status.failed else set()
                    if failed and record.status is Status.OK:
                        record = replace(record, status=Status.PARTIAL, reason=INCOMPLETE)
                    self._append(replace(record, task=task.key))
                    pending = pending - {pair}

    def _complete(
        self, task: Task, pending: set[Pair], shared: bool = False, keep: Callable[[Record], None] | None = None
    ) -> None:
        """Processes until nothing is pending: each goes on without what the one before it died of.

        Where several variants share the process (`shared`) running out of memory raises _TooLargeTogether: no variant
        is to blame for what they need together. Records go into the journal, or to `keep`.
        """
        keep = keep or self._append
        failed: list[str] = []
        while pending:
            part = _part(task, pending)
            got, current, death = self._perform(part, task.key, failed, keep, shared)
            if shared and death and death.status is Status.OOM:
                raise _TooLargeTogether(death.reason)
            pending = pending - got
            culprits = _culprits(task, pending, current) if death else set(pending)
            death = death or Death(Status.ERROR, "the worker ended without a record", "")
            for cell, metric in sorted(culprits):
                keep(_death_record(task, cell, metric, death, self.fingerprint))
                failed.append(cell)
            pending = pending - culprits

    def _settle_without_running(self, task: Task, pending: set[Pair]) -> set[Pair]:
        """Records for pairs that need no process: absent devices, two strikes, known refusals."""
        settled = set()
        for cell in task.cells:
            for metric in {m for c, m in pending if c == cell.id}:
                status, reason = self._known_outcome(task, cell.id, cell.device.name, metric)
                if status is not None:
                    record = _blank_record(task, cell.id, metric, self.fingerprint)
                    self._append(replace(record, status=status, reason=reason))
                    settled.add((cell.id, metric))
        return settled

    def _known_outcome(self, task: Task, cell: str, device: str, metric: str) -> tuple[Status | None, str]:
        if device in self.absent:
            return Status.SKIPPED, f"{device}: {self.absent[device]}"
        if (cell, metric) in self.refused:
            return Status.UNSUPPORTED, self.refused[cell, metric].reason
        if task.kind in (TaskKind.VISIT, TaskKind.FIRST) and len(self.strikes[task.kind, cell]) >= STRIKES:
            return Status.SKIPPED, f"left out after {STRIKES} failed rounds"
        return None, ""

    def _perform(
        self, task: Task, key: str, failed: list[str], keep: Callable[[Record], None], shared: bool
    ) -> tuple[set[Pair], Pair | None, Death | None]:
        """Run one process: what it recorded, what it had begun last, and how it died if it did."""
        got: set[Pair] = set()
        begun: list[Pair] = []
        out_of_memory: list[str] = []

        def emit(message: Json) -> None:
            if "begin" in message:
                begun[:] = [tuple(message["begin"])]
                return
            record = Record.from_json(message["record"])
            if shared and record.status is Status.OOM:
                out_of_memory.append(record.reason)
                return
            if record.status is Status.OK and failed and task.kind is TaskKind.VISIT:
                record = replace(record, status=Status.PARTIAL, reason=INCOMPLETE)
            keep(record)
            got.add((record.cell, record.metric))

        death = self.executor.perform(Order(task, key, self.fingerprint), emit)
        if out_of_memory:
            raise _TooLargeTogether(out_of_memory[0])
        return got, begun[0] if begun else None, death

    def _append(self, record: Record) -> None:
        self.journal.append(record)
        self._learn(record)
        self.watcher.recorded(record)

    def _learn(self, record: Record) -> None:
        self.stopping.learn(record)
        if why := reason_in(record):
            group = self.stopping.group_of_cell(record.cell)
            self.apart |= {cell.id: why for cell in group.cells} if group else {}
        if record.status is Status.UNSUPPORTED:
            self.refused[record.cell, record.metric] = record
        if record.status.failed:
            self.strikes[record.kind, record.cell].add(record.round)


class _TooLargeTogether(Exception):
    """The variants of a group do not fit into memory together."""


def _part(task: Task, pending: set[Pair]) -> Task:
    """What of a task is still pending: its cells and metrics, in their order."""
    cells, metrics = {cell for cell, _ in pending}, {metric for _, metric in pending}
    return replace(
        task,
        cells=tuple(cell for cell in task.cells if cell.id in cells),
        metrics=tuple(metric for metric in task.metrics if metric.name in metrics),
    )


def _culprits(task: Task, pending: set[Pair], current: Pair | None) -> set[Pair]:
    """What a death is put down to: the metric under way, or in a visit all that its variant still lacks."""
    if current is None:
        return set(pending)
    if task.kind is TaskKind.VISIT:
        return {pair for pair in pending if pair[0] == current[0]} or set(pending)
    return {current} & pending or set(pending)


def _blank_record(task: Task, cell: str, metric: str, fingerprint: str) -> Record:
    return Record(task.key, task.kind, cell, metric, task.round, fingerprint, Status.SKIPPED)


def _death_record(task: Task, cell: str, metric: str, death: Death, fingerprint: str) -> Record:
    blank = _blank_record(task, cell, metric, fingerprint)
    return replace(blank, status=death.status, reason=death.reason, output=death.output)


def absent_devices(probe: Json) -> dict[str, str]:
    """Device name -> reason, for those that a worker did not find."""
    return {name: device["absent"] for name, device in probe["devices"].items() if device["absent"]}


def check_foreign(records: Sequence[Record], fingerprint: str) -> None:
    """A journal with another fingerprint's records in it was put together by hand: refused."""
    if any(record.fingerprint != fingerprint for record in records):
        raise HarnessError("this run's journal holds records of another fingerprint", remedy="start over with --new")
