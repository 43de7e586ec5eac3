"""What a paper printed beside what this run found: one table per `published` entry of the suite.

Differences to the reference are what can be compared across machines: a published peak of memory contains whatever
the authors' program held beside the model, a published time their GPU; what a block adds to its reference has less of
both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from harness import catalog
from harness.errors import HarnessError
from harness.published import Figure, figure, matching_cells
from harness.records import AXES, Cell, Kind, Reading, Record, Status
from harness.report.document import MISSING, Column, PublishedTable, Table
from harness.report.tables import GroupView
from harness.suite import Published, published_in
from harness.units import Scale, full_digits
from harness.verdict.labels import describe, variant_label

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol

    import pandas as pd

    from harness.verdict.protocols import Run

    class Planned(Run, Protocol):
        """A run that knows its cells with their options; labels in frames cannot be asked for those."""

        @property
        def planned_cells(self) -> Mapping[str, Cell]: ...


NAN = math.nan
SEE = "; see md"
"""Part of some figures' units: points to notes that are not shipped."""


@dataclass(frozen=True)
class Row:
    """One figure and its cell; numbers are in the published unit, NaN where there is none."""

    figure: Figure
    cell: Cell
    view: GroupView
    ours: str
    published_added: float
    added: float
    published_saved: float
    saved: float
    is_reference: bool
    is_yardstick: bool


def published_tables(run: Run, groups: Sequence[GroupView]) -> tuple[list[PublishedTable], list[str]]:
    """The tables of a run's published entries, and in a line each what could not be printed and why.

    An entry none of whose cells is in the run gives no table.
    """
    try:
        entries = published_in(run.suite_text)
    except HarnessError as problem:
        return [], [f"published figures: {problem.problem}"]
    found: list[PublishedTable] = []
    problems: list[str] = []
    records = run.records() if entries else []
    for entry in entries:
        pairs, left_out = _pairs(entry, cast("Planned", run).planned_cells.values())
        problems += left_out
        rows = _Entry(run.cells, records, entry, groups).rows(pairs)
        if rows:
            readings = _readings(records, entry, rows)
            found.append(PublishedTable(_table(entry, rows, readings), _notes(entry, rows, readings)))
    return found, problems


def _pairs(entry: Published, cells: Iterable[Cell]) -> tuple[list[tuple[Figure, Cell]], list[str]]:
    """Each figure with the cell that it speaks of; a run of some cells only has the others' rows not."""
    pairs, problems, every = [], [], list(cells)
    for id_, text in entry.figures.items():
        try:
            known, matching = figure(id_), matching_cells(text, every)
        except HarnessError as problem:
            problems.append(f"{entry.title}: {problem.problem}")
            continue
        if len(matching) > 1:
            problems.append(f"{entry.title}: {id_} speaks of {len(matching)} cells of this run")
        pairs += [(known, cell) for cell in matching if len(matching) == 1]
    return pairs, problems


