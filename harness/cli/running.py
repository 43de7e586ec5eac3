"""The commands that measure: run, plan, ab, aa, doctor. Heavy imports live inside them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from harness.cli.shared import (
    INTERRUPTED,
    CheckFormat,
    ExecutorName,
    Only,
    PlanFormat,
    Retry,
    Set,
    SuitePath,
    amount,
    app,
    percentages,
    period,
    planned,
)  # fmt: skip

if TYPE_CHECKING:
    from harness.execution import Outcome


@app.command()
def run(
    suite: SuitePath,
    out: Annotated[Path | None, typer.Option(help="The run's directory.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start over instead of going on.")] = False,
    only: Only = None,
    set_: Set = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in place of the suite's.")] = None,
    max_time: Annotated[
        str | None, typer.Option(help="Stop after this long, as 30m; the same command goes on.")
    ] = None,
    executor: Annotated[ExecutorName, typer.Option(help="inline: in this process.")] = ExecutorName.LOCAL,
    retry: Annotated[Retry | None, typer.Option(help="Measure failed cells again.")] = None,
) -> None:
    """Measure every cell of a suite; go on where an unfinished run of it stopped."""
    from harness.execution import run_suite
    from harness.suite.source import Source

    wanted, overrides = planned(suite, set_, only, rounds)
    console = Console(stderr=True)
    outcome = run_suite(
        wanted,
        suite_text=Source.read(suite).text,
        suite_path=str(suite),
        overrides=overrides,
        out=out,
        new=new,
        retry=retry is not None,
        executor=executor,
        max_seconds=period(max_time),
        console=console,
    )
    raise typer.Exit(_concluded(outcome))


@app.command()
def plan(
    suite: SuitePath,
    only: Only = None,
    set_: Set = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in place of the suite's.")] = None,
    predict: Annotated[bool, typer.Option("--predict", help="Predict each cell's memory of training.")] = False,
    memory: Annotated[str | None, typer.Option(help="The room for --predict, as 24GiB; else the device's.")] = None,
    format_: Annotated[PlanFormat, typer.Option("--format")] = PlanFormat.TEXT,
) -> None:
    """Show what would run, how long at least, what is excluded and why, and what training would hold in memory."""
    from harness.report.plan_text import plan_json, plan_text

    wanted, _ = planned(suite, set_, only, rounds)
    predictions = None
    room = amount(memory)
    if predict or room:
        from harness.execution.predicted_plan import predict_plan

        predictions = predict_plan(wanted, room)
    print((plan_text if format_ is PlanFormat.TEXT else plan_json)(wanted, predictions))


@app.command()
def ab(
    base: Annotated[str, typer.Argument(help="A git revision, as main or HEAD~1.")],
    head: Annotated[str, typer.Argument(help="A git revision, or . for the working tree as it is.")],
    suite: Annotated[Path, typer.Option(help="A suite's YAML file; both revisions measure this one.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder for both runs; goes on with one that was stopped.")
    ] = None,
    only: Only = None,
    set_: Set = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in place of the suite's.")] = None,
    max_time: Annotated[str | None, typer.Option(help="Stop after this long, as 30m.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Inconclusive and missing readings fail as well.")] = False,
    format_: Annotated[CheckFormat, typer.Option("--format")] = CheckFormat.TEXT,
) -> None:
    """Two git revisions side by side on this machine, taking turns: a verdict for every reading."""
    from harness.execution import stoppable
    from harness.execution.ab.paired_run import measure_revisions
    from harness.report.check_text import render_check
    from harness.report.github import write_summary
    from harness.store.directory import ROOT, fresh
    from harness.suite.source import Source
    from harness.verdict import compare_revisions

    wanted, overrides = planned(suite, set_, only, rounds)
    seconds = period(max_time)
    measured = measure_revisions(
        wanted,
        (base, head),
        suite_text=Source.read(suite).text,
        suite_path=str(suite),
        overrides=overrides,
        out=out or fresh(ROOT / f"ab-{wanted.suite.name}"),
        stoppable=lambda work: stoppable(work, seconds),
    )
    changes = "".join(f" --set {shlex.quote(item)}" for item in overrides)
    command = f"harness ab {shlex.quote(base)} {shlex.quote(head)} --suite {shlex.quote(str(suite))}{changes}"
    names = [f"{revision.ref} ({revision.commit[:10]})" for revision in measured.revisions]
    for side, revision in zip(("base", "head"), measured.revisions, strict=True):
        print(f"{side}: {revision}", file=sys.stderr)
    checked = compare_revisions(
        *measured.runs, command=command, names=(names[0], names[1]), notes=measured.notes, strict=strict
    )
    print(render_check(checked, format_.value))
    write_summary(checked, os.environ if format_ is CheckFormat.GITHUB else {}, title="harness ab")
    if measured.interrupted:
        print(f"stopped before the end; --out {measured.runs[0].path.parent} goes on", file=sys.stderr)
    raise typer.Exit(INTERRUPTED if measured.interrupted else checked.exit_code)


@app.command()
def aa(
    suite: Annotated[Path, typer.Option(help="A suite with timed metrics, as suites/aa.yaml.")],
    experiments: Annotated[int, typer.Option(min=1, help="How often the suite is measured against itself.")] = 10,
    slowdowns: Annotated[
        str, typer.Option(help="Per cent; for every cell of an experiment one is drawn.")
    ] = "0,0,0,0,0,1,2,3,5,10",
    burn: Annotated[
        float, typer.Option(min=0, max=0.95, help="Share of the time that a neighbour of ours takes one core.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The folder for the samples; goes on with one that has some.")
    ] = None,
    set_: Set = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in place of the suite's.")] = None,
    format_: Annotated[PlanFormat, typer.Option("--format")] = PlanFormat.TEXT,
) -> None:
    """The same code against itself, many times: false alarms, smallest effect found, thresholds that suit."""
    from harness.execution import stoppable
    from harness.execution.aa.experiments import Conditions, read, run_experiments
    from harness.report.error_rates_text import write_error_rates
    from harness.store.directory import ROOT, fresh

    wanted, overrides = planned(suite, set_, None, rounds)
    folder = out or fresh(ROOT / f"aa-{wanted.suite.name}")
    conditions = Conditions(percentages(slowdowns), burn, seed)
    console = Console(stderr=True)
    interrupted = stoppable(
        lambda: run_experiments(wanted, conditions, experiments, folder, suite, overrides, console), None
    )
    done = read(folder)
    if not done:
        raise typer.Exit(INTERRUPTED if interrupted else 5)
    print(write_error_rates(wanted, done, folder, as_json=format_ is PlanFormat.JSON))
    raise typer.Exit(INTERRUPTED if interrupted else 0)


@app.command()
def doctor(
    seconds: Annotated[float, typer.Option(min=2, help="How long to measure.")] = 20.0,
    format_: Annotated[PlanFormat, typer.Option("--format")] = PlanFormat.TEXT,
) -> None:
    """What this machine is, how steady its clock is right now, and what to do about what was found."""
    from harness.doctor import examine
    from harness.report.doctor_text import doctor_json, doctor_text

    report = examine(seconds, console=Console(stderr=True))
    print(doctor_text(report) if format_ is PlanFormat.TEXT else doctor_json(report))


def _concluded(outcome: Outcome) -> int:
    """Print the report and the last line; return the exit code."""
    from harness.report.run_text import last_line, nothing_measured
    from harness.report.writing import report as render
    from harness.report.writing import write_all

    run, tally = outcome.run, outcome.run.tally()
    if tally["measured"] or tally["failed"]:
        write_all(run)
        print(render(run, "text", None))
    else:
        print(nothing_measured(outcome), end="")
    if outcome.interrupted:
        print("stopped before the end; the same command goes on with this run", file=sys.stderr)
    print(last_line(outcome))
    return INTERRUPTED if outcome.interrupted else _exit_code(tally)


def _exit_code(tally: Any) -> int:
    if tally["failed"]:
        return 3
    return 0 if tally["measured"] else 5
