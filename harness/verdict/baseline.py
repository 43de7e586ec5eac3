"""Chosen readings of a run, small and diff-friendly, kept in git for `check` to hold later runs against.

One line of JSON per reading: counts exactly, bounded quantities with their limit, close ones with all their values,
sampled ones as mean, standard deviation and number of rounds of their logs, both of the ratio to the reference and
absolute.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.records import Fingerprint, Json, Kind, Record
from harness.store.summary import KEY, last_visits, per_form
from harness.verdict.compare import paired, reference_of
from harness.verdict.labels import axes_of, plain
from harness.verdict.protocols import Run
from harness.verdict.rules import Gate, default_limit, is_timed
from harness.verdict.statistics import log_ratios, spread

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "harness-baseline"
BASELINE_VERSION = 1

Spread = tuple[float, float, int]
"""Mean and standard deviation (NaN when there is none) of logs over rounds, and how many rounds."""

NO_SPREAD: Spread = (math.nan, math.nan, 0)


class NoBaseline(HarnessError):
    """There is nothing to hold a run against, or nothing to make a baseline from: exit code 5."""

    exit_code = 5


@dataclass(frozen=True)
class ReadingSummary:
    """One reading as a baseline keeps it; `value` in SI units.

    `absolute` and `ratio` are of logs, `ratio` is empty for what has no reference. `plain` is of the values
    themselves: a number of changed predictions may be zero. `broken` counts rounds that gave no number. `values` are
    those of a close reading, in their order; `value` is then the first of them.
    """

    cell: str
    metric: str
    form: str
    kind: Kind
    better: str
    unit: str
    value: float
    reference: str | None = None
    limit: float | None = None
    absolute: Spread = NO_SPREAD
    ratio: Spread = NO_SPREAD
    plain: Spread = NO_SPREAD
    broken: int = 0
    values: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        return self.cell, self.metric, self.form

    def to_json(self) -> Json:
        line: dict[str, Json] = {"kind": str(self.kind), "better": self.better, "unit": self.unit}
        line["value"] = _short(self.value) if self.kind is not Kind.COUNT else _exact(self.value)
        if self.limit is not None:
            line["limit"] = self.limit
        if self.kind is Kind.CLOSE:
            line["values"] = [_short(value) for value in self.values]
        if self.kind is Kind.SAMPLED:
            line["log"] = [_short(self.absolute[0]), _short(self.absolute[1]), self.absolute[2]]
            if self.ratio[2]:
                line["log_ratio"] = [_short(self.ratio[0]), _short(self.ratio[1]), self.ratio[2]]
            if not is_timed(self.unit):
                line["plain"] = [_short(self.plain[0]), _short(self.plain[1]), self.plain[2]]
            if self.broken:
                line["broken"] = self.broken
        return line

    @classmethod
    def from_json(cls, cell: str, name: str, reference: str | None, line: Json) -> ReadingSummary:
        metric, _, form = name.partition("/")
        return cls(
            cell, metric, form, Kind(line["kind"]), line["better"], line["unit"], _number(line["value"]), reference,
            line.get("limit"), _spread(line.get("log")), _spread(line.get("log_ratio")), _spread(line.get("plain")),
            int(line.get("broken", 0)), _numbers(line["values"]) if line["kind"] == Kind.CLOSE else (),
        )  # fmt: skip


def summaries_of(run: Run) -> dict[tuple[str, str, str], ReadingSummary]:
    """Everything that a run measured, by cell, metric and form, as a baseline would keep it."""
    cells, rounds = run.cells, run.rounds()
    measured = last_visits(rounds)
    references = reference_of(cells)
    absolute = _spreads(measured, log_ratios(measured["value"], 1.0))
    values = _spreads(measured, measured["value"])
    seen = Counter(zip(*(measured[name] for name in KEY), strict=True))
    pairs = paired(cells, rounds)
    ratio = _spreads(pairs, pairs["log_ratio"])
    several = _several(run.records()) if (measured["kind"] == Kind.CLOSE).any() else {}
    found = {}
    for row in per_form(measured).to_dict("records"):
        key = (row["cell"], row["metric"], row["form"])
        if key[0] not in cells.index:
            continue
        limit = None
        if row["kind"] == Kind.BOUNDED:
            chosen = Gate.of(run.gates, key[1]).limit
            limit = default_limit(key[1], str(cells.at[key[0], "dtype"])) if chosen is None else chosen
        reference = plain(references[key[0]])
        found[key] = ReadingSummary(
            *key, Kind(row["kind"]), row["better"], row["unit"], float(row["value"]),
            None if reference is None else str(reference), limit, absolute[key], ratio.get(key, NO_SPREAD),
            values[key], seen[key] - values[key][2], several.get(key, ()) if row["kind"] == Kind.CLOSE else (),
        )  # fmt: skip
    return found


def _several(records: Iterable[Record]) -> dict[tuple[str, str, str], tuple[float, ...]]:
    """All values of every reading; of one that was repeated the last counts, as in the frames."""
    measured = (record for record in records if record.status.measured)
    return {
        (record.cell, reading.metric, reading.form): reading.values
        for record in measured
        for reading in record.readings
    }


def make_baseline(run: Run) -> dict[str, Json]:
    """The readings of a run that its gates watch, as JSON. Raises NoBaseline when there are none."""
    by_cell: dict[str, dict[str, Json]] = {}
    for summary in summaries_of(run).values():
        if Gate.of(run.gates, summary.metric).gate:
            readings = by_cell.setdefault(summary.cell, {"reference": summary.reference, "readings": {}})["readings"]
            readings[f"{summary.metric}/{summary.form}" if summary.form else summary.metric] = summary.to_json()
    if not by_cell:
        raise NoBaseline(
            f"{run.path}: the run has no reading to keep",
            remedy="run the suite until something is measured (harness show tells why a cell was not)",
        )
    for cell, entry in by_cell.items():
        entry["axes"] = axes_of(run.cells, cell)
        entry["readings"] = dict(sorted(entry["readings"].items()))
    order = sorted(by_cell, key=lambda cell: ([str(value) for value in by_cell[cell]["axes"].values()], cell))
    return {
        "format": FORMAT,
        "version": BASELINE_VERSION,
        "suite": run.name,
        "fingerprint": run.fingerprint.to_json(),
        "cells": {cell: by_cell[cell] for cell in order},
    }


def write_baseline(baseline: Mapping[str, Json], path: Path) -> None:
    """Write it whole or not at all, one line per reading, so that a diff shows what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text("\n".join(_lines(baseline)) + "\n")
    unfinished.replace(path)


