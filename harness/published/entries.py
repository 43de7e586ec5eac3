"""A suite's published entries held against the figures and the plan: every number must have its one cell."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness import catalog
from harness.errors import HarnessError
from harness.planning import Group, Plan
from harness.published.figures import figure
from harness.records import AXES, Cell
from harness.registry import unknown
from harness.suite import WHOLE, Expression, Published, Suite
from harness.suite.model import PUBLISHED_UNITS

Location = tuple[str | int, ...]

SAME_UNIT = 1.1
"""Papers write GB for GiB (1.07 times as much), and a suite may know better; a factor beyond that is a mistake."""


def check(suite: Suite, plan: Plan, complete: bool = True) -> None:
    """SuiteError, with the place, for an entry that cannot be printed as it is meant.

    `plan` is the whole plan of `suite`, before any `only`. With `complete` False (axes were overridden) cells and
    variants may be missing: the report leaves their rows out.
    """
    for i, entry in enumerate(suite.published):
        _Entry(suite, plan, entry, ("published", i), complete).check()


def matching_cells(text: str, cells: Iterable[Cell]) -> list[Cell]:
    """The cells for which a figure's expression holds; one, where all is well."""
    expression = Expression(text)
    return [cell for cell in cells if expression.holds(cell)]


class _Entry:
    """The checks of one entry, which stands at `at` in the suite."""

    def __init__(self, suite: Suite, plan: Plan, entry: Published, at: Location, complete: bool) -> None:
        self.suite = suite
        self.plan = plan
        self.entry = entry
        self.at = at
        self.complete = complete

    def check(self) -> None:
        owner: dict[str, str] = {}
        for id_, text in self.entry.figures.items():
            place = (*self.at, "figures", id_)
            self._known(id_, place)
            cell = self._cell(text, place)
            if cell is None:
                continue
            if cell.id in owner:
                problem = f"{owner[cell.id]} and {id_} speak of one cell"
                raise self.suite.fail(problem, "mend one of them, or give it an entry of its own", place)
            owner[cell.id] = id_
        self._saved_from([group for group in self.plan.groups if any(cell.id in owner for cell in group.cells)])

    def _known(self, id_: str, place: Location) -> None:
        """There is such a figure, and it is in the unit that the entry says."""
        try:
            printed = figure(id_).unit
        except HarnessError as problem:
            raise self.suite.fail(problem.problem, problem.remedy, place, key=True) from None
        unit, wanted = _unit(printed), self.entry.unit
        if unit is None or not _same(unit, wanted):
            remedy = f"take a figure in {wanted}" + (f", or write unit: {unit}" if unit else "")
            raise self.suite.fail(f"{id_} is in {printed!r}, not in {wanted}", remedy, place, key=True)

    def _cell(self, text: str, place: Location) -> Cell | None:
        """The one cell that the expression is true of; None where it may be missing."""
        try:
            found = matching_cells(text, self.plan.cells)
        except HarnessError as problem:
            raise self.suite.fail(problem.problem, problem.remedy, place) from None
        if len(found) > 1:
            apart = [axis for axis in AXES if len({cell.axes()[axis] for cell in found}) > 1]
            remedy = f"say more of {' or '.join(apart)}"
            raise self.suite.fail(f"{text!r} holds for {len(found)} cells, and must for one", remedy, place)
        if found:
            self._read_there(found[0], place)
            return found[0]
        if self.complete:
            raise self.suite.fail(f"{text!r} holds for no cell", self._why_none(text), place)
        return None

    def _read_there(self, cell: Cell, place: Location) -> None:
        metrics = [metric.name for metric in self.suite.parts[cell.part or WHOLE].metrics]
        read = [quantity["name"] for name in metrics for quantity in catalog.metrics()[name]["quantities"]]
        if self.entry.metric not in read:
            problem = f"the part {cell.part} does not read {self.entry.metric}"
            raise self.suite.fail(problem, "name a cell of another part, or add the metric to this one", place)

    def _why_none(self, text: str) -> str:
        left_out = {each.cell.id: each.reason for each in self.plan.excluded}
        for cell in matching_cells(text, [each.cell for each in self.plan.excluded]):
            return f"drop the figure, or mend what leaves its cell out: {left_out[cell.id]}"
        return "mend the expression; 'harness plan' without this entry lists the cells"

    def _saved_from(self, groups: list[Group]) -> None:
        """The yardstick stands in one of the groups that the figures speak of, and is not the reference there."""
        label = self.entry.yardstick
        if label is None or not groups:
            return
        place = (*self.at, "saved_from")
        members = [(str(cell.axes()[g.axis]), cell.id == g.reference) for g in groups for cell in g.cells]
        if (label, False) in members:
            return
        if (label, True) in members:
            raise self.suite.fail(f"{label} is the reference, which adds nothing to itself", "name another", place)
        if self.complete:
            others = {name for name, is_reference in members if not is_reference}
            error = unknown("variant beside these figures", label, others)
            raise self.suite.fail(error.problem, error.remedy, place)


def _unit(printed: str) -> str | None:
    """``GB (per GPU; see md)`` -> GB, ``s/batch`` -> s; None for what no quantity is measured in, as images/s."""
    first = re.split(r"[ ;(]", printed, maxsplit=1)[0].removesuffix("/batch")
    return first if first in PUBLISHED_UNITS else None


def _same(unit: str, other: str) -> bool:
    (of, size), (of_other, size_other) = PUBLISHED_UNITS[unit], PUBLISHED_UNITS[other]
    return of == of_other and max(size, size_other) <= SAME_UNIT * min(size, size_other)
