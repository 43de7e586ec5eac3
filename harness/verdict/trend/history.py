"""A folder of runs as series: for every reading its values in the order in which the runs were started."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.records import Cell, Json, Kind, digest
from harness.store.run import META, Run, open_run
from harness.verdict.baseline import ReadingSummary, summaries_of
from harness.verdict.labels import axes_of, cell_label, varying
from harness.verdict.rules import Gate, is_timed

if TYPE_CHECKING:
    import pandas as pd

LEAST_SHARE = 0.5
"""Of the middle number of rounds: a run with fewer rounds has a wider reading than the rest of its series, which takes
every value as known equally well (half the rounds: 1.4 times the standard error)."""


@dataclass(frozen=True)
class PastRun:
    """One run of the folder, as far as a reader of a trend needs to know it. `started` is in ISO 8601, UTC."""

    name: str
    path: str
    suite: str
    started: str
    source: str
    versions: Mapping[str, str]
    machine: str
    """A digest of the machine part of its fingerprint."""


@dataclass(frozen=True)
class Series:
    """One reading over the runs that have it, on one machine, in the order of their start.

    `runs` are places in `History.runs`. `values` are what is looked at: means of log ratios to `reference` (`scale`
    "ratio"), means of logs ("log") or values in `unit` ("plain").
    """

    cell: str
    label: str
    metric: str
    form: str
    kind: Kind
    better: str
    unit: str
    scale: str
    reference: str
    suite: str
    machine: str
    gate: Gate
    runs: tuple[int, ...]
    summaries: tuple[ReadingSummary, ...]
    values: tuple[float, ...]

    def shown(self, value: float) -> float:
        """A value as people read it: a ratio, or in the reading's unit."""
        return value if self.scale == "plain" else math.exp(value)


@dataclass(frozen=True)
class History:
    """What a folder holds: its runs by their start, the series, and what was left out and why."""

    runs: tuple[PastRun, ...]
    series: tuple[Series, ...]
    cells: Mapping[str, Cell]
    machines: Mapping[str, str]
    """Digest of a machine -> what it is, in words."""
    unreadable: Mapping[str, str]
    notes: tuple[str, ...]
    repeats: Mapping[tuple[int, str], str]
    """Run and cell -> the command that measures that cell again."""


def read_history(folder: Path) -> History:
    """All runs in the directories below `folder` (or in those below them, as ``results/runs`` has them).

    A run that cannot be read is named in `unreadable`. HarnessError when there is none that can.
    """
    opened, unreadable = _opened(folder)
    if not opened:
        problems = "; ".join(f"{name}: {why}" for name, why in unreadable.items())
        raise HarnessError(
            f"{str(folder)!r} has no run that can be read{f' ({problems})' if problems else ''}",
            remedy="name a folder with the runs of a suite in it, as results/runs/quick",
        )
    opened.sort(key=lambda run: (str(run.meta["started"]), run.path.name))
    runs = tuple(_past_run(run) for run in opened)
    series, notes = _series(opened, runs)
    cells = {id_: cell for run in opened for id_, cell in run.planned_cells.items()}
    machines = {past.machine: machine_text(run.fingerprint.machine) for run, past in zip(opened, runs, strict=True)}
    repeats = {(i, cell): run.command_for(cell) for i, run in enumerate(opened) for cell in run.planned_cells}
    return History(runs, series, cells, machines, unreadable, notes, repeats)


def _opened(folder: Path) -> tuple[list[Run], dict[str, str]]:
    opened, unreadable = [], {}
    for meta in sorted([*folder.glob(f"*/{META}"), *folder.glob(f"*/*/{META}")]):
        try:
            run = open_run(meta.parent)
            _past_run(run), run.planned_cells, run.gates  # a run of another kind is found out here
        except HarnessError as problem:
            unreadable[str(meta.parent)] = problem.problem
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            unreadable[str(meta.parent)] = f"its {META} is not a run's: {type(problem).__name__}: {problem}"
        else:
            opened.append(run)
    return opened, unreadable


