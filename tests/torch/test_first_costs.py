"""Costs of beginning: the first step, compiling, converting; against scripted clocks and counts by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import metric_cells
import pytest
import torch
from torch import nn

from harness.devices.fake import FakeDevice
from harness.errors import Unsupported
from harness.measuring import subject
from harness.measuring.subject import Subject
from harness.measuring.training_step import Training
from harness.metrics import METRICS, conversion
from harness.records import Kind, TaskKind, Variant

CELL = replace(metric_cells.CELL, image_size=7, threads=1)
"""One thread: several wait for each other, a tenth of a second when the machine is busy."""
REPVGG = replace(CELL, block=Variant("repvgg"))
ONE_BATCH = ["record", "work", "record", "synchronize", "elapsed"]


def read(name, cell=CELL, **options):
    here = Subject(cell)
    with here.settings():
        return {(reading.metric, reading.form): reading for reading in METRICS[name].readings(here, options)}


@pytest.fixture
def ticking(monkeypatch):
    """A device whose batches take the seconds given, for whatever cell."""

    def put(*ticks, **options):
        device = FakeDevice(ticks, **options)
        monkeypatch.setattr(subject.devices, "get", lambda name, **_: device)
        return device

    return put


def writing_down(device, function):
    def written(*args, **kwargs):
        device.log.append("work")
        return function(*args, **kwargs)

    return written


@pytest.mark.parametrize("name", ["first_step", "compile_time", "conversion_time"])
def test_costs_of_beginning_get_a_process_of_their_own(name):
    metric = METRICS[name]
    assert metric.task is TaskKind.FIRST
    assert {(quantity.kind, quantity.unit) for quantity in metric.quantities} == {(Kind.SAMPLED, "s")}


def test_the_first_step_is_the_first_and_later_ones_stand_beside_it(ticking, monkeypatch):
    device = ticking(5.0, 9.0, 1.0, 3.0, 2.0)
    monkeypatch.setattr(Training, "__call__", writing_down(device, Training.__call__))
    reading = read("first_step")["first_step", "train"]
    assert reading.values == (5.0,)
    assert (reading.facts["second"], reading.facts["later"], reading.facts["steady"]) == (9.0, [1.0, 3.0, 2.0], 2.0)
    assert device.log == ["synchronize", *ONE_BATCH * 5], "no step before the first, one wait per step"


def test_on_the_cpu_the_first_step_is_a_time():
    reading = read("first_step")["first_step", "train"]
    assert 0 < reading.facts["steady"] < 1
    assert 0 < reading.values[0] < 60


def test_compile_time_is_the_first_call_less_a_steady_one(ticking):
    device = ticking(7.0, 20.0, 9.0, 1.0, 3.0, 2.0, 10.0, 9.0, 4.0, 6.0, 5.0)
    found = read("compile_time", backend="eager")
    assert {key: reading.values for key, reading in found.items()} == {
        ("compile_time", "train"): (18.0,),
        ("compile_time", "fused"): (5.0,),
    }
    facts = found["compile_time", "train"].facts
    assert (facts["backend"], facts["caches"], facts["starting"]) == ("eager", "cold", 7.0)
    assert (facts["first"], facts["second"], facts["steady"]) == (20.0, 9.0, 2.0)
    marks = [word for word in device.log if word != "synchronize"]
    assert marks == ["record", "record", "elapsed"] * 11


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiling_takes_longer_than_running_each_time_it_is_asked(backend):
    for _ in range(2):  # were anything left over from the first time, the second would find it
        for (_, form), reading in read("compile_time", REPVGG, backend=backend).items():
            assert reading.values[0] > 2 * reading.facts["steady"], form


@pytest.mark.slow
def test_inductor_finds_nothing_compiled_before(tmp_path, monkeypatch):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a cache that every compilation of this user fills
    counters.clear()
    for _ in range(2):
        for reading in read("compile_time").values():
            assert reading.values[0] > 10 * reading.facts["steady"]
    assert counters["inductor"]["fxgraph_cache_miss"] >= 4
    assert counters["inductor"]["fxgraph_cache_hit"] == counters["aot_autograd"]["autograd_cache_hit"] == 0
    assert not list(tmp_path.rglob("*.so"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


NO_COMPILER = """
from harness.errors import Unsupported
from harness.metrics import METRICS
from harness.measuring.subject import Subject
from harness.records import Cell
import json, sys
try:
    METRICS["compile_time"].readings(Subject(Cell.from_json(json.loads(sys.argv[1]))), {})
