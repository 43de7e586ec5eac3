"""Suite -> cells, groups and tasks. Pure: `harness plan` is just printing what stands here.

Every cell that falls out of the matrix does so with a reason (matrix.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from harness import catalog
from harness.errors import HarnessError
from harness.planning.matrix import Exclusion, Matrix
from harness.records import Budget, Cell, Task, TaskKind, Variant, digest
from harness.suite import Expression, Part, Suite

__all__ = ["Exclusion", "Group", "Plan", "plan", "seconds_at_least"]


@dataclass(frozen=True)
class Group:
    """Cells that differ only in the compared axis; `reference` is the id of the one the others are held against."""

    id: str
    axis: str
    cells: tuple[Cell, ...]
    reference: str | None


@dataclass(frozen=True)
class Plan:
    """All of a run, in the order in which it will be done."""

    suite: Suite
    cells: tuple[Cell, ...]
    groups: tuple[Group, ...]
    excluded: tuple[Exclusion, ...]
    tasks: tuple[Task, ...]

    @property
    def id(self) -> str:
        """Equal for two plans that ask for the same work."""
        return digest([task.key for task in self.tasks])

    def only(self, text: str) -> Plan:
        """The part of this plan whose cells satisfy an expression, or whose id starts with `text`."""
        picked = tuple(cell for cell in self.cells if cell.id.startswith(text)) if _is_id(text) else ()
        if not picked:
            expression = Expression(text)
            picked = tuple(cell for cell in self.cells if expression.holds(cell))
        if not picked:
            raise HarnessError(f"--only {text!r} picks none of {len(self.cells)} cells", remedy="see 'harness plan'")
        return self._narrowed(frozenset(cell.id for cell in picked))

    def _narrowed(self, ids: frozenset[str]) -> Plan:
        # ratios need the reference beside what was picked, so visits keep it
        kept = ids | {g.reference for g in self.groups if g.reference and any(c.id in ids for c in g.cells)}
        groups = tuple(replace(g, cells=tuple(c for c in g.cells if c.id in kept)) for g in self.groups)
        tasks = []
        for task in self.tasks:
            wanted = kept if task.kind is TaskKind.VISIT else ids
            narrowed = task.without(frozenset(cell.id for cell in task.cells) - wanted)
            if any(cell.id in ids for cell in narrowed.cells):
                tasks.append(narrowed)
        cells = tuple(cell for cell in self.cells if cell.id in kept)
        return replace(self, cells=cells, groups=tuple(g for g in groups if g.cells), tasks=tuple(tasks))


def _is_id(text: str) -> bool:
    return len(text) >= 4 and all(c in "0123456789abcdef" for c in text)


def plan(suite: Suite) -> Plan:
    """Everything `suite` asks for. SuiteError for rules that match nothing and for an empty matrix."""
    cells: list[Cell] = []
    excluded: list[Exclusion] = []
    groups: list[Group] = []
    tasks: list[Task] = []
    for name, part in suite.parts.items():
        kept, out = Matrix(suite, name).selected()
        inside = _groups(part, kept)
        cells, excluded, groups = cells + kept, excluded + out, groups + list(inside)
        tasks += _tasks(part, suite.budget.for_workers(), inside)
    return Plan(suite, tuple(cells), tuple(groups), tuple(excluded), tuple(tasks))


def _groups(part: Part, cells: Sequence[Cell]) -> tuple[Group, ...]:
    axis = part.compare.axis
    members: dict[str, list[Cell]] = {}
    for cell in cells:
        members.setdefault(cell.without(axis), []).append(cell)
    reference = _reference_label(part)
    groups = []
    for key, inside in members.items():
        found = [cell.id for cell in inside if str(cell.axes()[axis]) == reference]
        # alone in its group, a cell has nothing to be compared with
        groups.append(Group(key, axis, tuple(inside), found[0] if found and len(inside) > 1 else None))
    return tuple(groups)


def _reference_label(part: Part) -> str:
    values = getattr(part.axes, part.compare.axis) or [None]
    labels = [value.label if isinstance(value, Variant) else str(value) for value in values]
    chosen = part.compare.reference
    if chosen is not None:
        return chosen.label if isinstance(chosen, Variant) else str(chosen)
    declared = catalog.blocks()
    plain = [label for label in labels if label in declared and declared[label]["family"] == "plain"]
    return [*plain, *labels][0]


def _tasks(part: Part, budget: Budget, groups: Sequence[Group]) -> Iterator[Task]:
    """Clockless metrics first, then rounds over all groups in turn, so that a round's noise hits all of them."""
    by_kind: dict[TaskKind, list[Variant]] = {kind: [] for kind in TaskKind}
    for metric in part.metrics:
        by_kind[TaskKind(catalog.metrics()[metric.name]["task"])].append(metric)
    cells = [cell for group in groups for cell in group.cells]
    if by_kind[TaskKind.CELL]:
        for cell in cells:
            yield Task(TaskKind.CELL, (cell,), tuple(by_kind[TaskKind.CELL]), 0, budget)
    if by_kind[TaskKind.VISIT]:
        for round_ in range(budget.rounds):
            for group in groups:
                yield Task(
                    TaskKind.VISIT, _rotated(group.cells, round_), tuple(by_kind[TaskKind.VISIT]), round_, budget
                )
    if by_kind[TaskKind.FIRST]:
        for round_ in range(budget.rounds):
            for group in groups:
                for cell in _rotated(group.cells, round_):
                    yield Task(TaskKind.FIRST, (cell,), tuple(by_kind[TaskKind.FIRST]), round_, budget)
    if by_kind[TaskKind.TRAINING]:
        for seed in range(budget.seeds):
            for cell in cells:
                yield Task(TaskKind.TRAINING, (cell,), tuple(by_kind[TaskKind.TRAINING]), seed, budget)


def _rotated(cells: tuple[Cell, ...], by: int) -> tuple[Cell, ...]:
    start = by % len(cells)
    return cells[start:] + cells[:start]


def seconds_at_least(tasks: Sequence[Task]) -> float:
    """A floor for the time a run takes: what its timed metrics were given, and half a second per process."""
    visits = [task for task in tasks if task.kind is TaskKind.VISIT]
    timed = sum(len(task.cells) * len(task.metrics) * task.budget.seconds for task in visits)
    return timed + 0.5 * len(tasks)
