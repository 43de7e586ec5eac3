"""The frozen things that travel: variants, cells, tasks, readings, records, fingerprints.

All of them turn into plain JSON and back without loss. Values are raw and in SI base units (seconds,
bytes, counts, fractions); whatever is a summary is computed when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, Self

RECORD_VERSION = 1

Json = Any
"""Whatever `json` reads and writes; validated where it enters (suite.py, store/), trusted afterwards."""

Form = Literal["train", "fused", ""]
"""As trained, as one convolution, or not a fact of either form."""


class Kind(StrEnum):
    """How a quantity is compared: for equality, with a limit, with what was stored, or by statistics.

    Close is within a tolerance of the stored values, element by element: such a reading has several values, and they
    are one result, not repeated measurements.
    """

    COUNT = "count"
    BOUNDED = "bounded"
    CLOSE = "close"
    SAMPLED = "sampled"


class Status(StrEnum):
    """How a task ended for one cell. `partial`: measured, in a group that had lost a variant."""

    OK = "ok"
    PARTIAL = "partial"
    OOM = "oom"
    TIMEOUT = "timeout"
    ERROR = "error"
    UNSUPPORTED = "unsupported"
    SKIPPED = "skipped"
    KILLED = "killed"

    @property
    def measured(self) -> bool:
        return self in (Status.OK, Status.PARTIAL)

    @property
    def failed(self) -> bool:
        return self in (Status.OOM, Status.TIMEOUT, Status.ERROR, Status.KILLED)


def digest(value: Json, length: int = 12) -> str:
    """A short stable hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Variant:
    """A name with options, as in ``dbb`` or ``{orepa: {reparam: offline}}``."""

    name: str
    options: Mapping[str, Json] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.label)

    @property
    def label(self) -> str:
        """Readable and unique: ``orepa(reparam=offline)``."""
        if not self.options:
            return self.name
        inside = ", ".join(f"{key}={_plain(value)}" for key, value in sorted(self.options.items()))
        return f"{self.name}({inside})"

    def to_json(self) -> Json:
        return {self.name: dict(self.options)} if self.options else self.name

    @classmethod
    def from_json(cls, value: Json) -> Self:
        if isinstance(value, str):
            return cls(value)
        ((name, options),) = value.items()
        return cls(name, options or {})


def _plain(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)


VARIANT_AXES = ("block", "backbone", "device", "where", "optimizer", "dataset")
"""Axes whose values may carry options."""


@dataclass(frozen=True)
class Cell:
    """One point of the matrix, every default already filled in.

    `kernel_size` None leaves the sizes as the backbone has them. `image_size` is in pixels (for the
    backbone `layer`: the side of the feature map). `threads` None is torch's own choice.
    """

    block: Variant
    backbone: Variant
    kernel_size: int | None
    device: Variant
    dtype: str
    memory_format: str
    batch_size: int
    image_size: int
    optimizer: Variant
    where: Variant
    dataset: Variant
    threads: int | None
    part: str = ""
    """Of a suite with several parts, the one that asks for this cell."""
    checkpointing: bool = False
    """Whether activations are computed again in backward instead of kept."""

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits: a hash of everything that defines the cell."""
        return digest(self.to_json())

    def to_json(self) -> Json:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v.to_json() if isinstance(v, Variant) else v for name, v in values.items()}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        point: dict[str, Any] = {k: Variant.from_json(v) if k in VARIANT_AXES else v for k, v in value.items()}
        return cls(**point)

    def axes(self) -> dict[str, str | int | None]:
        """Every axis as one printable value, as the columns of a frame want it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v.label if isinstance(v, Variant) else v for name, v in values.items()}

    def without(self, axis: str) -> str:
        """The id of the group this cell belongs to when `axis` is the compared one."""
        return digest({k: v for k, v in self.to_json().items() if k != axis})


AXES = tuple(f.name for f in fields(Cell))


