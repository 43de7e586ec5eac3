"""Frames of a run's records: journal -> pandas. Everything downstream (verdicts, reports) starts from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness.catalog import quantities_of, quantity_of
from harness.records import AXES, Cell, Json, Kind, Reading, Record
from harness.store.pairs import ORDER

ROUND_COLUMNS = ["cell", "metric", "form", "unit", "kind", "better", "round", "value", "status", "visits"]
SAMPLE_COLUMNS = ["cell", "metric", "form", "unit", "round", "sample", "value"]


def cells_frame(groups: Iterable[Json], planned: Mapping[str, Cell]) -> pd.DataFrame:
    """One row per cell of the groups, as run.json has them."""
    rows = []
    for group in groups:
        for id_ in group["cells"]:
            place = {"cell": id_, "group": group["id"], "reference": id_ == group["reference"]}
            rows.append({**place, "compared": group["axis"], **planned[id_].axes()})
    columns = ["cell", "group", "reference", "compared", *AXES]
    return pd.DataFrame(rows, columns=columns).set_index("cell")


def rounds_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per cell, metric, form and round."""
    rows = [row for record in records for row in _rounds_of(record)]
    return pd.DataFrame(rows, columns=ROUND_COLUMNS)


def _rounds_of(record: Record) -> Iterator[dict[str, Any]]:
    shared = {"cell": record.cell, "round": record.round, "status": str(record.status)}
    if record.status.measured:
        for reading in record.readings:
            quantity = quantity_of(reading.metric)
            yield shared | {
                "metric": reading.metric,
                "form": reading.form,
                "unit": reading.unit,
                "kind": str(quantity.kind),
                "better": quantity.better,
                "value": _in_one(reading, quantity.kind),
                "visits": reading.values if ORDER in reading.facts else None,
            }
        return
    for quantity in quantities_of(record.metric, record.kind):
        for form in quantity.forms:
            yield shared | {
                "metric": quantity.name,
                "form": form,
                "unit": quantity.unit,
                "kind": str(quantity.kind),
                "better": quantity.better,
                "value": np.nan,
                "visits": None,
            }


def _in_one(reading: Reading, kind: Kind) -> float:
    """A round's value: the median of its measurements, or the first of the numbers that are one close result."""
    if not reading.values:
        return np.nan
    return reading.values[0] if kind is Kind.CLOSE else float(np.median(reading.values))


def samples_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per raw sample."""
    rows = [
        (record.cell, reading.metric, reading.form, reading.unit, record.round, i, value)
        for record in records
        for reading in record.readings
        for i, value in enumerate(reading.values)
    ]
    return pd.DataFrame(rows, columns=SAMPLE_COLUMNS)
