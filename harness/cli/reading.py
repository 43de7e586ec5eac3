"""The commands that read what was measured: report, show, baseline, check, trend; and list and schema."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.shared import CheckFormat, PlanFormat, ReportFormat, RunPath, app


@app.command()
def report(
    run: RunPath,
    format_: ReportFormat = "text",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of printing.")] = None,
) -> None:
    """Print a run's tables and its answer in sentences; CSV is the tidy frame in SI units."""
    from harness.report.writing import report as render
    from harness.store.run import open_run

    text = render(open_run(run), format_, out)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")


@app.command()
def show(run: RunPath, cell: Annotated[str, typer.Argument(help="The beginning of a cell's id.")]) -> None:
    """One cell: samples, facts, traceback, and how to repeat it."""
    from harness.report.cell_text import show as render
    from harness.store.run import open_run

    print(render(open_run(run), cell))


@app.command()
def baseline(run: RunPath, out: Annotated[Path, typer.Option(help="The file to write.")]) -> None:
    """Keep a run's readings for later runs to be held against."""
    from harness.store.run import open_run
    from harness.verdict import make_baseline, write_baseline

    made = make_baseline(open_run(run))
    write_baseline(made, out)
    print(f"{out}: {len(made['cells'])} cells")


@app.command()
def check(
    run: RunPath,
    baseline: Annotated[Path, typer.Option(help="A file that 'harness baseline' wrote.")],
    strict: Annotated[bool, typer.Option("--strict", help="Inconclusive and missing readings fail as well.")] = False,
    format_: Annotated[CheckFormat, typer.Option("--format")] = CheckFormat.TEXT,
) -> None:
    """Hold a run against a baseline. Exits 1 on a regression, 3 on failed cells, 5 when nothing can be compared."""
    from harness.report.check_text import render_check
    from harness.report.github import write_summary
    from harness.store.run import open_run
    from harness.verdict import check as judge
    from harness.verdict import load_baseline

    checked = judge(open_run(run), load_baseline(baseline), strict=strict)
    print(render_check(checked, format_.value))
    write_summary(checked, os.environ if format_ is CheckFormat.GITHUB else {})
    raise typer.Exit(checked.exit_code)


@app.command()
def trend(
    folder: Annotated[Path, typer.Argument(help="A folder of runs, as results/runs/quick.", metavar="RUNS")],
    annotations: Annotated[
        Path | None, typer.Option(help="Accepted changes; annotations.yaml in the folder when there is one.")
    ] = None,
    format_: Annotated[CheckFormat, typer.Option("--format")] = CheckFormat.TEXT,
) -> None:
    """Change points over a folder of runs. Exits 1 for a change for the worse that nobody has accepted."""
    from harness.report.trend_text import render_trend
    from harness.verdict.trend.judging import trend as judge

    found = judge(folder, annotations)
    print(render_trend(found, format_.value))
    raise typer.Exit(found.exit_code)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="blocks, backbones, metrics, datasets or devices", metavar="WHAT")],
    format_: Annotated[PlanFormat, typer.Option("--format")] = PlanFormat.TEXT,
) -> None:
    """List what a suite can name."""
    from harness.report.list_text import list_text

    print(list_text(what, as_json=format_ is PlanFormat.JSON))


@app.command()
def schema() -> None:
    """Print the suite's JSON Schema, for editors."""
    from harness.suite.schema import schema_text

    print(schema_text(), end="")