class _Entry:
    """One entry's arithmetic: differences to the group's reference, and the share of the yardstick's that is saved."""

    def __init__(
        self, cells: pd.DataFrame, records: list[Record], entry: Published, groups: Sequence[GroupView]
    ) -> None:
        self.cells = cells
        self.entry = entry
        self.key = (entry.metric, entry.form)
        self.views = {cell: view for view in groups for cell in view.variants}
        self.died = {r.cell: str(r.status) for r in records if not r.metric and not r.status.measured}

    def rows(self, pairs: list[tuple[Figure, Cell]]) -> list[Row]:
        """In the order of the figures, those of a group together."""
        printed = {cell.id: one.value for one, cell in pairs}
        order = list(dict.fromkeys(self.views[cell.id].id for _, cell in pairs))
        pairs = sorted(pairs, key=lambda pair: order.index(self.views[pair[1].id].id))
        return [self._row(one, cell, printed) for one, cell in pairs]

    def _row(self, one: Figure, cell: Cell, printed: dict[str, float]) -> Row:
        view = self.views[cell.id]
        reference, yardstick = view.reference or "", self._yardstick(view)
        base = printed.get(reference, NAN)
        published_added, added = one.value - base, self._added(view, cell.id)
        return Row(
            one,
            cell,
            view,
            self._this_run(view, cell.id),
            published_added,
            added,
            _saved(published_added, printed.get(yardstick, NAN) - base),
            _saved(added, self._added(view, yardstick)),
            cell.id == reference,
            cell.id == yardstick,
        )

    def _yardstick(self, view: GroupView) -> str:
        label = self.entry.yardstick
        return next((id_ for id_ in view.variants if str(self.cells.at[id_, view.compared]) == label), "")

    def _added(self, view: GroupView, cell: str) -> float:
        """What a cell has more than its reference in this run, as the rest of the report has it."""
        ratio = view.ratios.get((cell, *self.key))
        return NAN if ratio is None else float(ratio.difference) / self.entry.factor

    def _this_run(self, view: GroupView, cell: str) -> str:
        """The run's value with its interval where it has one; else why there is none."""
        row = view.readings.get((cell, *self.key))
        if row is None:
            return self.died.get(cell, MISSING)
        if math.isnan(row.value):
            return str(row.status) if not Status(row.status).measured else "not a number"
        if self.entry.reduction:
            ratio = view.ratios.get((cell, *self.key))
            return "reference" if ratio is None else f"{100 * (1 - ratio.ratio):.2f}"
        scale = Scale(self.entry.factor, self.entry.unit)
        text = full_digits(row.value / self.entry.factor)
        if row.kind == Kind.SAMPLED and math.isfinite(row.low):
            return f"{text} [{scale.text(row.low)}, {scale.text(row.high)}]"
        return text


def _saved(added: float, by_yardstick: float) -> float:
    """The share of what the yardstick adds that is not added; NaN when the yardstick adds nothing."""
    return 1 - added / by_yardstick if by_yardstick > 0 else NAN


def _table(entry: Published, rows: list[Row], readings: list[Reading]) -> Table:
    unit = f"[{entry.unit}]" if entry.unit != "1" else ""
    places = max(_decimals(row.figure.value) for row in rows)
    columns = [
        _column(("published", unit), [f"{row.figure.value:.{places}f}" for row in rows]),
        _column(("this run", unit), [row.ours for row in rows]),
    ]
    if not entry.reduction:
        columns += _added(rows, unit, places)
    if entry.yardstick is not None:
        columns += [
            _column(("published", "saved", "[%]"), [_share(row, row.published_saved) for row in rows]),
            _column(("this run", "saved", "[%]"), [_share(row, row.saved) for row in rows]),
        ]
    apart = _distinguishing_axes(rows)
    corner = ", ".join(dict.fromkeys([*apart, *(row.view.compared for row in rows)]))
    labels = tuple(_label(row, apart) for row in rows)
    return Table(entry.title, _caption(entry, rows, readings, places), corner, labels, tuple(columns))


def _added(rows: list[Row], unit: str, places: int) -> list[Column]:
    """What each has more than its reference."""
    return [
        _column(("published", "added", unit), [_against(row, row.published_added, places) for row in rows]),
        _column(("this run", "added", unit), [_against(row, row.added) for row in rows]),
        _column(("added, ours", "/ published"), ["" if row.is_reference else _quotient(row) for row in rows]),
    ]


def _column(heading: tuple[str, ...], cells: list[str]) -> Column:
    return Column(tuple(line for line in heading if line), tuple(cells))


def _against(row: Row, added: float, places: int | None = None) -> str:
    """A difference with its sign, to so many decimals or to four digits."""
    if row.is_reference:
        return "reference"
    if not math.isfinite(added):
        return MISSING
    return f"{added:+.{places}f}" if places is not None else f"{'-' if added < 0 else '+'}{full_digits(abs(added))}"


def _quotient(row: Row) -> str:
    quotient = row.added / row.published_added if row.published_added else NAN
    return f"{quotient:.2f}" if math.isfinite(quotient) else MISSING


def _share(row: Row, share: float) -> str:
    if row.is_reference or row.is_yardstick:
        return "reference" if row.is_reference else "yardstick"
    return f"{100 * share:.1f}" if math.isfinite(share) else MISSING


def _decimals(value: float) -> int:
    return len(f"{value:.10f}".rstrip("0").partition(".")[2])


