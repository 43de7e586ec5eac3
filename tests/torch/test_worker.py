"""The worker's side of a task: records for everything, whatever happens inside."""

from __future__ import annotations

from dataclasses import replace

import metric_cells
import pytest
import torch

from harness.errors import HarnessError, Unsupported
from harness.measuring.metric import Step
from harness.metrics import METRICS
from harness.records import Budget, Record, Status, Task, TaskKind, Variant
from harness.worker import worker
from harness.worker.messages import Order

CELL = replace(metric_cells.CELL, image_size=9)
GROUP = tuple(replace(CELL, block=Variant(name)) for name in ("conv", "repvgg", "acb"))


def perform(cells, kind, *metrics):
    messages = []
    task = Task(kind, cells, tuple(Variant(name) for name in metrics), 0, Budget(seconds=0.02))
    worker.perform(Order(task, "key", "print"), messages.append)
    records = [Record.from_json(m["record"]) for m in messages if "record" in m]
    return {(r.cell, r.metric): r for r in records}, [tuple(m["begin"]) for m in messages if "begin" in m]


def sabotage(monkeypatch, name, measure):
    monkeypatch.setitem(METRICS._items, name, replace(METRICS[name], measure=measure))


def test_a_cell_task_answers_for_every_metric():
    records, begun = perform((CELL,), TaskKind.CELL, "params", "macs")
    assert begun == [(CELL.id, "params"), (CELL.id, "macs")]
    assert {r.status for r in records.values()} == {Status.OK}
    assert all(r.seconds > 0 and r.fingerprint == "print" and r.task == "key" for r in records.values())


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (ValueError("no"), Status.ERROR),
        (Unsupported("cannot", remedy="do not"), Status.UNSUPPORTED),
        (HarnessError("wrong", remedy="mend"), Status.ERROR),
        (MemoryError(), Status.OOM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), Status.OOM),
        (torch.OutOfMemoryError("CUDA out of memory"), Status.OOM),
        (NotImplementedError("Could not run 'aten::x'"), Status.UNSUPPORTED),
    ],
)
def test_what_a_metric_raises_becomes_its_status(monkeypatch, problem, status):
    def broken(subject):
        raise problem

    sabotage(monkeypatch, "params", broken)
    records, _ = perform((CELL,), TaskKind.CELL, "params", "macs")
    record = records[CELL.id, "params"]
    assert record.status is status
    assert record.reason
    assert type(problem).__name__ in record.traceback
    assert records[CELL.id, "macs"].status is Status.OK


def test_a_visit_reads_all_forms_of_all_variants():
    records, begun = perform(GROUP, TaskKind.VISIT, "latency", "train_step")
    assert len(records) == 6
    assert {r.status for r in records.values()} == {Status.OK}
    latency = records[GROUP[1].id, "latency"]
    assert [reading.form for reading in latency.readings] == ["train", "fused"]
    assert all(len(reading.values) >= 2 and min(reading.values) > 0 for reading in latency.readings)
    assert {pair[0] for pair in begun} == {cell.id for cell in GROUP}


def test_a_visit_in_lockstep_asks_for_every_turn_and_slows_only_the_variant_it_is_told_to():
    messages = []
    task = Task(TaskKind.VISIT, GROUP[:2], (Variant("train_step"),), 0, Budget(seconds=0.02))
    worker.perform(Order(task, "key", "print", lockstep=True, slowed={GROUP[1].id: 0.5}), messages.append)
    taken = [word for message in messages for word in message if word in ("turn", "turn_done")]
    plain, slow = (Record.from_json(m["record"]).readings[0] for m in messages if "record" in m)
    assert "slowed" not in plain.facts
    assert slow.facts["slowed"] == 0.5
    assert taken == ["turn", "turn_done"] * (2 + len(plain.values) + len(slow.values)), (
        "a warm-up each, and every visit"
    )
    assert sorted([*plain.facts["order"], *slow.facts["order"]]) == list(range(len(taken) // 2 - 2))


@pytest.mark.parametrize("breaks", ["while building", "while running"])
def test_a_variant_that_raises_in_a_visit_is_alone_in_it(monkeypatch, breaks):
    whole = METRICS["train_step"].measure

    def steps(subject, graph):
        if subject.cell.block.name != "acb":
            return whole(subject, graph)
        if breaks == "while building":
            raise ValueError("acb broke")

        def run():
            raise ValueError("acb broke")

        return [Step("train_step", "train", "s", run)]

    sabotage(monkeypatch, "train_step", steps)
    records, _ = perform(GROUP, TaskKind.VISIT, "train_step")
    assert [records[cell.id, "train_step"].status for cell in GROUP] == [Status.PARTIAL, Status.PARTIAL, Status.ERROR]
    assert "acb" in records[GROUP[0].id, "train_step"].reason


def test_an_unsupported_variant_does_not_make_its_group_partial(monkeypatch):
    whole = METRICS["train_step"].measure

    def steps(subject, graph):
        if subject.cell.block.name == "acb":
            raise Unsupported("cannot", remedy="do not")
        return whole(subject, graph)

    sabotage(monkeypatch, "train_step", steps)
    records, _ = perform(GROUP, TaskKind.VISIT, "train_step")
    statuses = [records[cell.id, "train_step"].status for cell in GROUP]
    assert statuses == [Status.OK, Status.OK, Status.UNSUPPORTED]


def test_threads_are_set_for_the_cell_and_put_back(monkeypatch):
    seen = []
    sabotage(monkeypatch, "params", lambda subject: seen.append(torch.get_num_threads()) or [])
    before = torch.get_num_threads()
    perform((replace(CELL, threads=3),), TaskKind.CELL, "params")
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_the_probe_says_what_is_here_and_why_the_rest_is_not():
    found = worker.probe(["cpu", "mps"])
    assert found["devices"]["cpu"]["absent"] is None
    assert found["devices"]["cpu"]["facts"]["threads"] == found["threads"] > 0
    if not torch.backends.mps.is_available():
        assert found["devices"]["mps"]["absent"]
