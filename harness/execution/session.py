"""A run from its first task to its last: what is still to do, who is left out, what goes into the journal.

The loop is plain: take a task, let the executor perform it, append every record at once. A worker that dies leaves
the (cell, metric) it had in hand as a failed record; what the task still owes is tried again without it. A group that
does not fit into memory together is measured variant by variant (apart.py), and one whose ratios are known well
enough is measured no further (stopping.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from harness.errors import HarnessError
from harness.execution import apart
from harness.execution.local import Death
from harness.planning import Group
from harness.records import Json, Record, Status, Task, TaskKind
from harness.store.journal import Journal

STRIKES = 2
"""Failures after which a variant is left out of its group's later rounds."""

LOST = "its group had lost a variant in this round"

Pair = tuple[str, str]
"""A cell's id and a metric's name: what one record is about."""


class Executor(Protocol):
    """Something that performs a task somewhere and says how it went."""

    def probe(self, names: list[str]) -> Json: ...

    def perform(self, task: Task, key: str, fingerprint: str, emit: Callable[[Json], None]) -> Death | None:
        """Do it, handing every message to `emit`; None when it ended well."""
        ...


class Watcher(Protocol):
    """Who is told what happens, to show it."""

    def started(self, task: Task, number: int) -> None: ...

    def recorded(self, record: Record) -> None: ...

    def finished(self, task: Task, number: int) -> None: ...


class Looks(Protocol):
    """Who decides that a group has been measured enough (stopping.py)."""

    def learn(self, record: Record) -> None: ...

    def settled(self, task: Task) -> bool: ...

    def look(self, task: Task, fingerprint: str) -> Record | None: ...

    def group_of_cell(self, cell: str) -> Group | None: ...


@dataclass
class Session:
    """Everything that one pass over the open tasks needs."""

    executor: Executor
    journal: Journal
    fingerprint: str
    watcher: Watcher
    stopping: Looks
    absent: dict[str, str] = field(default_factory=dict)
    """Device name -> why it is not here; its cells are skipped."""
    strikes: dict[tuple[TaskKind, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    """Rounds in which a variant failed: however often it was tried in one of them."""
    refused: dict[Pair, Record] = field(default_factory=dict)
    """Unsupported pairs: they will not become supported in a later round."""
    crowded: dict[str, str] = field(default_factory=dict)
    """Cell -> why its group is measured apart."""

    def work(self, tasks: Sequence[Task], open_work: dict[str, set[Pair]]) -> None:
        """Do whatever of `tasks` has (cell, metric) pairs in `open_work` and is not made unnecessary by a look."""
        for number, task in enumerate(tasks):
            self.step(task, open_work.get(task.key, set()), number)

    def step(self, task: Task, owed: set[Pair], number: int) -> None:
        """One task, and the look after it where one is due."""
        if owed and not self.stopping.settled(task):
            self.watcher.started(task, number)
            self._do(task, owed)
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

    def _do(self, task: Task, owed: set[Pair]) -> None:
        settled = self._settle_without_running(task, owed)
        owed = owed - settled
        if task.kind is TaskKind.VISIT:
            why = self.crowded.get(task.cells[0].id) or self._at_one_table(task, owed)
            if why:
                rest = task.expects() - settled
                self._apart(task, rest - self._settle_without_running(task, rest), why)
        else:
            self._in_turn(task, owed)

    def _at_one_table(self, task: Task, owed: set[Pair]) -> str:
        """All variants in one process; why they cannot share it, when memory was too short for all together."""
        several = len({cell for cell, _ in owed}) > 1
        try:
            self._in_turn(task, owed, crowd=several)
        except _Crowded as crowd:
            self.crowded |= {cell.id: str(crowd) for cell in task.cells}
            return str(crowd)
        return ""

    def _apart(self, task: Task, owed: set[Pair], why: str) -> None:
        """Each variant in processes of its own, forward and backward; its halves are recorded as one."""
        halves: dict[Pair, list[Record]] = {}
        lost: set[str] = set()
        for half in apart.halves(_part(task, owed)):
            mine = {pair for pair in owed if pair[0] == half.cells[0].id}
            if mine:
                self._in_turn(half, mine, keep=lambda r: halves.setdefault((r.cell, r.metric), []).append(r))
            for pair in mine:
                parts = halves.get(pair, [])
                if len(parts) == 2 or (parts and not parts[-1].status.measured):
                    joined = apart.joined(halves.pop(pair), why)
                    lost |= {pair[0]} if joined.status.failed else set()
                    if lost and joined.status is Status.OK:
                        joined = replace(joined, status=Status.PARTIAL, reason=LOST)
                    self._append(replace(joined, task=task.key))
                    owed = owed - {pair}

    def _in_turn(
        self, task: Task, owed: set[Pair], crowd: bool = False, keep: Callable[[Record], None] | None = None
    ) -> None:
        """Processes until nothing is owed: each goes on without what the one before it died of.

        With `crowd` running out of memory raises _Crowded: no variant is to blame for what they need together.
        Records go into the journal, or to `keep`.
        """
        keep = keep or self._append
        lost: list[str] = []
        while owed:
            part = _part(task, owed)
            got, in_hand, death = self._perform(part, task.key, lost, keep, crowd)
            if crowd and death and death.status is Status.OOM:
                raise _Crowded(death.reason)
            owed = owed - got
            culprits = _culprits(task, owed, in_hand) if death else set(owed)
            death = death or Death(Status.ERROR, "the worker ended without a record", "")
            for cell, metric in sorted(culprits):
                keep(_dead(task, cell, metric, death, self.fingerprint))
                lost.append(cell)
            owed = owed - culprits

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
        if task.kind in (TaskKind.VISIT, TaskKind.FIRST) and len(self.strikes[task.kind, cell]) >= STRIKES:
            return Status.SKIPPED, f"left out after {STRIKES} failed rounds"
        return None, ""

    def _perform(
        self, task: Task, key: str, lost: list[str], keep: Callable[[Record], None], crowd: bool
    ) -> tuple[set[Pair], Pair | None, Death | None]:
        """Run one process: what it recorded, what it had in hand last, and how it died if it did."""
        got: set[Pair] = set()
        in_hand: list[Pair] = []
        too_much: list[str] = []

        def emit(message: Json) -> None:
            if "begin" in message:
                in_hand[:] = [tuple(message["begin"])]
                return
            record = Record.from_json(message["record"])
            if crowd and record.status is Status.OOM:
                too_much.append(record.reason)
                return
            if record.status is Status.OK and lost and task.kind is TaskKind.VISIT:
                record = replace(record, status=Status.PARTIAL, reason=LOST)
            keep(record)
            got.add((record.cell, record.metric))

        death = self.executor.perform(task, key, self.fingerprint, emit)
        if too_much:
            raise _Crowded(too_much[0])
        return got, in_hand[0] if in_hand else None, death

    def _append(self, record: Record) -> None:
        self.journal.append(record)
        self._learn(record)
        self.watcher.recorded(record)

    def _learn(self, record: Record) -> None:
        self.stopping.learn(record)
        if why := apart.reason_in(record):
            group = self.stopping.group_of_cell(record.cell)
            self.crowded |= {cell.id: why for cell in group.cells} if group else {}
        if record.status is Status.UNSUPPORTED:
            self.refused[record.cell, record.metric] = record
        if record.status.failed:
            self.strikes[record.kind, record.cell].add(record.round)


class _Crowded(Exception):
    """The variants of a group do not fit into memory together."""


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
