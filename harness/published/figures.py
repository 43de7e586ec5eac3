"""The figures by id, read from package data when they are first asked for."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from harness.registry import unknown

FILES = ("reparam.csv", "dynamic.csv")
"""Re-parameterized blocks; dynamic convolutions, attentions and what stands beside them."""


@dataclass(frozen=True)
class Figure:
    """One printed number. `value` is in `unit`, both as the source has them; `hardware` and `software` may be empty."""

    id: str
    paper: str
    table: str
    block: str
    backbone: str
    metric: str
    value: float
    unit: str
    hardware: str
    software: str
    setting: str
    source: str


def figures() -> tuple[Figure, ...]:
    """All of them, in the order of the files."""
    return tuple(_by_id().values())


def figure(id: str) -> Figure:
    """The figure called `id`; UnknownName with the nearest ids when there is none."""
    if id not in _by_id():
        raise unknown("published figure", id, _by_id())
    return _by_id()[id]


@cache
def _by_id() -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for name in FILES:
        text = files(__package__).joinpath(name).read_text(encoding="utf-8")
        for row in csv.DictReader(text.splitlines()):
            if row["id"] in found:
                raise ValueError(f"two published figures are called {row['id']}")  # our bug, not the user's
            found[row["id"]] = _figure(row)
    return found


def _figure(row: dict[str, str]) -> Figure:
    same = ("id", "paper", "block", "backbone", "metric", "unit", "hardware", "software", "setting", "source")
    return Figure(table=row["table_or_figure"], value=float(row["value"]), **{name: row[name] for name in same})
