"""Temperatures fall as the papers say, batch by batch; what mixing kernels costs is counted; forms that there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from metric_cells import CELL, count, net, read
from torch import nn

from harness import blocks
from harness.blocks.parts.per_sample import Schedule, Tempered
from harness.measuring.subject import Subject
from harness.metrics import METRICS
from harness.metrics.accuracy import trained
from harness.records import Variant
from harness.training import Annealing


def temperatures(model: nn.Module) -> list[float]:
    return [module.temperature.item() for module in model.modules() if isinstance(module, Tempered)]


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [(Schedule(30, 1, 10, 100), 30 - 29 / 50, 15.5, 1.0), (Schedule(1, 0, 20, 300), 0.99, 0.5, 0.0)],
)
def test_the_values_of_a_schedule(schedule, first, middle, last):
    steps = schedule.epochs * 5
    assert schedule.at(1, steps) == pytest.approx(first)
    assert schedule.at(steps // 2, steps) == pytest.approx(middle)
    assert schedule.at(steps - 1, steps) > last
    assert schedule.at(steps, steps) == schedule.at(10 * steps, steps) == last


def test_every_temperature_falls_by_its_own_schedule():
    model = nn.Sequential(blocks.create("odconv", 4, 4), blocks.create("kw", 4, 4), blocks.create("conv", 4, 4))
    assert temperatures(model) == [1, 0]  # ready for inference
    annealing = Annealing(model, steps_per_epoch=1)
    found = []
    for _ in range(25):
        annealing.step()
        found.append(temperatures(model))
    wanted = [[1 + 29 * max(0, 1 - i / 10), max(0, 1 - i / 20)] for i in range(1, 26)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-6, atol=1e-7)


def test_a_shorter_training_anneals_over_the_same_share():
    """10 epochs of 100 are 3 of 30, and 20 of 300 are 2 of 30."""
    model = nn.Sequential(blocks.create("odconv", 4, 4), blocks.create("kw", 4, 4))
    annealing = Annealing(model, steps_per_epoch=7, epochs=30)
    found = {}
    for step in range(1, 22):
        annealing.step()
        found[step] = temperatures(model)
    assert found[13][1] > 0 == found[14][1]
    assert found[20][0] > 1 == found[21][0]


def test_a_resumed_annealing_goes_on_where_it_was():
    model = blocks.create("odconv", 4, 4)
    annealing = Annealing(model, steps_per_epoch=4)
    for _ in range(6):
        annealing.step()
    again = Annealing(other := blocks.create("odconv", 4, 4), steps_per_epoch=4)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(annealing.state_dict())
    assert temperatures(other) == temperatures(model)
    annealing.step(), again.step()
    assert temperatures(other) == temperatures(model) == [pytest.approx(1 + 29 * (1 - 7 / 40))]


def test_the_training_loop_of_accuracy_steps_the_temperatures(monkeypatch):
    cell = net("test_resnet", "odconv", image_size=16)
    subject = Subject(cell)
    model = subject.model("train", classes=10)
    seen = []
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, x: seen.append(temperatures(self)) or forward(self, x))
    trained(subject, model, torch.randn(4, 3, 16, 16), torch.arange(4), epochs=20, batch_size=2)
    assert len(seen) == 40
    assert all(len(set(each)) == 1 for each in seen)
    wanted = [1 + 29 * max(0, 1 - i / 4) for i in range(1, 41)]  # 10 of 100 epochs: 2 of 20, two batches each
    torch.testing.assert_close(torch.tensor([each[0] for each in seen]), torch.tensor(wanted))


# What mixing costs


def test_mixing_is_counted_apart_and_by_hand():
    """64 -> 64, k 3: four experts mixed into a kernel, n C C 9; taps and filters, C C 9 and C 9; the rest is conv's."""
    whole = 64 * 64 * 9
    plain = count("macs", CELL, "train")
    dyconv = count("macs", replace(CELL, block=Variant("dyconv")), "train")
    assert dyconv["macs_mixing"] == 4 * whole
    assert dyconv["macs"] - plain["macs"] == 64 * 17 + 17 * 4  # the attention's two layers
    odconv = count("macs", replace(CELL, block=Variant("odconv", {"kernels": 4})), "train")
    assert odconv["macs_mixing"] == 4 * whole + whole + 64 * 9
    assert odconv["macs"] - plain["macs"] == 64 * 16 + 16 * (64 + 64 + 9 + 4)
    assert odconv["macs_kernel"] == 0
    assert "macs_mixing" not in plain


