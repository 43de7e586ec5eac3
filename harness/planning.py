"""Suite -> cells, groups and tasks. Pure: `harness plan` is just printing what stands here.

Every cell that falls out of the matrix does so with a reason. An axis value that no cell can use, a rule that
matches nothing and an empty matrix are mistakes of the suite, not results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from harness import catalog
from harness.catalog.vocabulary import default_batch_size, default_image_size
from harness.catalog.where import parse as parse_where
from harness.errors import HarnessError, SuiteError
from harness.records import Budget, Cell, Task, TaskKind, Variant, digest
from harness.suite import WHOLE, Axes, Expression, Part, Suite, where_value

MATRIX = tuple(Axes.model_fields)


@dataclass(frozen=True)
class Group:
    """Cells that differ only in the compared axis; `reference` is the id of the one the others are held against."""

    id: str
    axis: str
    cells: tuple[Cell, ...]
    reference: str | None


@dataclass(frozen=True)
class Exclusion:
    """A point of the matrix that will not be measured, and why."""

    cell: Cell
    reason: str


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
        title = f"suite {suite.name}" if name == WHOLE else f"suite {suite.name}, part {name}"
        kept, out = _sift(part, title, list(_points(part, "" if name == WHOLE else name)))
        if not kept:
            reasons = "; ".join(sorted({e.reason for e in out})) or "an axis is empty"
            raise SuiteError(f"{title}: no cell is left to measure ({reasons})", remedy="loosen a rule, change an axis")
        _refuse_doubles(title, kept)
        _refuse_dead_values(title, kept, out)
        inside = _groups(part, kept)
        cells, excluded, groups = cells + kept, excluded + out, groups + list(inside)
        tasks += _tasks(part, suite.budget.for_workers(), inside)
    return Plan(suite, tuple(cells), tuple(groups), tuple(excluded), tuple(tasks))


def _points(part: Part, name: str) -> Iterator[Cell]:
    """The whole matrix, zipped axes advancing together, defaults filled in."""
    axes = {axis: getattr(part.axes, axis) or [None] for axis in MATRIX}
    bundles = [list(names) for names in part.zip]
    bundles += [[axis] for axis in MATRIX if not any(axis in names for names in bundles)]
    bundles.sort(key=lambda names: min(MATRIX.index(axis) for axis in names))
    choices = [list(zip(*(axes[axis] for axis in names), strict=True)) for names in bundles]
    for chosen in product(*choices):
        pairs = [
            pair for names, values in zip(bundles, chosen, strict=True) for pair in zip(names, values, strict=True)
        ]
        yield _cell({**dict(pairs), "part": name})


def _cell(point: dict[str, Any]) -> Cell:
    backbone, device = point["backbone"].name, point["device"].name
    if point["batch_size"] is None:
        point["batch_size"] = default_batch_size(backbone, device)
    if point["image_size"] is None:
        point["image_size"] = default_image_size(backbone, device)
    if point["kernel_size"] is None and backbone == "layer":
        point["kernel_size"] = 3
    return Cell(**point)


def _sift(part: Part, title: str, points: Sequence[Cell]) -> tuple[list[Cell], list[Exclusion]]:
    """Cells that stay, and the others with their reasons; every rule must have done something."""
    excludes = [(Expression(rule.when), rule.because) for rule in part.exclude]
    includes = [Expression(rule.when) for rule in part.include]
    hits = dict.fromkeys([e.text for e, _ in excludes] + [e.text for e in includes], 0)
    cells, excluded = [], []
    for cell in points:
        reasons = []
        for expression, because in excludes:
            if expression.holds(cell):
                hits[expression.text] += 1
                reasons.append(f"excluded: {expression.text}" + (f" ({because})" if because else ""))
        kept = [expression for expression in includes if expression.holds(cell)]
        for expression in kept:
            hits[expression.text] += 1
        if includes and not kept:
            reasons.append("no include holds")
        reason = reasons[0] if reasons else impossible(cell)
        if reason:
            excluded.append(Exclusion(cell, reason))
        else:
            cells.append(cell)
    for text, count in hits.items():
        if not count:
            raise SuiteError(
                f"{title}: the rule {text!r} matches no cell",
                remedy="mend the rule or drop it; 'harness plan' without it lists the cells",
            )
    return cells, excluded


def impossible(cell: Cell) -> str | None:
    """Why no process could measure this cell, as far as the catalog knows; None when it may."""
    block = catalog.blocks()[cell.block.name]
    backbone = catalog.backbones()[cell.backbone.name]
    if cell.dtype == "tf32" and not cell.device.name.startswith("cuda"):
        return "cannot: tf32 is a mode of CUDA devices"
    if cell.block.name == "native":
        if not backbone["native"]:
            return f"cannot: {cell.backbone.name} has no re-parameterizable layers of its own"
        return "cannot: native blocks keep their own kernel sizes" if cell.kernel_size is not None else None
    sizes = block["limits"]["kernel_size"]
    if cell.kernel_size is not None and cell.kernel_size not in sizes:
        return f"cannot: {cell.block.name} has no kernel size {cell.kernel_size} (it has {', '.join(map(str, sizes))})"
    return _nothing_to_replace(cell, backbone)


def _nothing_to_replace(cell: Cell, backbone: dict[str, Any]) -> str | None:
    if cell.backbone.name == "layer":
        return None
    where = parse_where(where_value(cell.where))
    wanted = where.kernel_sizes
    there = {int(size): count for size, count in backbone["kernels"].items()}
    if where.names or any(size in there for size in wanted):
        return None  # names are known once the model is built
    sizes = ", ".join(f"{size}x{size} ({count})" for size, count in sorted(there.items())) or "none"
    picked = " or ".join(f"{size}x{size}" for size in wanted)
    return f"cannot: {cell.backbone.name} has no {picked} convolution to replace (it has {sizes}); see the axis where"


def _refuse_doubles(title: str, cells: Sequence[Cell]) -> None:
    """Zipped axes can name the same point twice; it would be measured twice and reported once."""
    for id_, count in Counter(cell.id for cell in cells).items():
        if count > 1:
            label = next(cell for cell in cells if cell.id == id_).axes()
            raise SuiteError(f"{title}: one cell stands {count} times: {label}", remedy="keep one of its rows in zip")


def _refuse_dead_values(title: str, cells: Sequence[Cell], excluded: Sequence[Exclusion]) -> None:
    """A value of an axis that no cell can use is a mistake, whatever the rest of the matrix does."""
    for axis in MATRIX:
        alive = {cell.axes()[axis] for cell in cells}
        for exclusion in excluded:
            value = exclusion.cell.axes()[axis]
            reasons = {e.reason for e in excluded if e.cell.axes()[axis] == value}
            if value not in alive and all(reason.startswith("cannot") for reason in reasons):
                raise SuiteError(
                    f"{title}: no cell can use {axis} {value}: {sorted(reasons)[0].removeprefix('cannot: ')}",
                    remedy=f"drop {value} from the axis {axis}, or pair it with something it fits",
                )


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
    return "conv" if "conv" in labels else labels[0]


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
