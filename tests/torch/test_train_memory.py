"""Predicted and real training steps hold the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from block_places import nearest
from metric_cells import CELL, net, read
from torch import nn

from harness import blocks
from harness.catalog.vocabulary import DTYPES
from harness.errors import HarnessError, Unsupported
from harness.measuring.predicted_step import predict
from harness.measuring.subject import AUTOCAST, Subject
from harness.models.nets import backbones
from harness.models.nets.base import BACKBONES, Backbone
from harness.records import Variant
from harness.store.run import open_run


def both(cell):
    real = read("train_memory", cell)["train_memory"]
    fake = read("predicted_train_memory", cell)["predicted_train_memory"]
    return real, fake


PARTS = ("before_step", "peak_in", "phases", "categories", "modules")


def agree(cell):
    real, fake = both(cell)
    assert real.values == fake.values
    for part in PARTS:
        assert real.facts[part] == fake.facts[part], part
    (peak,) = real.values
    assert sum(real.facts["categories"].values()) == peak
    assert max(real.facts["phases"].values()) == peak
    assert len(real.facts["modules"]) <= 10


def layer(name, **wanted):
    """A cell with the block in a layer like the wanted one, in the nearest place that it takes."""
    options = {"c_in": 64, "c_out": 64, "stride": 1, "groups": 1, "dilation": 1, **wanted}
    c_in, c_out, k, stride, groups, dilation = nearest(
        name, (options["c_in"], options["c_out"], 3, options["stride"], options["groups"], options["dilation"])
    )
    sizes = {"c_in": c_in, "c_out": c_out, "stride": stride, "groups": groups, "dilation": dilation}
    return replace(CELL, block=Variant(name), backbone=Variant("layer", sizes), kernel_size=k)


# each is its own line of a block's code; float32 in the usual place is in every network below
PLACES = [
    ({}, "amp_bfloat16"),
    ({"groups": 64, "stride": 2}, "float32"),
    ({"groups": 4, "c_out": 32, "dilation": 2}, "float32"),
]


@pytest.mark.parametrize(("place", "dtype"), PLACES, ids=["usual", "depthwise, stride", "groups, dilation"])
@pytest.mark.parametrize("name", blocks.BLOCKS)
def test_every_block_holds_what_is_predicted_to_the_byte(name, place, dtype):
    agree(replace(layer(name, **place), dtype=dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "float16", "amp_float16"])
@pytest.mark.parametrize("name", ["conv", "dbb", "orepa", "kw"])
def test_some_blocks_do_so_in_the_other_dtypes(name, dtype):
    agree(replace(layer(name), dtype=dtype))


@pytest.mark.parametrize("name", ["condconv", "dcd", "kw"])
def test_kernels_for_each_sample_do_so_where_windows_are_laid_out(name):
    agree(replace(layer(name), image_size=3))


NAMED = [
    ("resnet18", "amp_bfloat16"),
    ("resnet50", "amp_bfloat16"),
    ("mobilenetv2_100", "float32"),
    ("convnext_tiny", "float32"),
    ("convnext_tiny", "amp_bfloat16"),
    ("plain_a0", "amp_bfloat16"),
]
"""Autocast has the more operators, and under it a fake norm has been wrong: with both kinds of norm; resnets in float32 are
below. The other half of these pairs agreed when it was tried, and so did regnety_002, efficientnet_b0, densenet121,
resnext50_32x4d and nfnet_f0."""


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "dtype"), NAMED)
def test_backbones_hold_what_is_predicted(backbone, dtype):
    where = Variant("where", {"kernel_size": 7}) if backbone == "convnext_tiny" else Variant("repvgg-paper")
    agree(net(backbone, "repvgg", dtype=dtype, where=where))


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "dtype"), [("repvgg_a0", "float32"), ("mobileone_s0", "amp_bfloat16")])
def test_native_networks_hold_what_is_predicted(backbone, dtype):
    agree(net(backbone, "native", dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"memory_format": "channels_last"},
        {"checkpointing": True},
        {"checkpointing": True, "dtype": "amp_bfloat16"},
        *({"optimizer": Variant("adamw", {"implementation": how})} for how in ("single", "foreach", "fused")),
        {"optimizer": Variant("sgd", {"implementation": "foreach"})},
        {"optimizer": Variant("sgd", {"momentum": 0.0})},
        {"optimizer": Variant("sgd", {"weight_decay": 0.1})},
        {"batch_size": 3, "image_size": 70},
        {"block": Variant("orepa"), "where": Variant("orepa-paper")},
        {"block": Variant("dbb"), "dtype": "amp_bfloat16", "memory_format": "channels_last"},
    ],
    ids=str,
)
def test_a_network_holds_what_is_predicted_whatever_the_step(changes):
    agree(replace(net("resnet10t"), **changes))


def test_checkpointing_trades_activations_for_nothing_else():
    plain, saving = (predict(Subject(net("resnet18", checkpointing=on, batch_size=32))) for on in (False, True))
    assert saving.categories["activations"] < 0.6 * plain.categories["activations"]
    assert saving.peak < plain.peak
    assert saving.before == plain.before - (plain.before - saving.before)
    for part in ("parameters", "optimizer state", "buffers"):
        assert saving.categories[part] == plain.categories[part]


def test_a_paper_scale_prediction_takes_no_room():
    found = predict(Subject(net("resnet18", batch_size=256, image_size=224)))
    weights = 4 * 11_689_512
    # tensors below 512 bytes and odd sizes are rounded up
    assert weights <= found.categories["parameters"] <= weights + 62 * 512
    assert found.categories["optimizer state"] == found.categories["parameters"]
    assert found.categories["input"] == 256 * 3 * 224 * 224 * 4 + 2048  # images and labels
    assert 5 * 2**30 < found.peak < 6 * 2**30


def test_the_recorded_study_is_what_the_code_predicts_today():
    recorded = open_run(Path(__file__).parents[2] / "results" / "studies" / "orepa-memory")
    peaks = {record.cell: record.readings[0] for record in recorded.records()}
    seen = 0
    for id_, cell in recorded.planned_cells.items():
        if (cell.part, cell.backbone.name) == ("resnets", "resnet18"):
            assert read("predicted_train_memory", cell)["predicted_train_memory"].values == peaks[id_].values
            seen += 1
    assert seen == 4


class Folding(nn.Identity):
    """What makes a network one that block native leaves as it is."""

    def reparameterize(self):
        raise AssertionError("nothing here folds")


class Lazy(nn.Module):
    """A parameter that no step uses."""

    def __init__(self, **_):
        super().__init__()
        self.folding = Folding()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.unused = nn.Parameter(torch.zeros(1000))
        self.head = nn.Linear(8, 1000)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


class Looking(Lazy):
    def forward(self, x):
        return super().forward(x) * (1 if x.sum().item() > 0 else 2)


class Narrow(Lazy):
    """As vgg11_bn, too much for a small image, without its 500 MB of weights."""

    def __init__(self, **_):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 9)


class Volumes(nn.Module):
    """Takes (N, C, D, H, W)."""

    def __init__(self, **_):
        super().__init__()
        self.folding = Folding()
        self.conv, self.head = nn.Conv3d(3, 8, 3, padding=1), nn.Linear(8, 1000)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3, 4)))


OWN = (("lazy", Lazy), ("looking", Looking), ("narrow", Narrow), ("volumes", Volumes))


@pytest.fixture
def own(monkeypatch):
    for name, made in OWN:
        monkeypatch.setitem(BACKBONES._items, name, Backbone(lambda classes, made=made, **_: made()))


def own_cell(name):
    # native takes the network as it is
    return net(name, "native", image_size=9)


def test_a_parameter_without_a_gradient_has_no_momentum_either(own):
    real, fake = both(own_cell("lazy"))
    assert real.values == fake.values
    assert real.facts["categories"] == fake.facts["categories"]
    assert real.facts["categories"]["parameters"] - real.facts["categories"]["optimizer state"] == 4096


def test_a_network_that_looks_at_values_is_unsupported_by_the_operators_name(own):
    with pytest.raises(Unsupported, match="_local_scalar_dense") as refusal:
        read("predicted_train_memory", own_cell("looking"))
    assert "train_memory" in refusal.value.remedy
    assert read("train_memory", own_cell("looking"))["train_memory"].values[0] > 0


def test_a_network_of_another_rank_is_refused_with_a_remedy(own):
    for name in ("predicted_train_memory", "train_memory", "saved_memory", "max_batch"):
        with pytest.raises(HarnessError, match=r"\(N, C, H, W\)"):
            read(name, own_cell("volumes"))


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("predicted_train_memory", "vgg11_bn"), ("train_memory", "narrow"), ("saved_memory", "narrow")],
)
def test_an_image_too_small_is_refused_with_a_remedy(own, name, backbone):
    with pytest.raises(HarnessError, match="8 px") as refusal:
        read(name, net(backbone, "conv" if backbone == "vgg11_bn" else "native", image_size=8))
    assert "image_size" in refusal.value.remedy


@pytest.mark.parametrize("name", ["predicted_train_memory", "train_memory", "saved_memory"])
def test_a_batch_of_one_that_a_batch_norm_cannot_train_on_is_refused_with_a_remedy(name):
    with pytest.raises(HarnessError, match="one value per channel") as refusal:
        read(name, net("resnet10t", image_size=32, batch_size=1))
    assert "batch_size" in refusal.value.remedy


def test_a_reading_says_what_it_assumes():
    cell = net(optimizer=Variant("adamw"), device=Variant("cuda"), dtype="amp_float16")
    facts = read("predicted_train_memory", cell)["predicted_train_memory"].facts
    said = " | ".join(facts["assumptions"])
    for word in ("CPU's operators", "adamw", "foreach", "512 bytes", "no workspaces", "cuda may choose", "autocast"):
        assert word in said


def test_every_amp_dtype_is_in_the_vocabulary():
    assert {name for name in DTYPES if name.startswith("amp_")} == set(AUTOCAST)


def test_checkpointing_is_refused_where_nothing_can_be_computed_again():
    with torch.device("meta"), pytest.raises(Unsupported, match="checkpointing"):
        Subject(net("vgg11_bn", checkpointing=True)).bare_model()
    with pytest.raises(Unsupported, match="saved-tensor hooks"):
        read("saved_memory", net("resnet10t", checkpointing=True))


def test_plain_nets_compute_the_same_with_checkpointing():
    torch.manual_seed(0)
    plain = backbones.build("plain_a0", num_classes=10).train()
    x = torch.randn(2, 3, 32, 32)
    wanted = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
    backbones.checkpoint_activations(plain)
    got = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)
