"""A synthetic run of OREPA's table 4, with the published figures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml
from synthetic_run import FakeRun, cell, cells_frame

from harness.records import Variant
from harness.report.document import PublishedTable
from harness.report.published_tables import published_tables
from harness.report.tables import views

GB = 1e9
R18, R34 = Variant("resnet18"), Variant("resnet34")
# OREPA, table 4, memory in GB: ResNet-18 plain 4.2, DBB 7.5, OREPA 5.2; ResNet-34 plain 5.2, DBB 11.1, OREPA 6.7
TABLE_4 = {
    f"OREPA-T4-{number:03}": f'block == "{block}" and backbone == "{backbone}"'
    for number, block, backbone in [
        (2, "conv", "resnet18"), (5, "dbb", "resnet18"), (8, "orepa", "resnet18"),
        (11, "conv", "resnet34"), (14, "dbb", "resnet34"), (17, "orepa", "resnet34"),
    ]
}  # fmt: skip


def entry(**changes: Any) -> dict[str, Any]:
    plain = {"title": "Table 4", "metric": "train_memory", "unit": "GB", "saved_from": "dbb", "figures": TABLE_4}
    return {key: value for key, value in {**plain, **changes}.items() if value is not None}


@dataclass
class PlannedRun(FakeRun):
    """A synthetic run that knows its cells, with one published entry or more."""

    planned: tuple[Any, ...] = ()

    @cached_property
    def planned_cells(self) -> dict[str, Any]:
        return {one.id: one for one in self.planned}


def run_of(cells: list[Any], *entries: dict[str, Any], reference: str | None = "conv") -> PlannedRun:
    text = yaml.safe_dump({"published": list(entries)}, sort_keys=False)
    return PlannedRun(cells_frame(cells, reference=reference), suite_text=text, planned=tuple(cells))


BLOCKS = ("conv", "dbb", "orepa")
EIGHTEEN = [cell(block) for block in BLOCKS]
THIRTY_FOUR = [cell(block, backbone=R34) for block in BLOCKS]


def measured(*entries: dict[str, Any], cells: list[Any] = EIGHTEEN) -> PlannedRun:
    """2, 5.5 and 2.7 GB on ResNet-18: DBB adds 3.5, OREPA 0.7; on ResNet-34 twice as much."""
    run = run_of(cells, *(entries or (entry(),)))
    size = {"conv": 2.0, "dbb": 5.5, "orepa": 2.7}
    for one in cells:
        run.put(one.id, "train_memory", size[one.block.name] * GB * (2 if one.backbone == R34 else 1), "train")
    return run


def tables_of(run: FakeRun) -> list[PublishedTable]:
    found, problems = published_tables(run, views(run))
    assert problems == []
    return found


def column(printed: list[PublishedTable], *heading: str) -> dict[str, str]:
    """The cells of the only table's column with this heading, by variant."""
    (one,) = printed
    found = [column for column in one.table.columns if column.heading[: len(heading)] == heading]
    return dict(zip(one.table.labels, found[0].cells, strict=True))


SUITE = """\
axes:
  block: [conv, dbb, {orepa: {reparam: offline}}, orepa]
  backbone: [resnet18, resnet34]
exclude: block == "dbb" and backbone == "resnet34"
metrics: [params, train_memory]
published:
  - title: Table 4
    metric: train_memory
    unit: GB
    saved_from: dbb
    figures:
      OREPA-T4-002: block == "conv" and backbone == "resnet18"
      OREPA-T4-005: block == "dbb" and backbone == "resnet18"
      OREPA-T4-008: block == "orepa" and block.reparam == None and backbone == "resnet18"
    note: the rest
"""
