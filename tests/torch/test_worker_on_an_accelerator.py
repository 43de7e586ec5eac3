"""The code that measures on an accelerator, on a fake one: nothing here says anything about a real device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.devices.fake import FakeDevice
from harness.execution import worker
from harness.metrics import subject
from harness.records import Budget, Cell, Record, Status, Task, TaskKind, Variant

CELL = Cell.from_json(
    {
        "block": "conv",
        "backbone": "layer",
        "kernel_size": 3,
        "device": "cuda",
        "dtype": "float32",
        "memory_format": "channels_last",
        "batch_size": 2,
        "image_size": 9,
        "optimizer": "sgd",
        "where": "default",
        "dataset": "mnist",
        "threads": None,
    }
)


@pytest.fixture
def device(monkeypatch):
    fake = FakeDevice(memory=12_345)
    monkeypatch.setattr(subject.devices, "get", lambda name, **options: fake)
    return fake


def perform(cells, kind, *metrics):
    messages = []
    task = Task(kind, cells, tuple(Variant(name) for name in metrics), 0, Budget(seconds=8.0))
    worker.perform(task, "key", "print", messages.append)
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


def test_memory_is_asked_of_the_devices_allocator_in_the_second_step(device, monkeypatch):
    asked = []
    for name in ("memory_reset", "memory_peak", "synchronize"):
        real = getattr(device, name)
        monkeypatch.setattr(device, name, lambda name=name, real=real: asked.append(name) or real())
    (record,) = perform((CELL,), TaskKind.CELL, "train_memory")
    (reading,) = record.readings
    assert reading.values == (12_345,)
    assert reading.facts == {"counted": "the device's allocator", "optimizer": "foreach"}
    assert asked == ["memory_reset", "synchronize", "memory_reset", "synchronize", "memory_peak"]


def test_exactness_and_counts_work_there_too(device):
    records = perform((CELL,), TaskKind.CELL, "fusion_error", "params", "macs", "saved_memory")
    assert {record.status for record in records} == {Status.OK}
