"""A run from its first task to its last: what is still to do, who is left out, what goes into the journal.

The loop is plain: take a task, let the executor perform it, append every record at once. A worker that dies leaves
the (cell, metric) it had in hand as a failed record; what the task still owes is tried again without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from harness.errors import HarnessError
from harness.execution.local import Death
from harness.records import Json, Record, Status, Task, TaskKind
from harness.store.journal import Journal

STRIKES = 2
"""Failures after which a variant is left out of its group's later rounds."""

Pair = tuple[str, str]
"""A cell's id and a metric's name: what one record is about."""


class Executor(Protocol):
    """Something that performs a task somewhere and says how it went."""

    def probe(self, names: list[str]) -> Json: ...

    def perform(self, task: Task, key: str, fingerprint: str, emit: Callable[[Json], None]) -> Death | None: ...


class Watcher(Protocol):
    """Who is told what happens, to show it."""

    def started(self, task: Task, number: int) -> None: ...

    def recorded(self, record: Record) -> None: ...

    def finished(self, task: Task, number: int) -> None: ...


@dataclass
class Session:
    """Everything that one pass over the open tasks needs."""

    executor: Executor
    journal: Journal
    fingerprint: str
    watcher: Watcher
    absent: dict[str, str] = field(default_factory=dict)
    """Device name -> why it is not here; its cells are skipped."""
    strikes: Counter[tuple[TaskKind, str]] = field(default_factory=Counter)
    refused: dict[Pair, Record] = field(default_factory=dict)
    """Unsupported pairs: they will not become supported in a later round."""

    def work(self, tasks: Sequence[Task], open_work: dict[str, set[Pair]]) -> None:
        """Do whatever of `tasks` has (cell, metric) pairs in `open_work`."""
        for number, task in enumerate(tasks):
            owed = open_work.get(task.key, set())
            if owed:
                self.watcher.started(task, number)
                self._do(task, owed)
            self.watcher.finished(task, number)

    def remember(self, records: Sequence[Record]) -> None:
        """What an earlier part of this run has learned about its variants."""
        for record in records:
            self._learn(record)

    def _do(self, task: Task, owed: set[Pair]) -> None:
        owed = owed - self._settle_without_running(task, owed)
        lost: list[str] = []
        while owed:
            part = _part(task, owed)
            got, in_hand, death = self._perform(part, task.key, lost)
            owed -= got
            culprits = _culprits(task, owed, in_hand) if death else set(owed)
            death = death or Death(Status.ERROR, "the worker ended without a record", "")
            for cell, metric in sorted(culprits):
                self._append(_dead(task, cell, metric, death, self.fingerprint))
                lost.append(cell)
            owed -= culprits

    def _settle_without_running(self, task: Task, owed: set[Pair]) -> set[Pair]:
        """Records for pairs that need no process: absent devices, two strikes, known refusals."""
        settled = set()
        for cell in task.cells:
            for metric in {m for c, m in owed if c == cell.id}:
                status, reason = self._foregone(task, cell.id, cell.device.name, metric)
                if status is not None:
                    record = _blank(task, cell.id, metric, self.fingerprint)
                    self._append(replace(record, status=status, reason=reason))
                    settled.add((cell.id, metric))
        return settled

    def _foregone(self, task: Task, cell: str, device: str, metric: str) -> tuple[Status | None, str]:
        if device in self.absent:
            return Status.SKIPPED, f"{device}: {self.absent[device]}"
        if (cell, metric) in self.refused:
            return Status.UNSUPPORTED, self.refused[cell, metric].reason
        if task.kind is TaskKind.VISIT and self.strikes[task.kind, cell] >= STRIKES:
            return Status.SKIPPED, f"left out after {STRIKES} failed rounds"
        return None, ""

    def _perform(self, task: Task, key: str, lost: list[str]) -> tuple[set[Pair], Pair | None, Death | None]:
        """Run one process: what it recorded, what it had in hand last, and how it died if it did."""
        got: set[Pair] = set()
        in_hand: list[Pair] = []

        def emit(message: Json) -> None:
            if "begin" in message:
                in_hand[:] = [tuple(message["begin"])]
                return
            record = Record.from_json(message["record"])
            if record.status is Status.OK and lost and task.kind is TaskKind.VISIT:
                record = replace(record, status=Status.PARTIAL, reason="its group had lost a variant in this round")
            self._append(record)
            got.add((record.cell, record.metric))

        death = self.executor.perform(task, key, self.fingerprint, emit)
        return got, in_hand[0] if in_hand else None, death

    def _append(self, record: Record) -> None:
        self.journal.append(record)
        self._learn(record)
        self.watcher.recorded(record)

    def _learn(self, record: Record) -> None:
        if record.status is Status.UNSUPPORTED:
            self.refused[record.cell, record.metric] = record
        if record.status.failed:
            self.strikes[record.kind, record.cell] += 1


def _part(task: Task, owed: set[Pair]) -> Task:
    """What of a task is still owed: its cells and metrics, in their order."""
    cells, metrics = {cell for cell, _ in owed}, {metric for _, metric in owed}
    return replace(
        task,
        cells=tuple(cell for cell in task.cells if cell.id in cells),
        metrics=tuple(metric for metric in task.metrics if metric.name in metrics),
    )


def _culprits(task: Task, owed: set[Pair], in_hand: Pair | None) -> set[Pair]:
    """What a death is laid at the door of: the metric in hand, or in a visit all that its variant still owes."""
    if in_hand is None:
        return set(owed)
    if task.kind is TaskKind.VISIT:
        return {pair for pair in owed if pair[0] == in_hand[0]} or set(owed)
    return {in_hand} & owed or set(owed)


def _blank(task: Task, cell: str, metric: str, fingerprint: str) -> Record:
    return Record(task.key, task.kind, cell, metric, task.round, fingerprint, Status.SKIPPED)


def _dead(task: Task, cell: str, metric: str, death: Death, fingerprint: str) -> Record:
    blank = _blank(task, cell, metric, fingerprint)
    return replace(blank, status=death.status, reason=death.reason, output=death.output)


def absent_devices(probe: Json) -> dict[str, str]:
    """Device name -> reason, for those that a worker did not find."""
    return {name: device["absent"] for name, device in probe["devices"].items() if device["absent"]}


def check_foreign(records: Sequence[Record], fingerprint: str) -> None:
    """A journal with another fingerprint's records in it was put together by hand: refused."""
    if any(record.fingerprint != fingerprint for record in records):
        raise HarnessError("this run's journal holds records of another fingerprint", remedy="start over with --new")
