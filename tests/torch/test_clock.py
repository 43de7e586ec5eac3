"""Timing through the device's own marks: what is launched, marked and waited for, in which order."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import metric_cells
import pytest
import torch

from harness import devices
from harness.devices import Clock, graphs
from harness.devices import clock as clock_module
from harness.devices import cpu as cpu_module
from harness.devices.base import UNKNOWN_CACHE
from harness.devices.cpu import CpuDevice
from harness.devices.fake import FakeDevice
from harness.errors import Unsupported
from harness.measuring import subject
from harness.measuring.captured import captured
from harness.measuring.subject import Subject
from harness.metrics import METRICS

CELL = replace(metric_cells.CELL, image_size=9)


def test_a_batch_is_two_marks_around_the_launches_and_one_wait():
    device = FakeDevice(ticks=[0.3, 0.2])
    clock = Clock(device)
    step = device.launching(lambda: None)
    assert [clock.time(step, repeats=3), clock.time(step)] == [0.3, 0.2]
    batch = ["record", "launch", "launch", "launch", "record", "synchronize", "elapsed"]
    assert device.log == [*batch, "record", "launch", "record", "synchronize", "elapsed"]


def test_flushes_lie_between_the_marks_of_neighbours_and_nothing_waits_before_the_end():
    device = FakeDevice(ticks=[0.25, 0.5, 1.0])
    seconds = Clock(device).time(device.launching(lambda: None), repeats=3, flush=True)
    assert seconds == 1.75, "the sum of all intervals, flushes left out"
    once = ["flush", "record", "launch", "record"]
    assert device.log == [*once, *once, *once, "synchronize", "elapsed", "elapsed", "elapsed"]


def test_the_cpu_clock_gives_seconds():
    clock = Clock(devices.get("cpu"))
    assert 0.01 <= clock.time(lambda: time.sleep(0.005), repeats=2) < 5


def test_on_the_cpu_a_flush_takes_time_that_is_not_counted(monkeypatch):
    flushes = []

    class Slow(CpuDevice):
        def flush(self):
            flushes.append(time.sleep(0.05))

    seconds = Clock(Slow()).time(lambda: time.sleep(0.001), repeats=4, flush=True)
    assert len(flushes) == 4
    assert 0.004 <= seconds < 0.05


def test_a_flush_goes_through_twice_the_cache_and_keeps_its_buffer(monkeypatch):
    device = devices.get("cpu")
    monkeypatch.setattr(device, "cache_bytes", lambda: 1001)
    device.flush()
    buffer = device._passed_through
    device.flush()
    assert device._passed_through is buffer
    assert 2002 <= buffer.nbytes < 2002 + 8
    assert set(buffer.tolist()) == {2}, "all of it is written, every time"


def test_where_nobody_tells_the_caches_size_a_large_one_is_taken(monkeypatch):
    device = devices.get("cpu")
    monkeypatch.setattr(device, "cache_bytes", lambda: None)
    sizes = []
    monkeypatch.setattr(
        torch, "zeros", lambda count, dtype, device: sizes.append(count * dtype.itemsize) or torch.ones(1)
    )
    device.flush()
    assert sizes == [2 * UNKNOWN_CACHE]


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_a_device_without_graphs_says_so(kind):
    with pytest.raises(Unsupported, match="leave graph out"):
        devices.get(kind).capture(lambda: None)


class FakeBackend:
    """torch.cuda's part in a capture; `log` has who did what, and steps say on which stream they ran."""

    def __init__(self, refuses=None):
        self.log = []
        self.refuses = refuses
        self.stream_name = "main"
        backend = self

        class Stream(SimpleNamespace):
            def __init__(self, device, name="side"):
                super().__init__(device=device, name=name)

            def wait_stream(self, other):
                backend.log.append(f"{self.name} waits for {other.name}")

        class CUDAGraph:
            def replay(self):
                backend.log.append("replay")

        self.Stream, self.CUDAGraph = Stream, CUDAGraph

    def current_stream(self, device):
        return SimpleNamespace(name="main", wait_stream=lambda other: self.log.append(f"main waits for {other.name}"))

    @contextmanager
    def stream(self, stream):
        before, self.stream_name = self.stream_name, stream.name
        yield
        self.stream_name = before

    @contextmanager
    def graph(self, graph, stream):
        self.log.append(f"capture on {stream.name}")
        if self.refuses:
            raise self.refuses
        with self.stream(stream):
            yield
        self.log.append("captured")


@pytest.fixture
def backend(monkeypatch):
    fake = FakeBackend()
    monkeypatch.setattr(torch, "get_device_module", lambda kind: fake)
    return fake


def test_a_capture_warms_up_on_a_side_stream_and_replays_without_calling_the_step(backend):
    outputs = []

    def step():
        backend.log.append(f"step on {backend.stream_name}")
        outputs.append(object())
        return outputs[-1]

    replay = devices.get("cuda").capture(step)
    warmup = ["side waits for main", *["step on side"] * graphs.WARMUP, "main waits for side"]
    assert backend.log == [*warmup, "capture on side", "step on side", "captured"]
    del backend.log[:]
    assert replay() is replay() is outputs[-1], "the tensors that the graph writes"
    assert backend.log == ["replay", "replay"]
    assert replay.step is step, "what the graph reads stays alive with it"