def _distinguishing_axes(rows: list[Row]) -> list[str]:
    """The axes, beside each group's compared one, by which a row's group is told from the others."""
    compared = {row.view.compared for row in rows}
    points = [row.cell.axes() for row in rows]
    found = [axis for axis in AXES if axis not in compared and len({point[axis] for point in points}) > 1]
    return [axis for axis in found if axis != "part"] or found  # a part's name is the suite's own affair


def _label(row: Row, apart: list[str]) -> str:
    point = row.cell.axes()
    return ", ".join(variant_label(point, axis) for axis in [*apart, row.view.compared])


def _caption(entry: Published, rows: list[Row], readings: list[Reading], places: int) -> str:
    """Whose numbers the published ones are, what they were taken on, and what this run's are."""
    figures = [row.figure for row in rows]
    hardware = _unique(one.hardware or "hardware not stated" for one in figures)
    published = _unique([*hardware, *(one.software for one in figures), *(one.setting for one in figures)])
    parts = [", ".join(_unique(f"{one.paper}, {one.table}" for one in figures))]
    parts.append(f"published: {'; '.join(published)}")
    parts.append(f"this run: {_quantity_text(entry, rows, readings)}")
    references = _unique(row.view.reference_label for row in rows)
    if references and entry.reduction:
        parts.append(f"numbers: by how much less than the reference {' or '.join(references)}")
    elif references:
        parts.append(f"added: more than the reference {' or '.join(references)}")
    if entry.yardstick is not None:
        parts.append(f"saved: the share of what {entry.yardstick} adds that a variant does not")
    parts.append(_precision(entry, figures, places))
    return ". ".join(part[0].upper() + part[1:] for part in parts)


def _precision(entry: Published, figures: list[Figure], places: int) -> str:
    """The published unit with what its source adds to it, and what rounding does to differences."""
    printed = " or ".join(_unique(one.unit.replace(SEE, "") for one in figures))
    if not printed.startswith(entry.unit):
        printed += f", read as {entry.unit},"
    if "+-" in printed:
        return f"published in {printed.removesuffix(',')}"
    step = f"{10.0**-places:g} {entry.unit}".removesuffix(" 1")
    off = "" if entry.reduction else ", so their differences may be off by as much"
    return f"published in {printed} to the nearest {step}{off}"


def _quantity_text(entry: Published, rows: list[Row], readings: list[Reading]) -> str:
    """What the run's own numbers are, and what all of its cells share."""
    quantity = catalog.quantity_of(entry.metric)
    shared = {k: v for k, v in rows[0].cell.axes().items() if all(row.cell.axes()[k] == v for row in rows)}
    name = f"{entry.metric}, {quantity.what}" if quantity.what else entry.metric
    return "; ".join([name, *_facts(readings, "counted"), describe({**shared, "part": ""})])


def _readings(records: list[Record], entry: Published, rows: list[Row]) -> list[Reading]:
    """What stands behind the run's numbers in these rows."""
    cells = {row.cell.id for row in rows}
    found = [reading for record in records if record.cell in cells for reading in record.readings]
    return [reading for reading in found if (reading.metric, reading.form) == (entry.metric, entry.form)]


def _facts(readings: list[Reading], key: str) -> list[str]:
    """What readings say of themselves under `key`, a text or a list of texts, each once."""
    facts = [reading.facts.get(key, []) for reading in readings]
    return _unique(str(text) for fact in facts for text in (fact if isinstance(fact, list) else [fact]))


def _notes(entry: Published, rows: list[Row], readings: list[Reading]) -> tuple[str, ...]:
    """What the run's numbers assume, the suite's note, and where the published ones are from."""
    sources: dict[str, list[str]] = {}
    for row in rows:
        sources.setdefault(row.figure.source, []).append(row.figure.id)
    taken = [f"Source of {', '.join(ids)}: {source}" for source, ids in sources.items()]
    return (*_facts(readings, "assumptions"), *_unique([entry.note]), *taken)


def _unique(texts: Iterable[str]) -> list[str]:
    """Every text once, in order, without the empty ones."""
    return [text for text in dict.fromkeys(texts) if text]
