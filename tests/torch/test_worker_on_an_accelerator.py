"""The code that measures on an accelerator, on a fake one: nothing here says anything about a real device."""

from __future__ import annotations

from dataclasses import replace

import metric_cells
import pytest

from harness.devices.fake import FakeDevice
from harness.measuring import subject
from harness.records import Budget, Record, Status, Task, TaskKind, Variant
from harness.worker import worker
from harness.worker.messages import Order

CELL = replace(metric_cells.CELL, device=Variant("cuda"), memory_format="channels_last", image_size=9)


@pytest.fixture
def device(monkeypatch):
    fake = FakeDevice(memory=12_345)
    monkeypatch.setattr(subject.devices, "get", lambda name, **options: fake)
    return fake


def perform(cells, kind, *metrics):
    messages = []
    task = Task(kind, cells, tuple(Variant(name) for name in metrics), 0, Budget(seconds=8.0))
    worker.perform(Order(task, "key", "print"), messages.append)
    return [Record.from_json(m["record"]) for m in messages if "record" in m]


def test_times_are_the_devices_own_and_every_batch_is_waited_for_once(device):
    group = (CELL, replace(CELL, block=Variant("repvgg")))
    records = perform(group, TaskKind.VISIT, "train_step", "latency")
    assert {record.status for record in records} == {Status.OK}
    for record in records:
        for reading in record.readings:
            assert set(reading.values) == {1.0}, "the scripted second, whatever the processor took"
    marks = [word for word in device.log if word in ("record", "synchronize", "elapsed")]
    assert marks == ["record", "record", "synchronize", "elapsed"] * (len(marks) // 4)


def test_memory_is_asked_of_the_devices_allocator(device):
    (record,) = perform((CELL,), TaskKind.CELL, "train_memory")
    found = {reading.metric: reading for reading in record.readings}
    assert found["train_memory"].values == found["train_memory_first"].values == (12_345,)
    assert found["train_memory_reserved"].values == (2 * 12_345,)
    facts = found["train_memory"].facts
    assert (facts["counted"], facts["optimizer"]) == ("the device's allocator", "foreach")
    assert found["train_memory_unpredicted"].values == (12_345 - facts["predicted"],)


def test_exactness_and_counts_work_there_too(device):
    records = perform((CELL,), TaskKind.CELL, "fusion_error", "params", "macs", "saved_memory")
    assert {record.status for record in records} == {Status.OK}