except Unsupported as problem:
    print(problem)
"""


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_what_to_do():
    environment = {**os.environ, "CXX": "/nowhere/c++"}
    command = [sys.executable, "-c", NO_COMPILER, json.dumps(CELL.to_json())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "finds no compiler" in done.stdout, done.stderr[-2000:]
    assert "use backend aot_eager" in done.stdout


def test_what_else_goes_wrong_in_a_compilation_stays_what_it_is(monkeypatch):
    def broken(model, backend):
        raise ValueError("not this one")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match="not this one"):
        read("compile_time", backend="eager")


def test_conversion_time_is_that_of_the_first_conversion(ticking, monkeypatch):
    device = ticking(5.0, 9.0, 1.0, 3.0, 2.0)
    monkeypatch.setattr(conversion, "fuse", writing_down(device, conversion.fuse))
    reading = read("conversion_time")["conversion_time", "fused"]
    assert (reading.values, reading.facts["steady"]) == ((5.0,), 2.0)
    assert device.log == ["synchronize", *ONE_BATCH * 5]


def rounded(count, size):
    """Bytes of `count` numbers, in granules of 512."""
    return -(-count * size // 512) * 512


@pytest.mark.parametrize(("c_in", "c_out", "k"), [(64, 64, 3), (8, 16, 5), (64, 32, 1)])
def test_conversion_memory_of_a_convolution_and_its_norm_by_hand(c_in, c_out, k):
    cell = replace(CELL, backbone=Variant("layer", {"c_in": c_in, "c_out": c_out}), kernel_size=k)
    reading = read("conversion_memory", cell)["conversion_memory", "fused"]
    kernel, vector = c_out * c_in * k * k, rounded(c_out, 8)
    # The copy's kernel in float64 and the folded one; the copy's gamma, beta, mean, variance and its number of batches;
    # while the shift is made, variance + eps and its inverse root.
    assert reading.values == (2 * rounded(kernel, 8) + 4 * vector + 512 + 2 * vector,)
    assert reading.facts["original"] == rounded(kernel, 4) + 4 * rounded(c_out, 4) + 512
    assert reading.facts["result"] == rounded(kernel, 4) + rounded(c_out, 4)
    assert reading.facts["host"] == reading.values[0]


def test_conversion_memory_is_the_same_each_time_and_grows_with_the_branches():
    values = [read("conversion_memory", REPVGG)["conversion_memory", "fused"].values for _ in range(3)]
    assert len(set(values)) == 1
    assert values[0] > read("conversion_memory")["conversion_memory", "fused"].values


def test_a_copy_that_has_shapes_alone_takes_no_memory():
    """A backbone is looked at on meta while it is folded."""
    cell = replace(CELL, backbone=Variant("resnet10t"), kernel_size=None, image_size=32)
    reading = read("conversion_memory", cell)["conversion_memory", "fused"]
    # a copy in float64, twice the original, and not much more at any time
    assert 2 * reading.facts["original"] < reading.values[0] < 4 * reading.facts["original"]


def test_on_an_accelerator_its_allocator_is_asked_and_the_host_stands_beside_it(ticking, monkeypatch):
    device = ticking(memory=1000)

    def fuse(model):
        device.memory = 5000
        device.memory_now()
        device.memory = 1800
        return real(model)

    real = conversion.fuse
    device.memory = 9000
    device.memory_now()  # an earlier metric's peak, which is not the conversion's
    device.memory = 1000
    monkeypatch.setattr(conversion, "fuse", fuse)
    reading = read("conversion_memory")["conversion_memory", "fused"]
    assert reading.values == (4000,)
    assert reading.facts["counted"] == "the device's allocator"
    assert reading.facts["host"] > 2 * 64 * 64 * 9 * 8


@pytest.mark.parametrize("name", ["conversion_time", "conversion_memory"])
def test_a_block_that_does_not_fold_has_no_conversion(name, monkeypatch):
    monkeypatch.setattr(Subject, "forms", ("train",))
    with pytest.raises(Unsupported, match="nothing of block conv becomes a convolution here"):
        read(name)


def test_a_block_that_does_not_fold_is_compiled_as_it_is_trained(monkeypatch):
    monkeypatch.setattr(Subject, "forms", ("train",))
    assert set(read("compile_time", backend="eager")) == {("compile_time", "train")}


def test_a_model_with_nothing_to_fold_is_unsupported():
    with pytest.raises(Unsupported, match="nothing in this Linear"):
        conversion._fused(nn.Linear(2, 2))