def _lines(baseline: Mapping[str, Json]) -> Iterable[str]:
    yield "{"
    for name in ("format", "version", "suite", "fingerprint"):
        yield f' "{name}": {_dump(baseline[name])},'
    yield ' "cells": {'
    for i, (cell, entry) in enumerate(baseline["cells"].items()):
        yield f'  "{cell}": {{'
        yield f'   "axes": {_dump(entry["axes"], sort=False)},'
        yield f'   "reference": {_dump(entry["reference"])},'
        yield '   "readings": {'
        lines = [f"    {_dump(name)}: {_dump(line, sort=False)}" for name, line in entry["readings"].items()]
        yield ",\n".join(lines)
        yield "   }"
        yield "  }," if i + 1 < len(baseline["cells"]) else "  }"
    yield " }"
    yield "}"


def load_baseline(path: Path) -> dict[str, Json]:
    """Read and validate. Raises NoBaseline when there is no such file, HarnessError when it is not one."""
    if not path.is_file():
        raise NoBaseline(f"there is no baseline {path}", remedy=f"make one: harness baseline RUN --out {path}")
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise _damaged(path, str(problem)) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise _damaged(path, f"it does not say format {FORMAT}")
    if value.get("version") != BASELINE_VERSION:
        raise HarnessError(
            f"{path}: baseline version {value.get('version')!r}, this harness reads {BASELINE_VERSION}",
            remedy="make it again with this harness: harness baseline RUN --out FILE",
        )
    try:
        summaries_in(value)
        machine_of(value)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise _damaged(path, f"{type(problem).__name__}: {problem}") from None
    return value


def _damaged(path: Path, why: str) -> HarnessError:
    remedy = f"restore it (git checkout -- {path}) or make it again: harness baseline RUN --out {path}"
    return HarnessError(f"{path} is not a readable baseline: {why}", remedy=remedy)


def summaries_in(baseline: Mapping[str, Json]) -> dict[tuple[str, str, str], ReadingSummary]:
    """The readings of a baseline, by cell, metric and form."""
    found = {}
    for cell, entry in baseline["cells"].items():
        dict(entry["axes"])  # a baseline without axes is damaged
        for name, line in entry["readings"].items():
            summary = ReadingSummary.from_json(cell, name, entry["reference"], line)
            found[summary.key] = summary
    return found


def machine_of(baseline: Mapping[str, Json]) -> Fingerprint:
    """The fingerprint of the run that the baseline was made from."""
    return Fingerprint.from_json(baseline["fingerprint"])


def _spreads(rows: pd.DataFrame, values: Iterable[float]) -> dict[tuple[str, str, str], Spread]:
    """The spread of a value per row, by cell, metric and form."""
    by_key: dict[tuple[str, str, str], list[float]] = {}
    for cell, metric, form, value in zip(*(rows[name] for name in KEY), values, strict=True):
        by_key.setdefault((cell, metric, form), []).append(value)
    return {key: spread(found) for key, found in by_key.items()}


def _spread(value: Json) -> Spread:
    return NO_SPREAD if value is None else (_number(value[0]), _number(value[1]), int(value[2]))


def _number(value: Json) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Json) -> tuple[float, ...]:
    return tuple(_number(value) for value in values)


def _short(value: float) -> float | None:
    """Nine digits: far below any noise, and the file stays small. JSON has no NaN."""
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _exact(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else value


def _dump(value: Json, sort: bool = True) -> str:
    return json.dumps(value, sort_keys=sort, ensure_ascii=False, allow_nan=False)
