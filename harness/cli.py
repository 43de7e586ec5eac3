"""The command line: a thin shell. Heavy imports live inside the commands that need them."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.execution import Outcome
    from harness.planning import Plan
    from harness.store.run import Run

app = typer.Typer(
    name="harness",
    help="Benchmarks convolution blocks: memory, time, exactness and accuracy, and holds later runs to a baseline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
"""As a shell reports a command that Ctrl-C ended."""


class PlanFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class ReportFormat(StrEnum):
    TEXT = "text"
    MD = "md"
    TEX = "tex"
    CSV = "csv"
    HTML = "html"


class CheckFormat(StrEnum):
    TEXT = "text"
    GITHUB = "github"
    JSON = "json"


class ExecutorName(StrEnum):
    LOCAL = "local"
    INLINE = "inline"


class Retry(StrEnum):
    FAILED = "failed"


SuitePath = Annotated[Path, typer.Argument(help="A suite's YAML file, as suites/quick.yaml.", metavar="SUITE")]
RunPath = Annotated[Path, typer.Argument(help="A run's directory, or one with runs in it: the newest.", metavar="RUN")]
Only = Annotated[str | None, typer.Option(help="An expression over the axes, or the beginning of a cell's id.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="AXIS=VALUE[,VALUE...] in place of the suite's axis.")]


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

    plan, overrides = _planned(suite, set_, only, rounds)
    console = Console(stderr=True)
    outcome = run_suite(
        plan,
        suite_text=Source.read(suite).text,
        suite_path=str(suite),
        overrides=overrides,
        out=out,
        new=new,
        retry=retry is not None,
        executor=executor,
        max_seconds=_period(max_time),
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
    from harness.terminal import plan_json, plan_text

    planned, _ = _planned(suite, set_, only, rounds)
    predictions = None
    room = _amount(memory)
    if predict or room:
        from harness.execution.prediction import predict_plan

        predictions = predict_plan(planned, room)
    print((plan_text if format_ is PlanFormat.TEXT else plan_json)(planned, predictions))


@app.command()
def report(
    run: RunPath,
    format_: Annotated[ReportFormat, typer.Option("--format")] = ReportFormat.TEXT,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of printing.")] = None,
) -> None:
    """Print a run's tables and its answer in sentences; CSV is the tidy frame in SI units."""
    from harness.report import report as render
    from harness.store.run import open_run

    text = render(open_run(run), format_.value, out)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")


@app.command()
def show(run: RunPath, cell: Annotated[str, typer.Argument(help="The beginning of a cell's id.")]) -> None:
    """One cell: samples, facts, traceback, and how to repeat it."""
    from harness.report import show as render
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
    from harness.store.run import open_run
    from harness.verdict import check as judge
    from harness.verdict import load_baseline, render_check

    checked = judge(open_run(run), load_baseline(baseline), strict=strict)
    print(render_check(checked, format_.value))
    raise typer.Exit(checked.exit_code)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="blocks, backbones, metrics, datasets or devices", metavar="WHAT")],
    format_: Annotated[PlanFormat, typer.Option("--format")] = PlanFormat.TEXT,
) -> None:
    """List what a suite can name."""
    from harness.terminal import list_text

    print(list_text(what, as_json=format_ is PlanFormat.JSON))


@app.command()
def schema() -> None:
    """Print the suite's JSON Schema, for editors."""
    from harness.suite.schema import schema_text

    print(schema_text(), end="")


def _planned(path: Path, set_: list[str] | None, only: str | None, rounds: int | None) -> tuple[Plan, list[str]]:
    """The plan of a suite with the command line's changes, and those of them that a repetition needs."""
    from harness.planning import plan as make
    from harness.published import check as check_published
    from harness.suite import load_suite

    overrides = set_ or []
    suite = load_suite(path, overrides)
    if rounds is not None:
        suite = suite.model_copy(update={"budget": suite.budget.model_copy(update={"rounds": rounds})})
    planned = make(suite)
    check_published(suite, planned, complete=not overrides)
    return (planned.only(only) if only else planned), overrides


def _period(text: str | None) -> float | None:
    if text is None:
        return None
    from harness.suite.model import as_seconds

    try:
        value = float(as_seconds(text))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise HarnessError(f"--max-time {text}: this is not a time", remedy="write seconds as 90s, or 30m, 2h")
    return value


def _amount(text: str | None) -> int | None:
    if text is None:
        return None
    from harness.suite.model import as_bytes

    try:
        value = int(as_bytes(text if not text.isdecimal() else int(text)))
    except ValueError:
        value = 0
    if value <= 0:
        raise HarnessError(f"--memory {text}: this is not an amount of memory", remedy="write 24GiB, or 500MiB")
    return value


def _concluded(outcome: Outcome) -> int:
    """Print the report and the last line; return the exit code."""
    from harness.report import report as render
    from harness.report import write_all

    run, tally = outcome.run, outcome.run.tally()
    if tally["measured"] or tally["failed"]:
        write_all(run)
        print(render(run, "text", None))
    else:
        _nothing(outcome)
    if outcome.interrupted:
        print("stopped before the end; the same command goes on with this run", file=sys.stderr)
    print(_last_line(run, outcome))
    return INTERRUPTED if outcome.interrupted else _exit_code(tally)


def _exit_code(tally: Any) -> int:
    if tally["failed"]:
        return 3
    return 0 if tally["measured"] else 5


def _nothing(outcome: Outcome) -> None:
    for device, reason in outcome.absent.items():
        print(f"skipped: {device}: {reason}")
    if outcome.absent:
        print("  try: harness run suites/cpu.yaml, which needs no accelerator; 'harness plan' shows this suite here")


def _last_line(run: Run, outcome: Outcome) -> str:
    tally = run.tally()
    left = f", {tally['open']} left" if tally["open"] else ""
    return (
        f"{run.path}: {tally['measured']} cells measured ({outcome.reused} reused), {tally['failed']} failed, "
        f"{tally['unsupported']} unsupported, {tally['skipped']} skipped{left}"
    )


def main() -> None:
    """The console script: HarnessError becomes a message and exit code 2 (5 when a baseline is missing)."""
    # a shell starts background commands with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except HarnessError as problem:
        Console(stderr=True).print(f"error: {problem}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(getattr(problem, "exit_code", 2))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # | head
        sys.stderr.close()
        sys.exit(1)
