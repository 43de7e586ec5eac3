"""The rule that ends a group: at most four looks at its ratios, with the error shared among them.

A group is done when every compared ratio's interval is narrower than `budget.precision`, or its rounds or its seconds
are spent. Every look goes into the journal with its widths, the last one with the rule that ended the group and the
tasks that need not be done any more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from statistics import fmean, stdev

from harness.catalog import quantity_of
from harness.execution import apart
from harness.planning import Group
from harness.planning.looks import LEAST_ROUNDS, looks, shared_confidence
from harness.records import Kind, Reading, Record, Status, Task, TaskKind
from harness.store.pairs import readings_log_ratio
from harness.store.run import SETTLES

GO_ON = "go on"
"""What a look says that ends nothing; the others are precision, seconds and rounds."""

Key = tuple[str, str, str]
"""A cell's id, a quantity and a form."""


class Stopping:
    """What is known of every group's ratios so far. `learn` from every record, `look` after every round."""

    def __init__(self, groups: Sequence[Group], tasks: Sequence[Task]) -> None:
        self._group = {cell.id: group for group in groups for cell in group.cells}
        self._tasks: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            if task.kind is TaskKind.VISIT:
                self._tasks[self.group_of(task).id].append(task)
        self._rounds: dict[str, dict[int, dict[Key, Reading]]] = defaultdict(lambda: defaultdict(dict))
        self._spent: dict[str, dict[tuple[str, str, str], float]] = defaultdict(dict)
        self._looked: set[str] = set()
        self._settled: set[str] = set()

    def group_of(self, task: Task) -> Group:
        return self._group[task.cells[0].id]

    def group_of_cell(self, cell: str) -> Group | None:
        return self._group.get(cell)

    def learn(self, record: Record) -> None:
        """Remember what a record says about its group's ratios and time, or what a look has settled."""
        if record.kind is TaskKind.LOOK:
            self._looked.add(record.task)
            self._settled.update(record.facts.get(SETTLES, ()))
        if record.kind is not TaskKind.VISIT or record.cell not in self._group:
            return
        group = self._group[record.cell].id
        # its variants were measured during the same seconds, or one after the other
        spent, what = self._spent[group], (record.task, record.metric, record.cell if apart.reason_in(record) else "")
        spent[what] = max(spent.get(what, 0.0), record.seconds)
        if record.status.measured:
            for reading in record.readings:
                self._rounds[group][record.round][record.cell, reading.metric, reading.form] = reading

    def settled(self, task: Task) -> bool:
        """Whether an earlier look has made this task unnecessary."""
        return task.key in self._settled

    def pending_looks(self, open_work: Container[str]) -> list[Task]:
        """The last finished round of every group: a run that was killed before its look takes it when it goes on."""
        done = {group: task for group, tasks in self._tasks.items() for task in tasks if task.key not in open_work}
        return [task for task in done.values() if not self.settled(task)]

    def look(self, task: Task, fingerprint: str) -> Record | None:
        """What to write down after a group's round, if anything; the caller appends and learns it."""
        if task.kind is not TaskKind.VISIT:
            return None
        group, budget, done = self.group_of(task), task.budget, task.round + 1
        name = f"{group.id}/{done}"
        spent = sum(self._spent[group.id].values())
        time_is_up = budget.group_time is not None and spent >= budget.group_time and done >= LEAST_ROUNDS
        if name in self._looked or self.settled(task):
            return None
        if not time_is_up and done not in looks(budget.rounds, budget.precision):
            return None
        # a variant that failed in this round, perhaps for good, is not waited for
        seen = self.rounds_of(group)[task.round]
        every = self.widths(group, shared_confidence(budget.rounds, budget.precision))
        widths = {key: width for key, width in every.items() if key in seen}
        rule = _rule(widths, task, time_is_up)
        left = [] if rule == GO_ON else [later.key for later in self._tasks[group.id] if later.round > task.round]
        facts = {
            "rule": rule,
            "rounds": done,
            "seconds": round(spent, 3),
            "precision": budget.precision,
            "widest": max(widths.values(), default=None) if _all_finite(widths) else None,
            "widths": {
                "/".join(key): round(width, 6) if math.isfinite(width) else None for key, width in widths.items()
            },
            SETTLES: left,
        }
        return Record(name, TaskKind.LOOK, group.id, "", task.round, fingerprint, Status.OK, facts=facts)

    def widths(self, group: Group, confidence: float) -> dict[Key, float]:
        """high / low - 1 of every compared ratio's interval; infinite where fewer than four rounds gave a number."""
        return {key: _width(ratios, confidence) for key, ratios in self.log_ratios(group).items()}

    def log_ratios(self, group: Group) -> dict[Key, list[float]]:
        """Every compared reading's log ratios so far, one per round that gave one."""
        logs: dict[Key, list[float]] = defaultdict(list)
        for key, reading, reference in self.compared(group):
            if is_sampled(key[1]):
                logs[key] += [] if reading is None or reference is None else [readings_log_ratio(reading, reference)]
        return logs

    def compared(self, group: Group) -> Iterator[tuple[Key, Reading | None, Reading | None]]:
        """Round by round every reading and what it is divided by; None for one that its round lacks."""
        for found in self.rounds_of(group).values():
            for key, reading in found.items():
                reference = found.get((group.reference or "", *key[1:]))
                if key[0] != group.reference and reference is not None:
                    yield key, reading, reference

    def rounds_of(self, group: Group) -> dict[int, dict[Key, Reading]]:
        """Round -> its readings of the group's variants."""
        return self._rounds[group.id]


def is_sampled(metric: str) -> bool:
    return quantity_of(metric).kind is Kind.SAMPLED


def _width(logs: Sequence[float], confidence: float) -> float:
    logs = [log for log in logs if math.isfinite(log)]
    if len(logs) < LEAST_ROUNDS:
        return math.inf  # however narrow: no verdict would come of it
    from harness.store.summary import student_interval  # pandas comes with it, and not every run has ratios

    low, high = student_interval(fmean(logs), stdev(logs), len(logs), confidence)
    return float(math.exp(float(high) - float(low)) - 1)


def _rule(widths: dict[Key, float], task: Task, time_is_up: bool) -> str:
    precision = task.budget.precision
    if precision is not None and widths and max(widths.values()) <= precision:
        return "precision"
    if task.round + 1 >= task.budget.rounds:
        return "rounds"
    return "seconds" if time_is_up else GO_ON


def _all_finite(widths: dict[Key, float]) -> bool:
    return bool(widths) and all(math.isfinite(width) for width in widths.values())
