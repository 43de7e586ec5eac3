"""What every comparison of two runs' readings shares, whether one side is a baseline or another revision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from harness.records import Json, Kind, Record, Status
from harness.verdict.baseline import ReadingSummary
from harness.verdict.labels import axes_of, cell_label, describe
from harness.verdict.protocols import Run, failures
from harness.verdict.rows import Row
from harness.verdict.rules import CLOSE_TOLERANCE, Answer, Gate, Verdict, judge_bounded, judge_close, judge_count

Pair = tuple[ReadingSummary, ReadingSummary]
"""A reading before and now."""


@dataclass(frozen=True)
class RowBuilder:
    """Makes the rows of a check of `run`; `vary` are the axes that tell its cells apart.

    `command_for`: cell id to the command that measures it again. `other_axes`: of cells that the run does not have.
    """

    run: Run
    vary: frozenset[str]
    command_for: Callable[[str], str]
    other_axes: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    names: dict[str, tuple[str, str]] = field(default_factory=dict, init=False)
    """Cell id to what it and its group are called, as far as it was asked for: a cell has many rows."""

    def gate(self, reading: ReadingSummary) -> Gate:
        return Gate.of(self.run.gates, reading.metric)

    def row(
        self,
        reading: ReadingSummary,
        verdict: Verdict,
        reason: str = "",
        shown: tuple[float, float] = (math.nan, math.nan),
        rounds: int = 0,
    ) -> Row:
        """`shown` are the values before and now."""
        cell = reading.cell
        if cell not in self.names:
            self.names[cell] = self._named(cell)
        return Row(
            cell, *self.names[cell], reading.metric, reading.form, verdict,
            self.gate(reading).gate, str(reading.kind), reading.unit, before=shown[0], now=shown[1], reason=reason,
            rounds=rounds, command=self.command_for(cell),
        )  # fmt: skip

    def _named(self, cell: str) -> tuple[str, str]:
        cells = self.run.cells
        here = cell in cells.index
        axes = axes_of(cells, cell) if here else self.other_axes[cell]
        compared = str(cells.at[cell, "compared"]) if here else "block"
        return cell_label(axes, self.vary), describe(axes, self.vary, compared)


@dataclass(frozen=True)
class ExactVerdict:
    """A verdict that needed no statistics. `shown`: the values before and now that it speaks of; `ratio` may be NaN."""

    verdict: Verdict
    reason: str
    shown: tuple[float, float]
    ratio: float


def judge_exact(before: ReadingSummary, now: ReadingSummary, gate: Gate, limit: float | None) -> ExactVerdict:
    """Whether a count is equal, a close reading close, or a bounded one within its `limit`."""
    shown = before.value, now.value
    if now.kind is Kind.COUNT:
        verdict, reason = judge_count(*shown, now.better, gate)
        reason = f"{reason} {now.unit.removeprefix('1')}".strip() if reason else ""
    elif now.kind is Kind.CLOSE:
        tolerance = CLOSE_TOLERANCE if gate.limit is None else gate.limit
        verdict, reason, shown = judge_close(before.values, now.values, tolerance)
    else:
        verdict, reason = judge_bounded(*shown, now.better, limit)
    has_ratio = before.value and now.kind is not Kind.CLOSE
    return ExactVerdict(verdict, reason, shown, now.value / before.value if has_ratio else math.nan)


def changed_kind(before: ReadingSummary, now: ReadingSummary) -> str:
    """What each was, where the two are not of one kind and unit and so cannot be compared; else empty."""
    if (before.kind, before.unit) == (now.kind, now.unit):
        return ""
    return f"was {before.kind} in {before.unit}, is {now.kind} in {now.unit}"


def verdict_of(answer: Answer, before: ReadingSummary, now: ReadingSummary) -> tuple[Verdict, str]:
    """The statistics' answer; rounds that newly give no number are a regression whatever the others say."""
    if now.broken and not before.broken:
        return Verdict.REGRESSED, f"{now.broken} rounds gave no number"
    return answer.verdict, answer.reason


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """What changed first, then by group, cell and reading."""
    order = list(Verdict)
    return tuple(sorted(rows, key=lambda row: (order.index(row.verdict), row.group, row.label, row.metric, row.form)))


def failed_cells(records: Iterable[Record]) -> dict[str, str]:
    """Cell id to how it failed."""
    return {cell: why(*found) for cell, found in failures(records).items()}


def why(status: Status | str, reason: str) -> str:
    """``oom: 3 GiB were asked for``."""
    return f"{status}: {reason}" if reason else str(status)
