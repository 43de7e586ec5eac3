"""A run against a baseline: every reading held against what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from harness.records import Json, Kind
from harness.verdict.baseline import ReadingSummary, Spread, machine_of, summaries_in, summaries_of
from harness.verdict.comparability import Comparability, Level, comparability_of, differences, worst
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
    ACROSS_RUNS_TIME_THRESHOLD,
    BETWEEN_RUNS,
    WIDE_THRESHOLD,
    Answer,
    Sampled,
    Verdict,
    is_timed,
    judge_sampled,
    with_floor,
)

Key = tuple[str, str, str]


def check(run: Run, baseline: Mapping[str, Json], strict: bool = False) -> Check:
    """Hold a run against a baseline.

    Timed readings gate only on the machine the baseline was made on, as it was. With another driver or torch they
    are judged and advice (`Row.standing`), on another machine they are INCOMPARABLE. A reading that the run does not
    have is MISSING: a failed cell makes the exit code 3, one that was left out (``--only``) fails nothing unless
    `strict`.
    """
    sides = _BaselineCheck(run, baseline)
    before, now = summaries_in(baseline), summaries_of(run)
    rows = [sides.missing(reading) for key, reading in before.items() if key not in now]
    rows += [sides.new(reading) for key, reading in now.items() if key not in before and sides.gate(reading).gate]
    both = [(before[key], now[key]) for key in before if key in now]
    rows += [sides.changed_kind(*pair) for pair in both if changed_kind(*pair)]
    alike = [pair for pair in both if not changed_kind(*pair)]
    rows += [sides.exact(*pair) for pair in alike if pair[1].kind is not Kind.SAMPLED]
    rows += sides.sampled([pair for pair in alike if pair[1].kind is Kind.SAMPLED])
    return Check(str(run.path), baseline["suite"], in_order(rows), sides.failed, sides.notes(), strict)


class _BaselineCheck:
    """The two sides of a check, and the rows that come of them."""

    def __init__(self, run: Run, baseline: Mapping[str, Json]) -> None:
        self.run, self.cells = run, run.cells
        self.fingerprint = machine_of(baseline)
        self.machines: dict[str, Comparability] = {}
        records = run.records()
        self.unmeasured, self.failed = unmeasured(records), failed_cells(records)
        self.medians: dict[Key, Pair] = {}
        axes = {cell: entry["axes"] for cell, entry in baseline["cells"].items()}
        builder = RowBuilder(run, varying(run.cells) | _varying_axes(baseline), run.command_for, axes)
        self.gate, self.row = builder.gate, builder.row

    def notes(self) -> tuple[str, ...]:
        """What follows for the times that were judged, and whatever else differs between the two fingerprints."""
        times = [note for device, standing in self.machines.items() if (note := standing.note(device))]
        named = {reason for standing in self.machines.values() for reason in standing.reasons}
        found = differences(self.fingerprint, self.run.fingerprint)
        return (*times, *(difference for difference in found if difference not in named))

    def missing(self, reading: ReadingSummary) -> Row:
        reason = "not measured in this run"
        if reading.cell not in self.cells.index:
            reason = "the cell is not in this run"
        elif reading.cell in self.unmeasured:
            reason = why(*self.unmeasured[reading.cell])
        return self.row(reading, Verdict.MISSING, reason, (reading.value, math.nan))

    def new(self, reading: ReadingSummary) -> Row:
        return self.row(reading, Verdict.NEW, "not in the baseline", (math.nan, reading.value), _rounds(reading))

    def changed_kind(self, before: ReadingSummary, now: ReadingSummary) -> Row:
        reason = f"{changed_kind(before, now)}: make the baseline again"
        row = self.row(now, Verdict.INCONCLUSIVE, reason, (before.value, now.value), _rounds(now))
        return replace(row, standing=Level.REFUSED)

    def exact(self, before: ReadingSummary, now: ReadingSummary) -> Row:
        """Judged without statistics: equal, within its limit, or close."""
        gate = self.gate(now)
        limit = gate.limit if gate.limit is not None else before.limit if before.limit is not None else now.limit
        found = judge_exact(before, now, gate, limit)
        return replace(self.row(now, found.verdict, found.reason, found.shown, _rounds(now)), ratio=found.ratio)

    def sampled(self, pairs: list[Pair]) -> list[Row]:
        """All sampled readings. Each level is judged apart: what cannot fail must not move what can."""
        standings = [self._comparability(*pair) for pair in pairs]
        rows = []
        self.medians = _median_variants(
            [p for p, s in zip(pairs, standings, strict=True) if s.level is not Level.REFUSED]
        )
        for level in Level:
            held = [(p, s) for p, s in zip(pairs, standings, strict=True) if s.level is level]
            questions = [self._question(*pair) for pair, _ in held]
            for (pair, standing), question, answer in zip(held, questions, judge_sampled(questions), strict=True):
                rows.append(self._sampled_row(*pair, question, answer, standing))
        return rows

    def _sampled_row(
        self, before: ReadingSummary, now: ReadingSummary, question: Sampled, answer: Answer, standing: Comparability
    ) -> Row:
        verdict, reason = verdict_of(answer, before, now)
        if standing.level is Level.REFUSED:
            verdict, reason = Verdict.INCOMPARABLE, "; ".join(standing.reasons)
        relative = self._relative(before) and not question.linear
        show = (lambda mean: mean) if question.linear else math.exp
        own_time = is_timed(now.unit) and not relative
        shown = (before.absolute, now.absolute) if own_time else (question.before, question.now)
        if verdict is Verdict.REGRESSED and own_time:
            held = "compared with the rest of its group" if now.key in self.medians else "or the machine was busy"
            reason += f"; an absolute time, {held}"
        row = self.row(now, verdict, reason, (show(shown[0][0]), show(shown[1][0])), question.now[2])
        return replace(
            row,
            gated=row.gated and standing.level is not Level.COMPARABLE,
            standing=standing.level,
            unit="x" if relative else now.unit,
            yardstick=(now.reference or "") if relative else "",
            ratio=answer.ratio,
            low=answer.low,
            high=answer.high,
        )

    def _comparability(self, before: ReadingSummary, now: ReadingSummary) -> Comparability:
        """A ratio stands as its two sides do: where devices are compared, its reference is on another one."""
        relative = self._relative(before)
        if relative and before.reference != now.reference:
            return Comparability(Level.REFUSED, ("compared with another reference",))
        if not is_timed(now.unit):
            return Comparability()
        cells = [now.cell, *([now.reference] if relative and now.reference else [])]
        return worst([self._on_device(str(self.cells.at[cell, "device"]).partition("(")[0]) for cell in cells])

    def _on_device(self, device: str) -> Comparability:
        if device not in self.machines:
            self.machines[device] = comparability_of(self.fingerprint, self.run.fingerprint, device)
        return self.machines[device]

    def _relative(self, before: ReadingSummary) -> bool:
        """Variants are judged by their ratio to the reference, the reference and the rest by themselves."""
        return before.ratio[2] > 0

    def _question(self, before: ReadingSummary, now: ReadingSummary) -> Sampled:
        relative, timed, gate = self._relative(before), is_timed(now.unit), self.gate(now)
        default = ACCURACY_THRESHOLD if now.unit == "fraction" else ACROSS_RUNS_TIME_THRESHOLD
        threshold = default if gate.threshold is None else gate.threshold
        floor = gate.floor_in(now.unit)
        if not timed and any(reading.plain[2] > reading.absolute[2] for reading in (before, now)):
            allowed = max(threshold * abs(before.plain[0]), floor)
            return Sampled(before.plain, now.plain, now.better, allowed, 0.0, linear=True)
        threshold = with_floor(threshold, floor, before.value)
        if relative:
            return Sampled(before.ratio, now.ratio, now.better, threshold, BETWEEN_RUNS if timed else 0.0)
        if timed and now.key in self.medians:
            return Sampled(*self._against_the_rest(before, now), now.better, threshold, BETWEEN_RUNS)
        if timed:  # alone with the machine's mood: the wide threshold is itself the allowance for another day
            threshold = max(threshold, WIDE_THRESHOLD)
        return Sampled(before.absolute, now.absolute, now.better, threshold, 0.0)

    def _against_the_rest(self, before: ReadingSummary, now: ReadingSummary) -> tuple[Spread, Spread]:
        """A reference's logs relative to the variant of its group that changed as the middle one did.

        Absolute times depend on the machine's mood; against the rest of its group a reference is known as well as any
        variant, and without this row its slowness would pass as everyone's improvement. Its own time has to
        have gone the same way, by half as much at least: otherwise the rest has changed and not the reference.
        """
        then, today = (_mirrored(reading.ratio) for reading in self.medians[now.key])
        change, own = today[0] - then[0], now.absolute[0] - before.absolute[0]
        went_along = math.copysign(1.0, change) * own >= abs(change) / 2
        return then, (today if went_along else (then[0], *today[1:]))


def _rounds(reading: ReadingSummary) -> int:
    """Rounds that gave a number; what is counted once, or is not a number, was still measured once."""
    return max(reading.plain[2], 1)


def _mirrored(spread: Spread) -> Spread:
    """Of logs of variant / reference, the logs of reference / variant."""
    mean, sd, n = spread
    return -mean, sd, n


def _median_variants(pairs: list[Pair]) -> dict[Key, Pair]:
    """By reference cell, metric and form: before and now of the variant whose log ratio changed by the median."""
    variants: dict[Key, list[tuple[float, ReadingSummary, ReadingSummary]]] = {}
    for before, now in pairs:
        if now.reference and before.reference == now.reference != now.cell and min(before.ratio[2], now.ratio[2]) > 0:
            change = now.ratio[0] - before.ratio[0]
            variants.setdefault((now.reference, now.metric, now.form), []).append((change, before, now))
    medians = {}
    for key, changes in variants.items():
        changes.sort(key=lambda item: item[0])
        _, before, now = changes[len(changes) // 2]  # of two the one that speaks less for a slower reference
        medians[key] = before, now
    return medians


def _varying_axes(baseline: Mapping[str, Json]) -> frozenset[str]:
    seen: dict[str, set[Json]] = {}
    for entry in baseline["cells"].values():
        for axis, value in entry["axes"].items():
            seen.setdefault(axis, set()).add(value)
    return frozenset(axis for axis, values in seen.items() if len(values) > 1)