def _past_run(run: Run) -> PastRun:
    prints = run.fingerprint
    started = str(run.meta["started"])
    return PastRun(
        run.path.name, str(run.path), run.name, started, prints.source, prints.versions, digest(dict(prints.machine))
    )


def machine_text(machine: Mapping[str, Json]) -> str:
    """A fingerprint's machine part in words: ``cpu Some CPU @ 2.0 GHz, threads 2``."""
    parts = []
    for name, facts in machine.items():
        if isinstance(facts, Mapping):
            parts.append(f"{name} {facts.get('model') or ''}".strip())
        elif facts is not None:
            parts.append(f"{name} {facts}")
    return ", ".join(parts) or "unknown machine"


def _series(opened: Sequence[Run], runs: Sequence[PastRun]) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    found: dict[tuple[str, ...], list[tuple[int, ReadingSummary, str]]] = defaultdict(list)
    notes: list[str] = []
    for i, (run, past) in enumerate(zip(opened, runs, strict=True)):
        for summary in summaries_of(run).values():
            scale, reference = _scale(summary)
            key = (past.machine, past.suite, *summary.key, str(summary.kind), summary.unit, scale, reference)
            found[key].append((i, summary, scale))
        if run.damaged:
            notes.append(f"{past.path}: {run.damaged} lines of its journal are no records and were left out")
    labels = _labels([run.cells for run in opened])
    short = broken = 0
    series = []
    for (machine, suite, cell, metric, form, *_), entries in found.items():
        sound = [entry for entry in entries if math.isfinite(_value(entry[1], entry[2])) or not _is_sampled(entry[1])]
        whole = _with_enough_rounds(sound)
        broken, short = broken + len(entries) - len(sound), short + len(sound) - len(whole)
        if whole:
            last, scale = whole[-1][1], whole[-1][2]
            series.append(Series(
                cell, labels[cell], metric, form, last.kind, last.better, last.unit, scale,
                (last.reference or "") if scale == "ratio" else "", suite, machine,
                Gate.of(opened[whole[-1][0]].gates, metric), tuple(i for i, _, _ in whole),
                tuple(summary for _, summary, _ in whole), tuple(_value(summary, scale) for _, summary, _ in whole),
            ))  # fmt: skip
    if broken:
        notes.append(f"{broken} sampled readings gave no number and were left out of their series")
    if short:
        notes.append(f"{short} readings had fewer than half the rounds of their series and were left out of it")
    return tuple(series), tuple(notes)


def _scale(summary: ReadingSummary) -> tuple[str, str]:
    """How a reading is looked at, and to which cell it is relative.

    Times relative to the reference where there is one, else by their logs; what may be zero by its values.
    """
    if not _is_sampled(summary) or not is_timed(summary.unit):
        return "plain", ""
    return ("ratio", summary.reference or "") if summary.ratio[2] else ("log", "")


def _is_sampled(summary: ReadingSummary) -> bool:
    return summary.kind is Kind.SAMPLED


def _value(summary: ReadingSummary, scale: str) -> float:
    if not _is_sampled(summary):
        return summary.value
    return {"ratio": summary.ratio, "log": summary.absolute, "plain": summary.plain}[scale][0]


def _with_enough_rounds(entries: list[tuple[int, ReadingSummary, str]]) -> list[tuple[int, ReadingSummary, str]]:
    if not entries or not _is_sampled(entries[0][1]):
        return entries
    rounds = [summary.plain[2] for _, summary, _ in entries]
    least = LEAST_SHARE * median(rounds)
    return [entry for entry, n in zip(entries, rounds, strict=True) if n >= least]


def _labels(frames: Iterable[pd.DataFrame]) -> dict[str, str]:
    """Cell -> its block and whatever else varies in these runs."""
    import pandas as pd

    cells = pd.concat(list(frames))
    cells = cells[~cells.index.duplicated()]
    vary = varying(cells)
    return {cell: cell_label(axes_of(cells, cell), vary) for cell in cells.index}
