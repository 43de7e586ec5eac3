"""The cells that tests of metrics begin with, and how they are read."""

from __future__ import annotations

from dataclasses import replace

from harness.measuring.subject import Subject
from harness.metrics import METRICS
from harness.records import Cell, Reading, Variant

CELL = Cell(
    block=Variant("conv"),
    backbone=Variant("layer"),
    kernel_size=3,
    device=Variant("cpu"),
    dtype="float32",
    memory_format="contiguous",
    batch_size=2,
    image_size=14,
    optimizer=Variant("sgd"),
    where=Variant("default"),
    dataset=Variant("mnist"),
    threads=None,
)


def net(backbone="resnet18", block="conv", **changes) -> Cell:
    named = Variant(block) if isinstance(block, str) else block
    return replace(CELL, backbone=Variant(backbone), block=named, kernel_size=None, **{"image_size": 64, **changes})


def read(name, cell, **options) -> dict[str, Reading]:
    """A metric's readings by quantity; of several forms the last."""
    subject = Subject(cell)
    with subject.settings(METRICS[name].on_device):
        return {reading.metric: reading for reading in METRICS[name].readings(subject, options)}


def count(name, cell, form) -> dict[str, float]:
    """A counting metric's values in one form."""
    return {r.metric: r.values[0] for r in METRICS[name].readings(Subject(cell), {}) if r.form == form}


def both_params(cell) -> dict[str, float]:
    """Parameters by form."""
    return {r.form: r.values[0] for r in METRICS["params"].readings(Subject(cell), {})}