def test_a_step_that_cannot_be_captured_is_unsupported_and_want_of_memory_is_not(backend):
    backend.refuses = RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
    with pytest.raises(Unsupported, match="not permitted when stream is capturing") as refusal:
        devices.get("cuda").capture(lambda: None)
    assert "leave graph out" in refusal.value.remedy
    backend.refuses = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        devices.get("cuda").capture(lambda: None)


def test_what_fails_before_the_capture_is_the_steps_own_failure(backend):
    def broken():
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        devices.get("cuda").capture(broken)


def steps(**options):
    return METRICS["latency"].steps(Subject(CELL), options)


def test_latency_passes_cold_on_and_says_so():
    assert [step.cold for step in steps()] == [False, False]
    assert [dict(step.facts) for step in steps()] == [{}, {}]
    cold = steps(cold=True)
    assert [(step.form, step.cold, step.facts) for step in cold] == [
        ("train", True, {"cold": True}),
        ("fused", True, {"cold": True}),
    ]


def test_latency_of_a_graph_is_that_of_its_replay(monkeypatch):
    device = FakeDevice()
    monkeypatch.setattr(subject.devices, "get", lambda name, **options: device)
    plain, (train, fused) = steps(), steps(graph=True, cold=True)
    assert device.log == ["capture", "replay"] * 2, "each replay is tried before it is timed"
    device.log.clear()
    assert train.facts == fused.facts == {"cold": True, "graph": True}
    Clock(device).time(fused.run, 2, flush=fused.cold)
    once = ["flush", "record", "replay", "record"]
    assert device.log == [*once, *once, "synchronize", "elapsed", "elapsed"]
    torch.testing.assert_close(train.run(), plain[0].run())
    torch.testing.assert_close(fused.run(), plain[1].run())


def test_a_batch_that_is_slowed_on_purpose_takes_so_much_longer(monkeypatch):
    now = [0.0]

    def ticking():
        now[0] += 1e-5
        return now[0]

    def step():
        now[0] += 3.0

    monkeypatch.setattr(clock_module, "perf_counter", ticking)
    monkeypatch.setattr(cpu_module, "perf_counter", ticking)
    for share in (0.01, 0.05, 0.5):
        for repeats in (1, 4):
            taken = Clock(devices.get("cpu"), share).time(step, repeats)
            assert taken == pytest.approx(3 * repeats * (1 + share), rel=1e-3)
    assert Clock(devices.get("cpu")).time(step) == pytest.approx(3, rel=1e-3)


class Elsewhere(FakeDevice):
    """A device whose replay is what `replay` makes of the captured step."""

    def __init__(self, replay):
        super().__init__()
        self.replay = replay

    def capture(self, step):
        return self.replay(step)


def test_a_replay_that_computes_something_else_is_refused_and_leaves_everything_as_it_was():
    x, weight = torch.randn(4, 3), torch.randn(3)
    kept = [x.clone(), weight.clone()]

    def step():
        weight.add_(x.mean(0), alpha=0.1)
        return x * weight

    frozen = step().clone()
    weight.copy_(kept[1])
    replays = {
        "the output of the capture": lambda step: lambda: frozen,
        "the output alone": lambda step: lambda: x * (weight + 0.1 * x.mean(0)),
        "the change alone": lambda step: lambda: (step(), frozen)[1],
        "not a number": lambda step: lambda: step() * float("nan"),
        "infinite": lambda step: lambda: step() * float("inf"),
    }
    for said, replay in replays.items():
        with pytest.raises(Unsupported, match="computes something else") as refused:
            captured(Elsewhere(replay), step, x, lambda: [weight])
        assert "leave graph out" in refused.value.remedy, said
        assert torch.equal(x, kept[0]), said
        assert torch.equal(weight, kept[1]), said
    assert torch.equal(captured(Elsewhere(lambda step: step), step, x, lambda: [weight])(), frozen)


def test_a_captured_training_step_is_compared_by_what_it_does_to_the_model(monkeypatch):
    def forgets_the_optimizer(step):
        def replay():
            before = [parameter.detach().clone() for parameter in step.model.parameters()]
            step()
            with torch.no_grad():
                for parameter, was in zip(step.model.parameters(), before, strict=True):
                    parameter.copy_(was)

        return replay

    def warmed_up(step):
        step()
        return step

    for replay, refused in ((warmed_up, False), (lambda step: forgets_the_optimizer(warmed_up(step)), True)):
        monkeypatch.setattr(subject.devices, "get", lambda name, replay=replay, **options: Elsewhere(replay))
        with pytest.raises(Unsupported, match="something else") if refused else nullcontext():
            (step,) = METRICS["train_step"].steps(Subject(CELL), {"graph": True})
            assert step.facts["graph"] is True


def test_a_graph_on_the_cpu_is_refused():
    with pytest.raises(Unsupported, match="cannot capture"):
        METRICS["latency"].steps(Subject(replace(CELL, block=CELL.block)), {"graph": True})
