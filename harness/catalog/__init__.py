"""What planning must know without torch: names, options and limits, read from package data.

`index.json` and `backbones.json` are generated from the blocks, metrics, datasets, devices, optimizers and backbones
by ``python -m harness.indexing``; a test fails when they are out of date.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from harness.quantity import Quantity, Rate
from harness.records import Json, Kind, TaskKind
from harness.registry import unknown


@cache
def _read(name: str) -> dict[str, Json]:
    data: dict[str, Json] = json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))
    return data


def blocks() -> dict[str, Json]:
    """Block name -> declaration: family, paper, fusable, evaluations, options, limits."""
    return dict(_read("index.json")["blocks"])


def metrics() -> dict[str, Json]:
    """Metric name -> task kind, options and the quantities it reads."""
    return dict(_read("index.json")["metrics"])


def datasets() -> dict[str, Json]:
    """Dataset name -> what it is, its channels and classes."""
    return dict(_read("index.json")["datasets"])


def optimizers() -> dict[str, Json]:
    """Optimizer name -> what it is and its options."""
    return dict(_read("index.json")["optimizers"])


def devices() -> dict[str, Json]:
    """Kind of device -> what it is, its options and defaults, in the order of lists."""
    return dict(_read("index.json")["devices"])


def device(name: str) -> Json:
    """The declaration of the kind of a device, as the device axis names it: ``cpu``, ``cuda:1``. Raises UnknownName."""
    return lookup("device", devices(), name.partition(":")[0])


def backbones() -> dict[str, Json]:
    """Backbone name -> source, square kernels that a block can take the place of, `native`."""
    return _read("backbones.json")


def layers() -> dict[str, Json]:
    """Those backbones that are a single layer -> their options and the sizes that they have when a suite says none."""
    return dict(_read("index.json")["layers"])


def lookup(kind: str, table: dict[str, Json], name: str) -> Json:
    """The entry called `name`; UnknownName with the nearest names when there is none."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


@cache
def quantities() -> dict[str, Quantity]:
    """Every quantity that any metric reads, by name."""
    return {name: quantity for name, quantity in described().items() if quantity.rate is None}


@cache
def rates() -> tuple[tuple[Quantity, Rate], ...]:
    """The quantities that no metric reads, and what each is computed from."""
    return tuple((quantity, quantity.rate) for quantity in described().values() if quantity.rate is not None)


@cache
def described() -> dict[str, Quantity]:
    """Every quantity that a report can have, read or computed, by name."""
    entries = [entry for metric in metrics().values() for entry in (*metric["quantities"], *metric["rates"])]
    return {entry["name"]: Quantity.from_json(entry) for entry in entries}


def quantity_of(name: str) -> Quantity:
    """As its metric declares it; one no metric reads any more, as of a recorded run, is sampled and says nothing."""
    return described().get(name) or Quantity(name, "", Kind.SAMPLED)


def quantities_of(metric: str, kind: TaskKind) -> list[Quantity]:
    """What a metric would have read; used to show a failed one in every column it leaves empty."""
    entry = metrics().get(metric)
    if entry is None or entry["task"] != kind:
        return []
    names = [quantity["name"] for quantity in entry["quantities"]]
    return [quantities()[name] for name in names]
