"""suites/ci.yaml and results/baselines/ci.json: this repository's own gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.catalog import metrics
from harness.execution.local import LocalExecutor
from harness.planning import plan
from harness.records import Kind, Record, Task, TaskKind, Variant
from harness.suite import load_suite
from harness.worker.messages import Order

ROOT = Path(__file__).parents[2]
SUITE, BASELINE = ROOT / "suites" / "ci.yaml", ROOT / "results" / "baselines" / "ci.json"
TIMES = 3
LAYERS = ("dbb", "orepa", "orepa_vgg")


def quantities_of(metric):
    return {Kind(quantity["kind"]) for quantity in metrics()[metric]["quantities"]}


@pytest.fixture(scope="module")
def planned():
    return plan(load_suite(SUITE))


def test_nothing_in_it_is_timed_or_a_matter_of_chance(planned):
    assert {task.kind for task in planned.tasks} == {TaskKind.CELL}
    read = {metric.name for task in planned.tasks for metric in task.metrics}
    # train_memory's sampled quantities are an accelerator's; on the CPU it is a count
    assert all(Kind.SAMPLED not in quantities_of(name) for name in read - {"train_memory"})
    assert {cell.device.name for cell in planned.cells} == {"cpu"}


def test_the_baseline_is_of_this_suite_and_complete(planned):
    kept = json.loads(BASELINE.read_text())
    assert set(kept["cells"]) == {cell.id for cell in planned.cells}
    for task in planned.tasks:
        (cell,) = task.cells
        names = " ".join(kept["cells"][cell.id]["readings"])
        assert all(metric.name in names for metric in task.metrics), cell


@pytest.mark.slow
def test_its_counts_are_equal_in_fresh_processes(planned):
    counted = {n for task in planned.tasks for m in task.metrics if Kind.COUNT in quantities_of(n := m.name)}
    # some variants of the layers and one cell of each other part: a count that differed from process to process would do so
    # by addresses, hashes or the collector, which know nothing of sizes. The gate itself holds all cells to the baseline.
    chosen = {c.block.label if c.part == "layers" else c.part: c for c in planned.cells if c.batch_size < 64}
    chosen = {name: cell for name, cell in chosen.items() if cell.part != "layers" or name in LAYERS}
    assert {*LAYERS, "stems", "dynamic", "shared", "networks", "native"} <= set(chosen)
    # one thread: these are tiny, and two that wait for each other beside a busy neighbour have taken ten times as long
    cells = tuple(replace(cell, threads=1) for cell in chosen.values())
    metrics_ = tuple(Variant(name) for name in sorted(counted))
    task = Task(TaskKind.CELL, cells, metrics_, 0, planned.suite.budget.for_workers())

    def counts(executor, number):
        # another order each time: what a process did before must not matter
        turned = replace(task, cells=(*cells[number:], *cells[:number]))
        messages = []
        assert executor.perform(Order(turned, "key", "print"), messages.append) is None
        records = [Record.from_json(message["record"]) for message in messages if "record" in message]
        return {(r.cell, reading.metric, reading.form): reading.values for r in records for reading in r.readings}

    with LocalExecutor() as executor:
        found = [counts(executor, number) for number in range(TIMES)]
    assert {cell for cell, _, _ in found[0]} == {cell.id for cell in cells}
    assert all(other == found[0] for other in found[1:])
