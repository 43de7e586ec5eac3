"""Two revisions that took turns on one machine: a verdict for every reading. The answer for a pull request.

Timed readings are judged by the rounds' log ratios head / base, which are milliseconds apart, so a threshold of 3 %
is meant as it stands. Counts, bounded and close readings are judged as `check` judges them, with the base as baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.records import Kind
from harness.verdict.baseline import NO_SPREAD, ReadingSummary, Spread, summaries_of
from harness.verdict.compare import between_runs
from harness.verdict.labels import varying
from harness.verdict.pairwise import (
    Pair,
    RowBuilder,
    changed_kind,
    failed_cells,
    in_order,
    judge_exact,
    verdict_of,
    why,
)
from harness.verdict.protocols import Run, unmeasured
from harness.verdict.rows import Check, Row
from harness.verdict.rules import (
    ACCURACY_THRESHOLD,
    PAIRED_TIME_THRESHOLD,
    Answer,
    Paired,
    Sampled,
    Verdict,
    is_timed,
    judge_paired,
    judge_sampled,
    with_floor,
)
from harness.verdict.statistics import spread


def compare_revisions(
    base: Run, head: Run, *, command: str, names: tuple[str, str], notes: Sequence[str] = (), strict: bool = False
) -> Check:
    """Head against base. `command` repeats the comparison; a cell's row adds which cell to it.

    A reading that only the base has is MISSING, one that only the head has is NEW.
    """
    sides = _RevisionCheck(base, head, command)
    before, now = summaries_of(base), summaries_of(head)
    rows = [sides.missing(reading) for key, reading in before.items() if key not in now]
    rows += [sides.new(reading, f"not in {names[0]}") for key, reading in now.items() if key not in before]
    both = [(before[key], now[key]) for key in before if key in now]
    rows += [sides.exact(*pair) for pair in both if pair[1].kind is not Kind.SAMPLED]
    sampled = [pair for pair in both if pair[1].kind is Kind.SAMPLED]
    rows += sides.timed([pair for pair in sampled if is_timed(pair[1].unit)])
    rows += sides.scores([pair for pair in sampled if not is_timed(pair[1].unit)])
    title = f"{names[1]} ({head.path.parent})"
    return Check(title, head.name, in_order(rows), sides.failed, tuple(notes), strict, against=names[0])


class _RevisionCheck:
    """The two runs, and the rows that come of them."""

    def __init__(self, base: Run, head: Run, command: str) -> None:
        self.head = head
        records = head.records()
        self.unmeasured, self.failed = unmeasured(records), failed_cells(records)
        self.ratios: dict[tuple[str, str, str], Spread] = {
            key: spread(logs) for key, logs in between_runs(base.rounds(), head.rounds()).items()
        }
        builder = RowBuilder(head, varying(head.cells), lambda cell: f"{command} --only {cell}")
        self.gate, self.row = builder.gate, builder.row

    def missing(self, reading: ReadingSummary) -> Row:
        reason = why(*self.unmeasured.get(reading.cell, ("not measured", "")))
        return self.row(reading, Verdict.MISSING, reason, (reading.value, math.nan), _rounds(reading))

    def new(self, reading: ReadingSummary, reason: str) -> Row:
        return self.row(reading, Verdict.NEW, reason, (math.nan, reading.value), _rounds(reading))

    def exact(self, before: ReadingSummary, now: ReadingSummary) -> Row:
        """Judged without statistics: equal, within its limit, or close."""
        gate = self.gate(now)
        found = judge_exact(before, now, gate, now.limit if gate.limit is None else gate.limit)
        if reason := changed_kind(before, now):
            found = replace(found, verdict=Verdict.INCONCLUSIVE, reason=reason, shown=(before.value, now.value))
        return replace(self.row(now, found.verdict, found.reason, found.shown, _rounds(now)), ratio=found.ratio)

    def timed(self, pairs: Sequence[Pair]) -> list[Row]:
        """By the rounds' log ratios; false discoveries are controlled over all of them."""
        questions = [
            Paired(self.ratios.get(now.key, NO_SPREAD), now.better, self._threshold(before)) for before, now in pairs
        ]
        answers = judge_paired(questions, self.head.confidence)
        return [
            self._answered(before, now, answer, question.rounds)
            for (before, now), question, answer in zip(pairs, questions, answers, strict=True)
        ]

    def _threshold(self, before: ReadingSummary) -> float:
        gate = self.gate(before)
        threshold = PAIRED_TIME_THRESHOLD if gate.side_by_side is None else gate.side_by_side
        return with_floor(threshold, gate.floor_in(before.unit), before.value)

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

    def _answered(self, before: ReadingSummary, now: ReadingSummary, answer: Answer, rounds: int) -> Row:
        row = self.row(now, *verdict_of(answer, before, now), (before.value, now.value), rounds)
        return replace(row, ratio=answer.ratio, low=answer.low, high=answer.high)


def _rounds(reading: ReadingSummary) -> int:
    """Rounds that gave a positive number; what is counted once was still measured once."""
    return reading.absolute[2] or 1
