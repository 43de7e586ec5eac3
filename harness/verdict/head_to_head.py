"""Two revisions that took turns on one machine: a verdict for every reading. The answer for a pull request.

Timed readings are judged by the rounds' log ratios head / base, which are milliseconds apart, so a threshold of 3 %
is meant as it stands. Counts, bounded and close readings are judged as `check` judges them, with the base as baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.records import Kind
from harness.verdict.baseline import Kept, Spread, readings_of
from harness.verdict.compare import between_runs
from harness.verdict.labels import axes_of, describe, varying
from harness.verdict.protocols import Run, failures, unmeasured
from harness.verdict.rows import Check, Row
from harness.verdict.rules import (
    ACCURACY_THRESHOLD,
    CLOSE_TOLERANCE,
    PAIRED_TIME_THRESHOLD,
    TIME_FLOOR,
    Answer,
    Gate,
    Paired,
    Sampled,
    Verdict,
    is_timed,
    judge_bounded,
    judge_close,
    judge_count,
    judge_paired,
    judge_sampled,
)
from harness.verdict.statistics import spread

Pair = tuple[Kept, Kept]


def compare_revisions(
    base: Run, head: Run, *, command: str, names: tuple[str, str], notes: Sequence[str] = (), strict: bool = False
) -> Check:
    """Head against base. `command` repeats the comparison; a cell's row adds which cell to it.

    A reading that only the base has is MISSING, one that only the head has is NEW.
    """
    judge = _Judge(base, head, command)
    before, now = readings_of(base), readings_of(head)
    rows = [
        judge.row(kept, Verdict.MISSING, judge.why(kept), before=kept.value)
        for k, kept in before.items()
        if k not in now
    ]
    rows += [
        judge.row(kept, Verdict.NEW, f"not in {names[0]}", now=kept.value) for k, kept in now.items() if k not in before
    ]
    both = [(before[key], now[key]) for key in before if key in now]
    rows += [judge.plain(*pair) for pair in both if pair[1].kind is not Kind.SAMPLED]
    sampled = [pair for pair in both if pair[1].kind is Kind.SAMPLED]
    rows += judge.timed([pair for pair in sampled if is_timed(pair[1].unit)])
    rows += judge.scores([pair for pair in sampled if not is_timed(pair[1].unit)])
    order = list(Verdict)
    rows.sort(key=lambda row: (order.index(row.verdict), row.group, row.label, row.metric, row.form))
    failed = {
        cell: f"{status}: {reason}" if reason else str(status)
        for cell, (status, reason) in failures(head.records()).items()
    }
    title = f"{names[1]} ({head.path.parent})"
    return Check(title, head.name, tuple(rows), failed, tuple(notes), strict, against=names[0])


class _Judge:
    """The two runs, and what every row needs from them."""

    def __init__(self, base: Run, head: Run, command: str) -> None:
        self.head, self.cells, self.command = head, head.cells, command
        self.vary = varying(head.cells)
        self.unmeasured = unmeasured(head.records())
        self.ratios: dict[tuple[str, str, str], Spread] = {
            key: spread(logs) for key, logs in between_runs(base.rounds(), head.rounds()).items()
        }

    def why(self, kept: Kept) -> str:
        status, reason = self.unmeasured.get(kept.cell, ("not measured", ""))
        return f"{status}: {reason}" if reason else str(status)

    def row(
        self, kept: Kept, verdict: Verdict, reason: str = "", before: float = math.nan, now: float = math.nan
    ) -> Row:
        axes = axes_of(self.cells, kept.cell)
        compared = str(self.cells.at[kept.cell, "compared"])
        named = {name: value for name, value in axes.items() if name in self.vary - {"block"}}
        label = ", ".join(part for part in (str(axes["block"]), describe(named)) if part)
        return Row(
            kept.cell, label, describe(axes, self.vary, compared), kept.metric, kept.form, verdict,
            self.gate(kept).gate, str(kept.kind), kept.unit, before=before, now=now, reason=reason,
            rounds=kept.absolute[2] or 1, command=f"{self.command} --only {kept.cell}",
        )  # fmt: skip

    def gate(self, kept: Kept) -> Gate:
        return Gate.of(self.head.gates, kept.metric)

    def plain(self, before: Kept, now: Kept) -> Row:
        """Judged without statistics: equal, within its limit, or close."""
        gate, shown = self.gate(now), (before.value, now.value)
        if (before.kind, before.unit) != (now.kind, now.unit):
            verdict, reason = Verdict.INCONCLUSIVE, f"was {before.kind} in {before.unit}, is {now.kind} in {now.unit}"
        elif now.kind is Kind.COUNT:
            verdict, reason = judge_count(before.value, now.value, now.better, gate)
            reason = f"{reason} {now.unit.removeprefix('1')}".strip() if reason else ""
        elif now.kind is Kind.CLOSE:
            tolerance = CLOSE_TOLERANCE if gate.limit is None else gate.limit
            verdict, reason, shown = judge_close(before.values, now.values, tolerance)
        else:
            limit = gate.limit if gate.limit is not None else now.limit
            verdict, reason = judge_bounded(before.value, now.value, now.better, limit)
        ratio = now.value / before.value if before.value and now.kind is not Kind.CLOSE else math.nan
        return replace(self.row(now, verdict, reason, *shown), ratio=ratio)

    def timed(self, pairs: Sequence[Pair]) -> list[Row]:
        """By the rounds' log ratios; false discoveries are controlled over all of them."""
        questions = [
            Paired(self.ratios.get(now.key, (math.nan, math.nan, 0)), now.better, self._threshold(before))
            for before, now in pairs
        ]
        answers = judge_paired(questions, self.head.confidence)
        return [
            self._answered(before, now, answer, question.rounds)
            for (before, now), question, answer in zip(pairs, questions, answers, strict=True)
        ]

    def _threshold(self, before: Kept) -> float:
        gate = self.gate(before)
        threshold = PAIRED_TIME_THRESHOLD if gate.side_by_side is None else gate.side_by_side
        floor = gate.floor if gate.floor is not None else (TIME_FLOOR if before.unit == "s" else 0.0)
        return max(threshold, floor / before.value) if before.value > 0 else threshold

    def scores(self, pairs: Sequence[Pair]) -> list[Row]:
        """Accuracies and the like, from the same seeds on both sides: by Welch, on the values themselves."""
        questions = []
        for before, now in pairs:
            gate = self.gate(now)
            relative = ACCURACY_THRESHOLD if gate.threshold is None else gate.threshold
            allowed = max(relative * abs(before.plain[0]), gate.floor or 0.0)
            questions.append(Sampled(before.plain, now.plain, now.better, allowed, 0.0, linear=True))
        answers = judge_sampled(questions)
        return [
            self._answered(*pair, answer, q.rounds) for pair, q, answer in zip(pairs, questions, answers, strict=True)
        ]

    def _answered(self, before: Kept, now: Kept, answer: Answer, rounds: int) -> Row:
        verdict, reason = answer.verdict, answer.reason
        if now.broken and not before.broken:
            verdict, reason = Verdict.REGRESSED, f"{now.broken} rounds gave no number"
        row = self.row(now, verdict, reason, before.value, now.value)
        return replace(row, ratio=answer.ratio, low=answer.low, high=answer.high, rounds=rounds)