@dataclass(frozen=True)
class Budget:
    """How much to measure. The whole suite stays upstairs; workers see only this."""

    rounds: int = 10
    seconds: float = 1.0
    warmup: int = 2
    seeds: int = 1
    timeout: float = 600.0
    memory: int | None = None
    precision: float | None = None
    group_time: float | None = None


class TaskKind(StrEnum):
    """What one fresh process does: a cell's clockless metrics, a round of a group, what a cell costs at its very
    first step, or a training from a seed. A look is no task: it is where a group's rounds so far were judged.
    """

    CELL = "cell"
    VISIT = "visit"
    FIRST = "first"
    TRAINING = "training"
    LOOK = "look"


@dataclass(frozen=True)
class Task:
    """The work of one process. `round` numbers the rounds of a group or cell, or the seeds of a training."""

    kind: TaskKind
    cells: tuple[Cell, ...]
    metrics: tuple[Variant, ...]
    round: int
    budget: Budget

    @property
    def key(self) -> str:
        """What makes two tasks the same work; the budget's limits do not."""
        cells = [cell.id for cell in self.cells]
        metrics = [metric.to_json() for metric in self.metrics]
        effort = [self.budget.seconds, self.budget.warmup]
        return digest([self.kind, cells, metrics, self.round, effort])

    def without(self, cell_ids: frozenset[str]) -> Task:
        return replace(self, cells=tuple(cell for cell in self.cells if cell.id not in cell_ids))

    def expects(self) -> set[tuple[str, str]]:
        """The (cell id, metric name) pairs that this task owes a record for."""
        return {(cell.id, metric.name) for cell in self.cells for metric in self.metrics}

    def to_json(self) -> Json:
        return {
            "kind": str(self.kind),
            "cells": [cell.to_json() for cell in self.cells],
            "metrics": [metric.to_json() for metric in self.metrics],
            "round": self.round,
            "budget": asdict(self.budget),
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(
            TaskKind(value["kind"]),
            tuple(Cell.from_json(cell) for cell in value["cells"]),
            tuple(Variant.from_json(metric) for metric in value["metrics"]),
            value["round"],
            Budget(**value["budget"]),
        )


@dataclass(frozen=True)
class Reading:
    """A quantity's raw values for one form, and facts about them (order, warm-up, assumptions)."""

    metric: str
    form: Form
    unit: str
    values: tuple[float, ...]
    facts: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Values that are not finite are written as words: JSON has no number for them."""
        values = [value if math.isfinite(value) else str(value) for value in self.values]
        return {**asdict(self), "values": values, "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(**{**value, "values": tuple(_number(each) for each in value["values"])})


def _number(value: Json) -> float:
    """As it was written: a count stays a whole number."""
    return float(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Record:
    """What one task found out about one cell by one metric: a line of the journal."""

    task: str
    kind: TaskKind
    cell: str
    metric: str
    round: int
    fingerprint: str
    status: Status
    readings: tuple[Reading, ...] = ()
    reason: str = ""
    traceback: str = ""
    output: str = ""
    seconds: float = 0.0
    facts: Mapping[str, Json] = field(default_factory=dict)
    version: int = RECORD_VERSION

    def to_json(self) -> Json:
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        value["readings"] = [reading.to_json() for reading in self.readings]
        value["facts"] = dict(self.facts)
        return value

    @classmethod
    def from_json(cls, value: Json) -> Self:
        if value.get("version") != RECORD_VERSION:
            raise ValueError(f"record version {value.get('version')!r}, this harness reads {RECORD_VERSION}")
        readings = tuple(Reading.from_json(reading) for reading in value["readings"])
        return cls(
            **{**value, "readings": readings, "status": Status(value["status"]), "kind": TaskKind(value["kind"])}
        )


@dataclass(frozen=True)
class Fingerprint:
    """What must agree for two records to be one run; `machine` is the part a timed baseline depends on."""

    source: str
    versions: Mapping[str, str]
    machine: Mapping[str, Json]

    @property
    def id(self) -> str:
        return digest(asdict(self))

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Json) -> Self:
        return cls(**value)
