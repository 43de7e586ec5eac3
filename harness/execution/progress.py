"""The progress display of a run: a live line on a terminal, plain lines elsewhere. Only standard error is used."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from harness.records import Record, Status, Task, TaskKind
from harness.units import duration

PLAIN_EVERY = 10.0
"""Seconds between plain lines; failures are printed at once."""


def describe(task: Task) -> str:
    """A task in a few words: what is measured, on what."""
    first = task.cells[0]
    what = "+".join(metric.name for metric in task.metrics)
    where = first.backbone.label if first.kernel_size is None else f"{first.backbone.label} k{first.kernel_size}"
    if task.kind is TaskKind.VISIT:
        return f"{where}: {what}, round {task.round + 1} of {task.budget.rounds}, {len(task.cells)} variants"
    count = {TaskKind.TRAINING: f", seed {task.round}", TaskKind.FIRST: f", round {task.round + 1}"}.get(task.kind, "")
    return f"{first.block.label} on {where}: {what}{count}"


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """Shows tasks as they start and records as they fail, and how long the rest will take.

    The remaining time comes from the pace of this run so far, kind of task by kind of task.
    """

    def __init__(self, tasks: Sequence[Task], console: Console) -> None:
        self.tasks = tasks
        self.console = console
        self.live: Progress | None = None
        self.spent: dict[TaskKind, list[float]] = {kind: [] for kind in TaskKind}
        self.seen: Counter[Status] = Counter()
        self._began = self._printed = 0.0
        self._bar: Any = None

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"))
            self.live = Progress(*columns, console=self.console, transient=True)
            self.live.start()
            self._bar = self.live.add_task("", total=len(self.tasks))
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def started(self, task: Task, number: int) -> None:
        self._began = time.monotonic()
        text = f"{describe(task)}{self._so_far()}{self._left(number)}"
        if self.live:
            self.live.update(self._bar, description=text, completed=number)
        elif self._began - self._printed > PLAIN_EVERY or number == 0:
            self._printed = self._began
            self._print(f"[{number + 1}/{len(self.tasks)}] {text}")

    def recorded(self, record: Record) -> None:
        self.seen[record.status] += 1
        if record.status.failed:
            self._print(f"{record.status}: cell {record.cell}, {record.metric}: {record.reason}")

    def finished(self, task: Task, number: int) -> None:
        if self._began:
            self.spent[task.kind].append(time.monotonic() - self._began)
            self._began = 0.0
        if self.live:
            self.live.update(self._bar, completed=number + 1)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _so_far(self) -> str:
        """How the records of this run have ended, where some were not measured."""
        words = [f"{count} {status}" for status, count in self.seen.items() if not status.measured]
        return f", {', '.join(words)}" if words else ""

    def _left(self, number: int) -> str:
        known = [seconds for spent in self.spent.values() for seconds in spent]
        if not known:
            return ""
        general = sum(known) / len(known)
        pace = {kind: sum(spent) / len(spent) if spent else general for kind, spent in self.spent.items()}
        seconds = sum(pace[task.kind] for task in self.tasks[number:])
        return f", about {duration(seconds)} left"
