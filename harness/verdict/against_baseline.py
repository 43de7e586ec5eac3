"""A run against a baseline: every reading held against what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from harness.records import Json, Kind
from harness.verdict.baseline import Kept, Spread, kept_in, machine_of, readings_of
from harness.verdict.comparability import Level, Standing, differences, held_against, worst
from harness.verdict.labels import axes_of, describe, varying
from harness.verdict.protocols import Run, failures, unmeasured
from harness.verdict.rows import Check, Row
from harness.verdict.rules import (
    ACCURACY_THRESHOLD,
    ACROSS_RUNS_TIME_THRESHOLD,
    BETWEEN_RUNS,
    CLOSE_TOLERANCE,
    TIME_FLOOR,
    WIDE_THRESHOLD,
    Answer,
    Gate,
    Sampled,
    Verdict,
    is_timed,
    judge_bounded,
    judge_close,
    judge_count,
    judge_sampled,
)

Key = tuple[str, str, str]


def check(run: Run, baseline: Mapping[str, Json], strict: bool = False) -> Check:
    """Hold a run against a baseline.

    Timed readings gate only on the machine the baseline was made on, as it was. With another driver or torch they
    are judged and advice (`Row.standing`), on another machine they are INCOMPARABLE. A reading that the run does not
    have is MISSING: a failed cell makes the exit code 3, one that was left out (``--only``) fails nothing unless
    `strict`.
    """
    judge = _Judge(run, baseline)
    before, now = kept_in(baseline), readings_of(run)
    rows = [judge.missing(kept) for key, kept in before.items() if key not in now]
    rows += [judge.new(kept) for key, kept in now.items() if key not in before and judge.gate(kept).gate]
    both = [(before[key], now[key]) for key in before if key in now]
    rows += [judge.plain(*pair) for pair in both if judge.is_plain(*pair)]
    rows += judge.sampled([pair for pair in both if not judge.is_plain(*pair)])
    order = list(Verdict)
    rows.sort(key=lambda row: (order.index(row.verdict), row.group, row.label, row.metric, row.form))
    failed = {cell: f"{status}: {reason}" if reason else str(status) for cell, (status, reason) in judge.failed.items()}
    return Check(str(run.path), baseline["suite"], tuple(rows), failed, judge.notes(), strict)


class _Judge:
    """The two sides of a check, and what every row needs from them."""

    def __init__(self, run: Run, baseline: Mapping[str, Json]) -> None:
        self.run, self.baseline, self.cells = run, baseline, run.cells
        self.vary = varying(run.cells) | _varying_axes(baseline)
        self.fingerprint = machine_of(baseline)
        self.machines: dict[str, Standing] = {}
        records = run.records()
        self.unmeasured, self.failed = unmeasured(records), failures(records)
        self.middles: dict[Key, tuple[Kept, Kept]] = {}

    def gate(self, kept: Kept) -> Gate:
        return Gate.of(self.run.gates, kept.metric)

    def notes(self) -> tuple[str, ...]:
        """What follows for the times that were judged, and whatever else differs between the two fingerprints."""
        times = [note for device, standing in self.machines.items() if (note := standing.note(device))]
        said = {reason for standing in self.machines.values() for reason in standing.reasons}
        found = differences(self.fingerprint, self.run.fingerprint)
        return (*times, *(difference for difference in found if difference not in said))

    def _row(self, kept: Kept, verdict: Verdict, reason: str = "") -> Row:
        here = kept.cell in self.cells.index
        axes = axes_of(self.cells, kept.cell) if here else self.baseline["cells"][kept.cell]["axes"]
        compared = str(self.cells.at[kept.cell, "compared"]) if here else "block"
        label = ", ".join(part for part in (str(axes["block"]), describe(_only(axes, self.vary - {"block"}))) if part)
        return Row(
            kept.cell, label, describe(axes, self.vary, compared), kept.metric, kept.form, verdict,
            self.gate(kept).gate, str(kept.kind), kept.unit, reason=reason,
            command=self.run.command_for(kept.cell),
        )  # fmt: skip

    def missing(self, kept: Kept) -> Row:
        if kept.cell not in self.cells.index:
            why = "the cell is not in this run"
        elif kept.cell in self.unmeasured:
            status, reason = self.unmeasured[kept.cell]
            why = f"{status}: {reason}" if reason else str(status)
        else:
            why = "not measured in this run"
        return replace(self._row(kept, Verdict.MISSING, why), before=kept.value)

    def new(self, kept: Kept) -> Row:
        return replace(self._row(kept, Verdict.NEW, "not in the baseline"), now=kept.value, rounds=_rounds(kept))

    def is_plain(self, before: Kept, now: Kept) -> bool:
        """Judged without statistics, or not to be judged at all."""
        return now.kind is not Kind.SAMPLED or (before.kind, before.unit) != (now.kind, now.unit)

    def plain(self, before: Kept, now: Kept) -> Row:
        gate, shown, standing = self.gate(now), (before.value, now.value), Level.SAME
        if (before.kind, before.unit) != (now.kind, now.unit):
            was, is_now = (f"{kept.kind} in {kept.unit}" for kept in (before, now))
            verdict, reason = Verdict.INCONCLUSIVE, f"was {was}, is {is_now}: make the baseline again"
            standing = Level.REFUSED
        elif now.kind is Kind.COUNT:
            verdict, reason = judge_count(before.value, now.value, now.better, gate)
            reason = f"{reason} {now.unit.removeprefix('1')}".strip() if reason else ""
        elif now.kind is Kind.CLOSE:
            tolerance = CLOSE_TOLERANCE if gate.limit is None else gate.limit
            verdict, reason, shown = judge_close(before.values, now.values, tolerance)
        else:
            limit = gate.limit if gate.limit is not None else before.limit if before.limit is not None else now.limit
            verdict, reason = judge_bounded(before.value, now.value, now.better, limit)
        has_ratio = before.value and now.kind is not Kind.CLOSE and standing is Level.SAME
        ratio = now.value / before.value if has_ratio else math.nan
        row = replace(self._row(now, verdict, reason), before=shown[0], now=shown[1], ratio=ratio)
        return replace(row, rounds=_rounds(now), standing=standing)

    def sampled(self, pairs: list[tuple[Kept, Kept]]) -> list[Row]:
        """All sampled readings. Each level is judged apart: what cannot fail must not move what can."""
        standings = [self._standing(*pair) for pair in pairs]
        rows = []
        self.middles = _middles([p for p, s in zip(pairs, standings, strict=True) if s.level is not Level.REFUSED])
        for level in Level:
            held = [(p, s) for p, s in zip(pairs, standings, strict=True) if s.level is level]
            questions = [self._question(*pair) for pair, _ in held]
            for (pair, standing), question, answer in zip(held, questions, judge_sampled(questions), strict=True):
                rows.append(self._sampled_row(*pair, question, answer, standing))
        return rows

    def _sampled_row(self, before: Kept, now: Kept, question: Sampled, answer: Answer, standing: Standing) -> Row:
        verdict, reason = answer.verdict, answer.reason
        if now.broken and not before.broken:
            verdict, reason = Verdict.REGRESSED, f"{now.broken} rounds gave no number"
        if standing.level is Level.REFUSED:
            verdict, reason = Verdict.INCOMPARABLE, "; ".join(standing.reasons)
        relative = self._relative(before) and not question.linear
        show = (lambda mean: mean) if question.linear else math.exp
        own_time = is_timed(now.unit) and not relative
        shown = (before.absolute, now.absolute) if own_time else (question.before, question.now)
        if verdict is Verdict.REGRESSED and own_time:
            held = "compared with the rest of its group" if now.key in self.middles else "or the machine was busy"
            reason += f"; an absolute time, {held}"
        row = self._row(now, verdict, reason)
        return replace(
            row,
            gated=row.gated and standing.level is not Level.COMPARABLE,
            standing=standing.level,
            unit="x" if relative else now.unit,
            yardstick=(now.reference or "") if relative else "",
            before=show(shown[0][0]),
            now=show(shown[1][0]),
            ratio=answer.ratio,
            low=answer.low,
            high=answer.high,
            rounds=question.now[2],
        )

    def _standing(self, before: Kept, now: Kept) -> Standing:
        """A ratio stands as its two sides do: where devices are compared, its reference is on another one."""
        relative = self._relative(before)
        if relative and before.reference != now.reference:
            return Standing(Level.REFUSED, ("compared with another reference",))
        if not is_timed(now.unit):
            return Standing()
        cells = [now.cell, *([now.reference] if relative and now.reference else [])]
        return worst([self._on_device(str(self.cells.at[cell, "device"]).partition("(")[0]) for cell in cells])

    def _on_device(self, device: str) -> Standing:
        if device not in self.machines:
            self.machines[device] = held_against(self.fingerprint, self.run.fingerprint, device)
        return self.machines[device]

    def _relative(self, before: Kept) -> bool:
        """Variants are judged by their ratio to the reference, the reference and the rest by themselves."""
        return before.ratio[2] > 0

    def _question(self, before: Kept, now: Kept) -> Sampled:
        relative, timed, gate = self._relative(before), is_timed(now.unit), self.gate(now)
        default = ACCURACY_THRESHOLD if now.unit == "fraction" else ACROSS_RUNS_TIME_THRESHOLD
        threshold = default if gate.threshold is None else gate.threshold
        floor = gate.floor if gate.floor is not None else (TIME_FLOOR if now.unit == "s" else 0.0)
        if not timed and any(kept.plain[2] > kept.absolute[2] for kept in (before, now)):
            allowed = max(threshold * abs(before.plain[0]), floor)
            return Sampled(before.plain, now.plain, now.better, allowed, 0.0, linear=True)
        if before.value > 0:
            threshold = max(threshold, floor / before.value)
        if relative:
            return Sampled(before.ratio, now.ratio, now.better, threshold, BETWEEN_RUNS if timed else 0.0)
        if timed and now.key in self.middles:
            return Sampled(*self._against_the_rest(before, now), now.better, threshold, BETWEEN_RUNS)
        if timed:  # alone with the machine's mood: the wide threshold is itself the allowance for another day
            threshold = max(threshold, WIDE_THRESHOLD)
        return Sampled(before.absolute, now.absolute, now.better, threshold, 0.0)

    def _against_the_rest(self, before: Kept, now: Kept) -> tuple[Spread, Spread]:
        """A reference's logs relative to the variant of its group that changed as the middle one did.

        Absolute times depend on the machine's mood; against the rest of its group a reference is known as well as any
        variant, and without this row its slowness would pass as everyone's improvement. Its own time has to
        have gone the same way, by half as much at least: otherwise the rest has changed and not the reference.
        """
        then, today = (_mirrored(kept.ratio) for kept in self.middles[now.key])
        change, own = today[0] - then[0], now.absolute[0] - before.absolute[0]
        went_along = math.copysign(1.0, change) * own >= abs(change) / 2
        return then, (today if went_along else (then[0], *today[1:]))


def _rounds(kept: Kept) -> int:
    """Rounds that gave a number; what is counted once, or is not a number, was still measured once."""
    return max(kept.plain[2], 1)


def _mirrored(spread: Spread) -> Spread:
    """Of logs of variant / reference, the logs of reference / variant."""
    mean, sd, n = spread
    return -mean, sd, n


def _middles(pairs: list[tuple[Kept, Kept]]) -> dict[Key, tuple[Kept, Kept]]:
    """By reference cell, metric and form: before and now of the variant whose log ratio changed by the median."""
    variants: dict[Key, list[tuple[float, Kept, Kept]]] = {}
    for before, now in pairs:
        if now.reference and before.reference == now.reference != now.cell and min(before.ratio[2], now.ratio[2]) > 0:
            change = now.ratio[0] - before.ratio[0]
            variants.setdefault((now.reference, now.metric, now.form), []).append((change, before, now))
    middles = {}
    for key, changes in variants.items():
        changes.sort(key=lambda item: item[0])
        _, before, now = changes[len(changes) // 2]  # of two the one that speaks less for a slower reference
        middles[key] = before, now
    return middles


def _only(axes: Mapping[str, Json], names: frozenset[str]) -> dict[str, Json]:
    return {name: value for name, value in axes.items() if name in names}


def _varying_axes(baseline: Mapping[str, Json]) -> frozenset[str]:
    seen: dict[str, set[Json]] = {}
    for entry in baseline["cells"].values():
        for axis, value in entry["axes"].items():
            seen.setdefault(axis, set()).add(value)
    return frozenset(axis for axis, values in seen.items() if len(values) > 1)
