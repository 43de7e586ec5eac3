"""What a run's report says, before it is written in any format."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from harness.report.breakdown import breakdowns, facts_of
from harness.report.document import Page, Section
from harness.report.environment import flat, hardware
from harness.report.published_tables import published_tables
from harness.report.rounds import confidence_text, measurements
from harness.report.sentences import sentences
from harness.report.tables import GroupView, tables, views
from harness.verdict.labels import axes_of, describe, varying
from harness.verdict.protocols import unmeasured

if TYPE_CHECKING:
    from harness.verdict.protocols import Run

NOTE = (
    "Times are geometric means over rounds, one fresh process each; ± and [ ] are intervals of {confidence} "
    "(Student's t). A round's ratio is the median of ratios that were taken milliseconds apart. Counts are exact."
)


class RunReport:
    """What the formats are given: the run, its page and its pictures, each made when it is first asked for."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def groups(self) -> list[GroupView]:
        return views(self.run)

    @cached_property
    def page(self) -> Page:
        return page_of(self.run, self.groups)

    @cached_property
    def pictures(self) -> list[tuple[str, bytes]]:
        """Names and PNG files."""
        from harness.report.charts import figures, png

        return [(name, png(figure)) for name, figure in figures(self.run, self.groups)]


def page_of(run: Run, groups: list[GroupView]) -> Page:
    """What a report says, whatever it is written in."""
    facts = facts_of(run)
    how = measurements(run.records(), {str(cell): str(group) for cell, group in run.cells["group"].items()})
    sections = [
        Section(
            view.title,
            [*tables(view), *breakdowns(view, facts)],
            [*sentences(view), *(how[view.id].sentences(view.variants) if view.id in how else ())],
        )
        for view in groups
        if view.readings
    ]
    unreached = [f"{view.title}: not reached" for view in groups if not view.readings]
    published, problems = published_tables(run, groups)
    return Page(
        run.name,
        hardware(run.environment),
        NOTE.format(confidence=confidence_text(run.confidence)),
        published,
        sections,
        [*_failures(run), *problems, *unreached],
        list(flat(run.environment)),
        run.suite_text.strip(),
    )


def _failures(run: Run) -> list[str]:
    vary, lines = varying(run.cells), []
    for cell, (status, reason) in unmeasured(run.records()).items():
        if cell in run.cells.index:
            axes = axes_of(run.cells, cell)
            label = describe({axis: axes[axis] for axis in vary | {"block"}})
            lines.append(f"{label} ({cell}): {status}{f', {reason}' if reason else ''}")
    return lines
