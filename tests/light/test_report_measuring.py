"""What a report says about how a group was measured."""

from __future__ import annotations

import pytest

from harness.records import Reading, Record, Status, TaskKind
from harness.report.rounds import GroupMeasurement, measurements


@pytest.mark.parametrize(
    ("suspicious", "says"), [(1, "(0.1 %)"), (13, "(1.3 %)"), (100, "(10 %)"), (340, "(34 %)"), (1000, "(100 %)")]
)
def test_shares_are_percents_that_one_can_read(suspicious, says):
    (sentence,) = GroupMeasurement(samples=1000, suspicious=suspicious).sentences({})
    assert says in sentence


def test_times_of_launching_are_said_to_be_such_once_for_each_cell_and_metric():
    def visit(cell: str, metric: str, *bound: bool) -> Record:
        readings = tuple(Reading(metric, "train", "s", (1.0,), {"launch_bound": one}) for one in bound)
        return Record("t", TaskKind.VISIT, cell, metric, 0, "f", Status.OK, readings)

    records = [
        visit("a", "latency", True, False), visit("b", "latency", False), visit("a", "train_step", True),
        visit("a", "latency", True),
    ]  # fmt: skip
    (sentence,) = measurements(records, {"a": "g", "b": "g"})["g"].sentences({"a": "dbb", "b": "conv"})
    assert "launches: latency of dbb, train_step of dbb." in sentence
    assert "graph: true" in sentence
