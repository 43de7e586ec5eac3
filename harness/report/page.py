"""The whole report of a run, in each of its formats, and the files it leaves in the run's directory."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from harness.registry import unknown
from harness.report import writers as write
from harness.report.breakdown import breakdowns, facts_of
from harness.report.environment import flat, hardware
from harness.report.published_tables import Beside, beside
from harness.report.rounds import confidence_text, measuring
from harness.report.sentences import sentences
from harness.report.tables import GroupView, Table, tables, views
from harness.verdict.labels import axes_of, describe, varying
from harness.verdict.protocols import unmeasured

if TYPE_CHECKING:
    from harness.verdict.protocols import Run

FORMATS = {"text": "txt", "md": "md", "tex": "tex", "csv": "csv", "html": "html"}
"""Format to file ending."""

NOTE = (
    "Times are geometric means over rounds, one fresh process each; ± and [ ] are intervals of {confidence} "
    "(Student's t). A round's ratio is the median of ratios that were taken milliseconds apart. Counts are exact."
)


PUBLISHED = "Published, and found by this run"
"""Heading of what stands first, since a suite that names published figures was written to be answered by it."""


@dataclass(frozen=True)
class Section:
    """One group: its tables, and the answer in sentences."""

    title: str
    tables: list[Table]
    sentences: list[str]


@dataclass(frozen=True)
class Page:
    """Everything that a report says, as strings."""

    name: str
    hardware: str
    note: str
    published: list[Beside]
    sections: list[Section]
    failures: list[str]
    environment: list[tuple[str, str]]
    suite: str


def report(run: Run, format: str = "text", out: Path | None = None) -> str:
    """The report as one string, written to `out` too when that is given. UnknownName for another format."""
    if format not in FORMATS:
        raise unknown("report format", format, FORMATS)
    groups = [] if format == "csv" else views(run)
    content = _render(run, groups, format)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(content, encoding="utf-8")
    return content


def write_all(run: Run) -> list[Path]:
    """Write report.txt, .md, .tex, .csv, .html and figures/*.png into the run's directory; returns the paths."""
    from harness.report.charts import figures, png

    groups, written = views(run), []
    pictures = [(name, png(figure)) for name, figure in figures(run, groups)]
    for name, picture in pictures:
        path = run.path / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        written.append(path)
    for format, ending in FORMATS.items():
        path = run.path / f"report.{ending}"
        content = _html(run, groups, pictures) if format == "html" else _render(run, groups, format)
        path.write_text(content, encoding="utf-8")
        written.append(path)
    return written


def _render(run: Run, groups: list[GroupView], format: str) -> str:
    if format == "csv":
        return run.frame().to_csv(index=False)
    if format == "html":
        from harness.report.charts import figures, png

        return _html(run, groups, [(name, png(figure)) for name, figure in figures(run, groups)])
    return {"text": _text, "md": _markdown, "tex": _latex}[format](page(run, groups))


def page(run: Run, groups: list[GroupView]) -> Page:
    """What a report says, whatever it is written in."""
    facts = facts_of(run)
    how = measuring(run.records(), {str(cell): str(group) for cell, group in run.cells["group"].items()})
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
    published, problems = beside(run, groups)
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


def _text(page: Page) -> str:
    lines = [page.name, page.hardware, page.note]
    if page.published:
        lines += ["", PUBLISHED, "=" * len(PUBLISHED)]
    for one in page.published:
        said = [f"({one.table.caption})", *one.notes]
        lines += ["", one.table.title, "", write.text(one.table), "", *(_wrapped(line) for line in said)]
    for section in page.sections:
        lines += ["", section.title, "=" * len(section.title)]
        for table in section.tables:
            lines += ["", table.title, "", write.text(table)]
        lines += ["", *({f"({table.caption})": None for table in section.tables}), ""]
        lines += section.sentences
        if not section.tables:
            lines.append("nothing was measured")
    if not page.sections:
        lines += ["", "nothing was measured"]
    if page.failures:
        lines += ["", "Not measured", *(f"  {line}" for line in page.failures)]
    return "\n".join(lines).rstrip() + "\n"


def _wrapped(line: str) -> str:
    return fill(line, write.WIDTH, break_on_hyphens=False)  # an id is searched for as a whole


def _markdown(page: Page) -> str:
    escape = write.markdown_escape
    lines = [f"# {escape(page.name)}", "", escape(page.hardware), "", page.note]
    if page.published:
        lines += ["", f"## {PUBLISHED}"]
    for one in page.published:
        lines += ["", f"**{escape(one.table.title)}**", "", write.markdown(one.table), "", escape(one.table.caption)]
        lines += ["", *(f"- {escape(note)}" for note in one.notes)]
    for section in page.sections:
        lines += ["", f"## {escape(section.title)}", "", *(f"- {escape(line)}" for line in section.sentences)]
        for table in section.tables:
            lines += ["", f"**{table.title}**", "", write.markdown(table)]
        lines += [line for table in section.tables[:1] for line in ("", escape(table.caption))]
    if page.failures:
        lines += ["", "## Not measured", "", *(f"- {escape(line)}" for line in page.failures)]
    lines += ["", "## Environment", "", *(f"- {escape(name)}: {escape(value)}" for name, value in page.environment)]
    return "\n".join(lines) + "\n"


def _latex(page: Page) -> str:
    escape = write.latex_escape
    lines = [r"% \usepackage{booktabs,textcomp} \usepackage[T1]{fontenc}"]
    for one in page.published:
        lines += [f"\n{write.latex(one.table)}", "", *(escape(note) + r"\par" for note in one.notes)]
    for section in page.sections:
        lines += [f"\n{write.latex(table)}" for table in section.tables]
        lines += ["", *(escape(sentence) for sentence in section.sentences)]
    lines += ["", rf"\noindent {escape(page.hardware)}. {escape(page.note)}"]
    lines += [escape(line) + r"\par" for line in page.failures]
    return "\n".join(lines) + "\n"


def _html(run: Run, groups: list[GroupView], pictures: list[tuple[str, bytes]]) -> str:
    import jinja2

    source = files("harness.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    encoded = [(name, base64.b64encode(picture).decode()) for name, picture in pictures]
    return environment.from_string(source).render(page=page(run, groups), heading=PUBLISHED, pictures=encoded)
