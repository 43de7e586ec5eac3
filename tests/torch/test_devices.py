"""Devices say what they are, count what they can, and refuse what they cannot."""

from __future__ import annotations

import json

import pytest
import torch

from harness import devices
from harness.devices import Clock
from harness.devices.accelerator import AcceleratorDevice
from harness.devices.fake import FakeDevice
from harness.errors import HarnessError, UnknownName, Unsupported

ABSENT = [kind for kind in ("cuda", "xpu", "mps") if devices.get(kind).available() is not None]


def test_a_batch_is_two_marks_around_the_launches_and_one_wait():
    device = FakeDevice(ticks=[0.3, 0.2])
    clock = Clock(device)
    step = device.launching(lambda: None)
    assert [clock.time(step, repeats=3), clock.time(step)] == [0.3, 0.2]
    batch = ["record", "launch", "launch", "launch", "record", "synchronize", "elapsed"]
    assert device.log == [*batch, "record", "launch", "record", "synchronize", "elapsed"]


def test_the_fake_device_refuses_to_read_a_mark_before_it_was_waited_for():
    device = FakeDevice()
    start, end = device.record(), device.record()
    with pytest.raises(RuntimeError, match="before synchronize"):
        device.elapsed(start, end)


def test_the_fake_device_keeps_the_peak_until_it_is_reset():
    device = FakeDevice(memory=5)
    device.memory = 9
    assert device.memory_now() == 9
    device.memory = 4
    assert device.memory_peak() == 9
    device.memory_reset()
    assert device.memory_peak() == 4


def test_the_cpu_clock_gives_seconds():
    clock = Clock(devices.get("cpu"))
    assert 0.01 <= clock.time(lambda: __import__("time").sleep(0.005), repeats=2) < 5


def test_the_cpu_says_what_it_is_and_refuses_to_count_memory():
    cpu = devices.get("cpu")
    assert cpu.available() is None
    facts = json.loads(json.dumps(cpu.facts()))
    assert facts["kind"] == "cpu"
    assert facts["model"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_bytes"] > 2**20
    for ask in (cpu.memory_now, cpu.memory_peak, cpu.memory_reset):
        with pytest.raises(Unsupported, match="does not count"):
            ask()


@pytest.mark.parametrize("name", devices.KINDS)
def test_every_kind_has_a_device_that_says_whether_it_is_there(name):
    device = devices.get(name)
    assert device.name == device.kind == name
    assert device.available() is None or name in device.available()


@pytest.mark.parametrize("kind", ABSENT)
def test_an_absent_accelerator_has_a_reason_and_measures_nothing(kind):
    device = devices.get(kind)
    assert "no " + kind in device.available()
    # torch answers 0 and resets nothing here, silently
    for ask in (device.memory_now, device.memory_peak, device.memory_reset):
        with pytest.raises(Unsupported):
            ask()


def test_an_index_beyond_the_devices_found_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert devices.get("cuda:0").available() is None
    assert devices.get("cuda:1").available() == "there is no cuda:1: 1 cuda device found"


def test_statistics_of_the_allocator_are_what_is_read(monkeypatch):
    device = AcceleratorDevice("cuda", 1)
    monkeypatch.setattr(device, "available", lambda: None)
    stats = {"allocated_bytes.all.current": 7, "allocated_bytes.all.peak": 9}
    resets = []
    monkeypatch.setattr(torch.accelerator, "memory_stats", lambda place: stats)
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", resets.append)
    device.memory_reset()
    assert (device.memory_now(), device.memory_peak()) == (7, 9)
    assert resets == [torch.device("cuda:1")]


def test_options_hold_while_configured_and_no_longer(monkeypatch):
    device = devices.get("cuda:1", cudnn_benchmark=True)
    current = []
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    before = torch.backends.cudnn.benchmark

    def fail_inside():
        with device.configured():
            assert torch.backends.cudnn.benchmark
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.backends.cudnn.benchmark == before
    assert current == [1, 0]


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        ("cudda", {}, UnknownName, "cuda"),
        ("tpu", {}, UnknownName, "cpu, cuda, mps, xpu"),
        ("cuda:x", {}, HarnessError, "use cuda or cuda:0"),
        ("cpu:0", {}, HarnessError, "use cpu"),
        ("cuda", {"cudnn_bench": True}, UnknownName, "cudnn_benchmark"),
        ("cuda", {"cudnn_benchmark": "yes"}, HarnessError, "cudnn_benchmark: true"),
        ("cpu", {"cudnn_benchmark": True}, Unsupported, "leave it out"),
    ],
)
def test_what_is_not_a_device_is_refused_with_a_remedy(name, options, error, says):
    with pytest.raises(error, match=says):
        devices.get(name, **options)
