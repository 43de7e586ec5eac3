"""Memory by branch, by bisection for a batch, on an accelerator and in the resident set."""

from __future__ import annotations

from dataclasses import replace

import pytest
from metric_cells import CELL, net, read

from harness.devices.fake import FakeDevice
from harness.errors import Unsupported
from harness.measuring import subject as subjects
from harness.measuring.predicted_step import predict
from harness.measuring.subject import Subject
from harness.metrics.max_batch import LARGEST, largest
from harness.records import Variant


def test_saved_memory_says_which_branch_keeps_what():
    cell = replace(CELL, batch_size=8, image_size=56)
    unit = 8 * 64 * 56 * 56 * 4
    for block, wanted in {
        "repvgg": {"several branches": 1, "k x k": 1, "1x1": 1},
        "acb": {"several branches": 1, "k x k": 1, "k x 1": 1, "1 x k": 1},
        "dbb": {"several branches": 1, "origin": 1, "1x1": 1, "1x1-kxk": 3.07, "1x1-average": 3.07},
    }.items():
        reading = read("saved_memory", replace(cell, block=Variant(block)))["saved_memory"]
        branches = {name: size / unit for name, size in reading.facts["branches"].items() if size > unit / 100}
        assert branches == pytest.approx(wanted, abs=0.02), block
        assert sum(reading.facts["branches"].values()) == reading.values[0]


@pytest.mark.parametrize("limit", [0, 1, 2, 37, 1000, LARGEST, 2 * LARGEST])
@pytest.mark.parametrize("guess", [1, 36, 37, 38, 5000, LARGEST])
def test_the_search_finds_the_largest_from_any_guess(limit, guess):
    asked = []
    assert largest(lambda n: asked.append(n) or n <= limit, guess) == min(limit, LARGEST)
    assert len(asked) == len(set(asked)) <= 45
    assert all(1 <= n <= LARGEST for n in asked)


def test_max_batch_is_the_last_that_fits():
    reading = read("max_batch", net("resnet10t", image_size=96), memory="1GiB")["max_batch"]
    (found,) = map(int, reading.values)
    fits, more = (predict(Subject(net("resnet10t", image_size=96)), batch).peak for batch in (found, found + 1))
    assert fits <= 2**30 < more
    assert reading.facts["peaks"] == {str(found): fits, str(found + 1): more}
    assert reading.facts["predictions"] <= 8


def test_max_batch_does_not_depend_on_the_cells_batch_and_leaves_it_alone():
    cells = [net("resnet10t", batch_size=batch) for batch in (2, 64)]
    assert len({read("max_batch", cell, memory="512MiB")["max_batch"].values for cell in cells}) == 1
    assert [cell.batch_size for cell in cells] == [2, 64]


def test_max_batch_is_zero_where_not_even_the_weights_fit():
    assert read("max_batch", net("resnet10t"), memory="10MiB")["max_batch"].values == (0,)


@pytest.mark.slow
def test_max_batch_by_trial_runs_real_steps_in_processes_held_to_the_memory():
    cell = replace(CELL, image_size=112)  # some 40 MiB for 3 images
    got = read("max_batch", cell, memory="600MiB", by="trial")
    predicted, tried = (int(got[name].values[0]) for name in ("max_batch", "max_batch_tried"))
    tries = got["max_batch_tried"].facts["tries"]
    assert tries[str(tried)] == "fits"
    assert tries[str(tried + 1)] in ("out of memory", "killed")
    # workspaces and threads cost room that no tensor has: less than predicted, but not by an order
    assert predicted / 4 <= tried <= predicted * 1.1


@pytest.fixture
def device(monkeypatch):
    fake = FakeDevice(memory=1 << 20)
    monkeypatch.setattr(subjects.devices, "get", lambda name, **options: fake)
    return fake


def test_an_accelerator_is_asked_phase_by_phase_and_the_prediction_stands_beside(device, monkeypatch):
    cell = replace(CELL, device=Variant("cuda"))
    peaks = iter([5, 9, 7, 4, 8, 6])  # first step, then the steady one
    monkeypatch.setattr(device, "memory_peak", lambda: next(peaks) << 20)
    monkeypatch.setattr(device, "memory_reserved", lambda: 10 << 20)
    got = read("train_memory", cell)
    mib = {name: reading.values[0] / 2**20 for name, reading in got.items()}
    predicted = predict(Subject(cell)).peak
    assert mib["train_memory"] == 8
    assert mib["train_memory_first"] == 9
    assert mib["train_memory_reserved"] == 10
    assert got["train_memory_unpredicted"].values[0] == (8 << 20) - predicted
    facts = got["train_memory"].facts
    assert facts["phases"] == {"forward": 4 << 20, "backward": 8 << 20, "optimizer": 6 << 20}
    assert facts["predicted"] == predicted
    assert facts["predicted_phases"]["backward"] > 0
    assert got["train_memory_first"].facts["phases"]["backward"] == 9 << 20


def test_an_accelerator_waits_before_it_is_asked(device, monkeypatch):
    asked = []
    monkeypatch.setattr(device, "memory_reserved", lambda: 0)
    for name in ("synchronize", "memory_peak", "memory_reset", "empty_cache"):
        real = getattr(device, name)
        monkeypatch.setattr(device, name, lambda name=name, real=real: asked.append(name) or real())
    read("train_memory", replace(CELL, device=Variant("cuda")))
    step = ["synchronize", "memory_reset"] + ["synchronize", "memory_peak", "memory_reset"] * 3
    assert asked == ["empty_cache", *step, *step]


def test_resident_memory_holds_at_least_what_the_tensors_need():
    cell = replace(CELL, batch_size=32, image_size=112)
    peak = read("resident_memory", cell)["resident_memory"]
    tensors = read("train_memory", cell)["train_memory"]
    assert 0.8 * tensors.values[0] < peak.values[0] < 6 * tensors.values[0] + 2**28
    assert peak.facts["process_peak"] - peak.facts["process_before"] == peak.values[0]


def test_a_system_that_cannot_forget_its_peak_is_unsupported(monkeypatch, tmp_path):
    monkeypatch.setattr("harness.metrics.resident_memory.CLEAR", tmp_path / "no" / "such")
    with pytest.raises(Unsupported, match="peak anew"):
        read("resident_memory", CELL)
