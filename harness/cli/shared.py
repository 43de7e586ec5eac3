"""What the commands share: the app, the arguments that several take, and how texts of the command line are read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import HarnessError
from harness.report.exporters import EXPORTERS

if TYPE_CHECKING:
    from harness.planning import Plan

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
ReportFormat = Annotated[
    str, typer.Option("--format", metavar=f"<{'|'.join(EXPORTERS)}>", callback=lambda name: EXPORTERS[name].name)
]
Only = Annotated[str | None, typer.Option(help="An expression over the axes, or the beginning of a cell's id.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="AXIS=VALUE[,VALUE...] in place of the suite's axis.")]


def planned(path: Path, set_: list[str] | None, only: str | None, rounds: int | None) -> tuple[Plan, list[str]]:
    """The plan of a suite with the command line's changes, and those of them that a repetition needs."""
    from harness.planning import plan as make
    from harness.published import check as check_published
    from harness.suite import load_suite

    overrides = set_ or []
    suite = load_suite(path, overrides)
    if rounds is not None:
        suite = suite.model_copy(update={"budget": suite.budget.model_copy(update={"rounds": rounds})})
    made = make(suite)
    check_published(suite, made, complete=not overrides)
    return (made.only(only) if only else made), overrides


def period(text: str | None) -> float | None:
    if text is None:
        return None
    from harness.units import as_seconds

    try:
        value = float(as_seconds(text))
    except ValueError:
        value = 0.0
    if value <= 0:
        raise HarnessError(f"--max-time {text}: this is not a time", remedy="write seconds as 90s, or 30m, 2h")
    return value


def amount(text: str | None) -> int | None:
    if text is None:
        return None
    from harness.units import as_bytes

    try:
        value = int(as_bytes(text if not text.isdecimal() else int(text)))
    except ValueError:
        value = 0
    if value <= 0:
        raise HarnessError(f"--memory {text}: this is not an amount of memory", remedy="write 24GiB, or 500MiB")
    return value


def percentages(text: str) -> tuple[float, ...]:
    """ "0,0,5,10" -> shares (0, 0, 0.05, 0.1)."""
    try:
        shares = tuple(float(part) / 100 for part in text.split(","))
    except ValueError:
        shares = (-1.0,)
    if not all(0 <= share < 1 for share in shares):
        raise HarnessError(f"{text!r} is no list of percentages", remedy="write per cent from 0 to 99, as 0,0,5,10")
    return shares