@pytest.mark.parametrize(("block", "mixing"), [("dyconv", 44_630_016), ("condconv", 44_630_016)])
def test_the_mixing_of_a_network_is_that_of_an_independent_counter(block, mixing):
    """DY-Conv 4x ResNet18: fvcore sees 0.0446 G in products of matrices beside the convolutions."""
    counted = count("macs", net("resnet18", block, where=Variant("dyconv-paper"), image_size=224), "train")
    assert counted["macs_mixing"] == mixing
    assert counted["macs"] == pytest.approx(1.8139e9 + 0.000512e9, rel=2e-4)


def test_half_a_warehouse_mixes_twice_what_a_whole_one_mixes():
    """KW 1/2x has cells half as large in both directions, so four times the rows of half the cells; fvcore's figures."""
    mixing = {}
    for ratio in ("1/2", 1, 4):
        cell = net("resnet18", Variant("kw", {"ratio": ratio}), where=Variant("kw-paper"), image_size=224)
        mixing[ratio] = count("macs", cell, "train")["macs_mixing"]
    assert mixing["1/2"] == 2 * mixing[1]
    assert mixing["1/2"] == pytest.approx(0.770e9, abs=0.0005e9)
    assert mixing[1] == pytest.approx(0.385e9, abs=0.0005e9)
    assert mixing[4] == pytest.approx(1.540e9, abs=0.0005e9)


# Forms


def test_a_layer_that_mixes_kernels_has_a_train_form_alone():
    cell = replace(CELL, block=Variant("odconv"))
    assert Subject(cell).forms == ("train",)
    assert set(read("params", cell)) == {"params"}
    assert {r.form for r in METRICS["macs"].readings(Subject(cell), {})} == {"train"}
    assert {step.form for step in METRICS["latency"].readings(Subject(cell), {"cold": False, "graph": False})} == {
        "train"
    }


def test_the_rest_of_its_network_folds_and_so_do_blocks_of_several_convolutions():
    assert Subject(net("resnet18", "odconv")).forms == ("train", "fused")
    assert Subject(replace(CELL, block=Variant("bottleneck"))).forms == ("train", "fused")
    assert Subject(CELL).forms == ("train", "fused")


@pytest.mark.parametrize(
    ("block", "kernel_size", "macs", "mixing"),
    [
        # 64 channels in groups of 16: 49 taps for each of 64 channels; 64 -> 16 -> 4 * 49 makes them
        ("involution", 7, 64 * 49, 64 * 16 + 16 * 4 * 49),
        # the compression, the encoder and the softmax' window
        ("carafe", 3, 64 * 9, 64 * 64 + 9 * 64 * 9),
        # as the plain convolution, and a head of two offsets and a mask for each tap
        ("deformable", 3, 64 * 64 * 9 + 64 * 9 * 27, None),
        ("dilated", 3, 64 * 64 * 9, None),
        ("grouped", 3, 64 * 64 * 9 // 8, None),
    ],
)
def test_products_of_filters_by_hand(block, kernel_size, macs, mixing):
    counted = count("macs", replace(CELL, block=Variant(block), kernel_size=kernel_size), "train")
    assert counted["macs"] == 14 * 14 * macs
    assert counted.get("macs_mixing") == (None if mixing is None else 14 * 14 * mixing)
