"""Devices say what they are, count what they can, and refuse what they cannot."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from harness import catalog, devices
from harness.devices import cpu
from harness.devices.accelerator import AcceleratorDevice
from harness.devices.base import register
from harness.devices.cuda import CudaDevice
from harness.devices.fake import FakeDevice
from harness.errors import HarnessError, UnknownName, Unsupported

ABSENT = [kind for kind in ("cuda", "xpu", "mps") if devices.get(kind).available() is not None]


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


def test_the_cpu_says_what_it_is_and_refuses_to_count_memory():
    device = devices.get("cpu")
    assert device.available() is None
    facts = json.loads(json.dumps(device.facts()))
    assert facts["kind"] == "cpu"
    assert facts["model"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_bytes"] > 2**20
    assert facts["cache_bytes"] is None or facts["cache_bytes"] > 2**15
    assert device.telemetry() == {}
    assert device.suspicious({"throttle": ["hardware slowdown"]}) is None
    for ask in (device.memory_now, device.memory_peak, device.memory_reset):
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
    device = CudaDevice(1)
    monkeypatch.setattr(device, "available", lambda: None)
    stats = {"allocated_bytes.all.current": 7, "allocated_bytes.all.peak": 9}
    resets = []
    monkeypatch.setattr(torch.accelerator, "memory_stats", lambda place: stats)
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", resets.append)
    device.memory_reset()
    assert (device.memory_now(), device.memory_peak()) == (7, 9)
    assert resets == [torch.device("cuda:1")]


def test_an_accelerators_cache_is_what_torch_says_but_not_what_rocm_says(monkeypatch):
    device = CudaDevice(1)
    monkeypatch.setattr(device, "_properties", lambda: SimpleNamespace(L2_cache_size=50 * 2**20))
    monkeypatch.setattr(torch.version, "hip", None)
    assert device.cache_bytes() == 50 * 2**20
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert device.cache_bytes() is None, "one die's L2 is not the last cache there"
    monkeypatch.setattr(device, "_properties", lambda: None)
    assert device.cache_bytes() is None


def cache_tree(root, caches):
    """`caches`: processor -> [(level, type, size, shared_cpu_list), ...], as /sys lists them."""
    for processor, listed in caches.items():
        for i, values in enumerate(listed):
            folder = root / f"sys/devices/system/cpu/cpu{processor}/cache/index{i}"
            folder.mkdir(parents=True)
            for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
                (folder / name).write_text(f"{value}\n")
    return root


def test_last_level_caches_are_added_up_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: {0, 1, 4}, raising=False)

    def private(k):
        return [(1, "Data", "32K", k), (1, "Instruction", "64K", k), (2, "Unified", "1024K", k)]

    two_dies = {
        0: [*private(0), (3, "Unified", "32768K", "0-3")],
        1: [*private(1), (3, "Unified", "32768K", "0-3")],
        4: [*private(4), (3, "Unified", "98304K", "4-7")],
        8: [*private(8), (3, "Unified", "32768K", "8-11")],  # not ours to use
    }
    assert cpu.last_level_cache(cache_tree(tmp_path / "dies", two_dies)) == (32768 + 98304) * 1024
    no_third = {k: private(k) for k in (0, 1, 4)}
    assert cpu.last_level_cache(cache_tree(tmp_path / "small", no_third)) == 3 * 1024 * 1024
    assert cpu.last_level_cache(tmp_path / "unlisted") is None


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
        ("tpu", {}, UnknownName, "cpu, cuda, .*mps, xpu"),
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


def test_every_kind_declares_what_planning_reads_of_it():
    assert list(catalog.devices()) == list(devices.KINDS)
    for kind, declared in catalog.devices().items():
        assert declared == json.loads(json.dumps(devices.declaration(kind)))
    assert catalog.devices()["cpu"]["host"]
    assert not any(catalog.devices()[kind]["host"] for kind in ("cuda", "xpu", "mps"))
    assert {devices.kind_of(name).implementation for name in ("cuda:1", "xpu")} == {"foreach"}
    assert {devices.kind_of(name).implementation for name in ("cpu", "mps")} == {"single"}


def test_float32_products_are_switched_and_switched_back():
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for precision, short in (("tf32", True), ("ieee", False)):
        with devices.get("cuda").multiplying(precision):
            assert [flag.allow_tf32 for flag in flags] == [short, short]
        assert [flag.allow_tf32 for flag in flags] == before
    with devices.get("cpu").multiplying("ieee"):
        assert [flag.allow_tf32 for flag in flags] == before


def test_a_kind_that_declares_too_little_is_told_what_is_missing():
    class Nameless(AcceleratorDevice):
        kind = "npu"

    with pytest.raises(TypeError, match="Nameless does not say its what"):
        register(Nameless)
    assert "npu" not in devices.DEVICES
