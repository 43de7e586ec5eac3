"""One cell in full: what it is, its samples, its facts, what went wrong, and how to repeat it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.catalog import quantity_of
from harness.errors import HarnessError
from harness.records import Kind, Record
from harness.registry import unknown
from harness.units import scale_for
from harness.verdict.labels import axes_of, describe, reading_name, varying

if TYPE_CHECKING:
    from harness.verdict.protocols import Run

TAIL = 40
"""Lines of a dead worker's output: its last words are there."""


def show(run: Run, cell_id_prefix: str) -> str:
    """Samples, facts, status, traceback and the command for one cell.

    HarnessError when no cell's id begins so, or more than one's.
    """
    cell = _the_cell(run, cell_id_prefix)
    records = [record for record in run.records() if record.cell == cell]
    axes = axes_of(run.cells, cell)
    lines = [f"cell {cell}", describe(axes, varying(run.cells)), f"group {run.cells['group'][cell]}", ""]
    lines += [f"  {axis}: {value}" for axis, value in axes.items() if value not in (None, "", False)]
    lines += ["", "samples", *_samples(run, cell)]
    lines += _facts(records)
    for record in records:
        lines += _trouble(record)
    return "\n".join([*lines, "", f"repeat: {run.command_for(cell)}"]) + "\n"


def _the_cell(run: Run, prefix: str) -> str:
    ids = [str(cell) for cell in run.cells.index]
    matching = [cell for cell in ids if cell.startswith(prefix)]
    if not matching:
        raise unknown("cell", prefix, ids)
    if len(matching) > 1:
        shown = ", ".join(matching[:4])
        raise HarnessError(f"{len(matching)} cells begin with {prefix!r}", remedy=f"write more of one: {shown}")
    return matching[0]


def _samples(run: Run, cell: str) -> Iterator[str]:
    samples = run.samples()
    samples = samples[samples["cell"] == cell]
    if samples.empty:
        yield "  none"
    for (metric, form), rows in samples.groupby(["metric", "form"], sort=False, dropna=False):
        values = rows["value"].to_numpy(dtype=float)
        finite = values[np.isfinite(values)]
        scale = scale_for(str(rows["unit"].iloc[0]), finite)
        name = reading_name(str(metric), str(form))
        if len(values) == 1:
            whole = abs(values[0]) < 1e15 and float(values[0]).is_integer() and scale.factor != 1
            yield f"  {name}: {scale.with_unit(values[0])}{f' ({values[0]:,.0f})' if whole else ''}"
            continue
        if quantity_of(str(metric)).kind is Kind.CLOSE:  # several values that are one result
            yield f"  {name}: {' '.join(f'{value:.6g}' for value in values)}"
            continue
        middle, least, most = (scale.text(f(finite)) if len(finite) else "–" for f in (np.median, np.min, np.max))
        rounds = rows["round"].nunique()
        yield f"  {name}: median {middle} {scale.name}, {least} to {most}, {len(values)} samples in {rounds} rounds"
        for number, visit in rows.groupby("round"):
            yield f"    round {number}: {_few([scale.text(value) for value in visit['value']])}"


def _few(texts: list[str], most: int = 8) -> str:
    """The first and the last samples: a drift shows, a thousand numbers do not help."""
    if len(texts) <= most:
        return " ".join(texts)
    return f"{' '.join(texts[: most // 2])} ... {' '.join(texts[-most // 2 :])} ({len(texts)})"


def _facts(records: list[Record]) -> Iterator[str]:
    """Facts of readings, each once; those that differ by round with all their values."""
    found: dict[str, dict[str, list[str]]] = {}
    for record in records:
        sources: list[tuple[str, Any, str]] = [
            (reading_name(r.metric, r.form), r.facts, r.unit) for r in record.readings
        ]
        for name, facts, unit in [*sources, (record.metric or str(record.kind), record.facts, "")]:
            for key, text in _texts(facts, unit):
                found.setdefault(name, {}).setdefault(key, []).append(text)
    if found:
        yield from ("", "facts")
    for name, known in found.items():
        for key, values in known.items():
            yield f"  {name}: {key}: {_few(list(dict.fromkeys(values)), 6)}"


def _texts(facts: Mapping[str, Any], unit: str) -> Iterator[tuple[str, str]]:
    """Facts as lines: one for each part of a breakdown and for each item of a list of sentences."""
    for key, value in facts.items():
        if isinstance(value, Mapping) and value and all(isinstance(part, int) for part in value.values()):
            yield from ((f"{key}: {name}", scale_for(unit, [part]).with_unit(part)) for name, part in value.items())
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            yield from ((f"{key} {number}", item) for number, item in enumerate(value, 1))
        else:
            text = value if isinstance(value, str) else json.dumps(_rounded(value), ensure_ascii=False, default=str)
            yield key, _short(text)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _trouble(record: Record) -> Iterator[str]:
    """Status and reason of what was not measured, the traceback and the end of the output."""
    if record.status.measured:
        return
    name = record.metric or str(record.kind)
    yield from ("", f"{name}, round {record.round}: {record.status}{f': {record.reason}' if record.reason else ''}")
    for title, text in (("traceback", record.traceback), ("output", record.output)):
        lines = text.rstrip().splitlines()
        if lines:
            skipped = [f"    ... {len(lines) - TAIL} lines before"] if len(lines) > TAIL else []
            yield from (f"  {title}:", *skipped, *(f"    {line}" for line in lines[-TAIL:]))
