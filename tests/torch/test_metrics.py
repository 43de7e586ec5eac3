"""Every metric against something independent of it: closed forms, hand counts, planted mistakes."""

from __future__ import annotations

import math
from dataclasses import replace

import metric_cells
import pytest
import torch
from torch import nn

from harness import blocks
from harness.blocks import ConvSpec
from harness.errors import Unsupported
from harness.measuring.subject import Subject, make_optimizer, optimizer_options
from harness.metrics import METRICS
from harness.metrics import fusion_error as fusion
from harness.records import Kind, TaskKind, Variant

CELL = replace(metric_cells.CELL, batch_size=8, image_size=56)
RESNET18 = replace(CELL, backbone=Variant("resnet18"), kernel_size=None, image_size=224, batch_size=1)
BLOCKS = ("conv", "repvgg", "acb", "dbb", "orepa", "orepa_vgg")


def read(name, cell, **options):
    """Metric -> (form -> value) of one cell."""
    subject = Subject(cell)
    with subject.settings():
        readings = METRICS[name].readings(subject, options)
    return {(reading.metric, reading.form): reading.values[0] for reading in readings}


def layer(block, **changes):
    variant = block if isinstance(block, Variant) else Variant(block)
    return replace(CELL, block=variant, **changes)


UNITS = {"conv": 2.00, "repvgg": 3.00, "acb": 4.00, "dbb": 9.15}
BOUNDS = {"orepa": 2.17, "orepa_vgg": 3.15}


@pytest.mark.parametrize("block", [*UNITS, *BOUNDS])
def test_saved_memory_is_what_was_measured_on_the_originals(block):
    """Units of one 8x64x56x56 float32 map; ../shared facts and blocks-reparam, section 0."""
    saved = read("saved_memory", layer(block))["saved_memory", "train"] / (8 * 64 * 56 * 56 * 4)
    if block in UNITS:
        assert round(saved, 2) == UNITS[block]
    else:
        assert 2.0 <= saved <= BOUNDS[block]


def test_saved_memory_of_plain_layers_by_hand():
    x = 2 * 64 * 14 * 14 * 4
    saved = read("saved_memory", layer("conv", batch_size=2, image_size=14))["saved_memory", "train"]
    # input for the convolution, its output for the batch norm, and the norm's saved mean and inverse deviation
    assert saved == 2 * x + 2 * 64 * 4


def test_macs_of_a_layer_by_hand():
    for k, groups, stride in ((1, 1, 1), (3, 1, 1), (5, 4, 1), (7, 64, 2)):
        options = {"groups": groups, "stride": stride}
        got = read("macs", layer("conv", backbone=Variant("layer", options), kernel_size=k))
        assert got["macs", "train"] == got["macs", "fused"] == (56 // stride) ** 2 * 64 * (64 // groups) * k * k
        assert got["macs_kernel", "train"] == 0


def test_macs_of_resnet18_are_the_well_known_ones():
    got = read("macs", RESNET18)
    assert got["macs", "train"] == got["macs", "fused"] == 1_814_073_344


def test_macs_do_not_depend_on_the_cells_batch():
    assert read("macs", layer("orepa")) == read("macs", layer("orepa", batch_size=2))


def test_an_online_block_pays_for_its_kernel_once_a_pass_and_an_offline_one_per_image():
    online = read("macs", layer("orepa"))
    offline = read("macs", layer(Variant("orepa", {"reparam": "offline"})))
    plain = read("macs", layer("conv"))["macs", "train"]
    assert online["macs", "train"] == plain
    # 1x1-3x3 as one product over T = 64 rows, dws of 8 per channel, three pointwise terms
    assert online["macs_kernel", "train"] >= 64 * 9 * 64 * 64 + 64 * 64 * 8 * 9
    assert online["macs_kernel", "train"] <= 1.15 * (64 * 9 * 64 * 64 + 64 * 64 * 8 * 9)
    assert offline["macs", "train"] > 2 * plain
    assert offline["macs", "fused"] == online["macs", "fused"] == plain


@pytest.mark.parametrize(
    ("block", "count"), [("conv", 36_992), ("dbb", 86_784), ("orepa", 128_000), ("orepa_vgg", 128_192)]
)
def test_params_are_the_published_counts(block, count):
    got = read("params", layer(block))
    assert got["params", "train"] == count
    assert got["params", "fused"] == 64 * 64 * 9 + 64


def test_params_of_a_repvgg_net_are_the_published_ones():
    cell = replace(RESNET18, backbone=Variant("plain_a0"), block=Variant("repvgg"), where=Variant("repvgg-paper"))
    got = read("params", cell)
    assert (round(got["params", "train"] / 1e6, 3), round(got["params", "fused"] / 1e6, 3)) == (9.109, 8.309)


@pytest.mark.parametrize("block", BLOCKS)
def test_train_memory_holds_at_least_what_must_be_there(block):
    cell = layer(block, image_size=14)
    peak = read("train_memory", cell)["train_memory", "train"]
    parameters = 4 * read("params", cell)["params", "train"]
    saved = read("saved_memory", cell)["saved_memory", "train"]
    assert peak > 3 * parameters + saved  # weights, gradients, momentum
    assert peak < 3 * parameters + 6 * saved + 2**21


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["saved_memory", "train_memory", "macs", "params"])
def test_counts_are_the_same_each_time_and_for_each_seed(name, block):
    cell = layer(block, image_size=14)
    values, clutter = [], []
    for seed in (0, 0, 7):
        clutter.append([torch.empty(64 * (seed + i)) for i in range(1, 50)])  # another state of the heap each time
        subject = Subject(cell, seed)
        values.append([reading.values for reading in METRICS[name].readings(subject, {})])
    assert values[0] == values[1] == values[2]


LIMITS = {"float64": 1e-12, "float32": 5e-6, "bfloat16": 5e-2, "float16": 1e-2}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("block", BLOCKS)
def test_fusion_error_is_small_in_every_dtype_and_grows_with_its_rounding(block, dtype):
    got = read("fusion_error", layer(block, dtype=dtype, image_size=9, batch_size=2))
    assert set(got) == {(f"fusion_error{part}", "fused") for part in ("", "_max", "_rim", "_interior")}
    assert all(0 < value < LIMITS[dtype] for value in got.values()), got
    if dtype != "float64":
        assert got["fusion_error", "fused"] > LIMITS[dtype] / 1000


def test_fusion_error_sees_a_mistake_at_the_rim_only_at_the_rim(monkeypatch):
    class Cropped(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            y[..., 0, :] += 1.0
            return y

    def wrong(model):
        fused = model.fused()
        cropped = Cropped(64, 64, 3, padding=1)
        cropped.load_state_dict(fused.state_dict())
        return cropped

    monkeypatch.setattr(fusion, "fuse", wrong)
    got = read("fusion_error", layer("repvgg", image_size=9))
    assert got["fusion_error_interior", "fused"] < 1e-6
    assert got["fusion_error_rim", "fused"] > 0.05
    assert got["fusion_error", "fused"] > 0.01


def test_fusion_error_sees_a_wrong_bias_that_fresh_batch_norms_would_hide(monkeypatch):
    def wrong(model):
        fused = model.fused()
        nn.init.zeros_(fused.bias)
        return fused

    fresh = blocks.create("acb", 64, 64).eval()
    x = torch.randn(1, 64, 7, 7)
    assert torch.allclose(wrong(fresh)(x), fresh(x), atol=1e-5), "the mistake is invisible on a fresh block"
    monkeypatch.setattr(fusion, "fuse", wrong)
    assert read("fusion_error", layer("acb", image_size=9))["fusion_error_interior", "fused"] > 0.01


def test_the_rim_is_where_windows_reach_into_the_padding():
    conv = nn.Conv2d(1, 1, 5, padding=2)
    x = torch.zeros(1, 1, 7, 7)
    rim = fusion.rim_mask(ConvSpec(1, 1, 5), x, conv(x))
    assert (~rim).nonzero().tolist() == [[i, j] for i in (2, 3, 4) for j in (2, 3, 4)]
    strided = nn.Conv2d(1, 1, 3, stride=2, padding=1)
    x = torch.zeros(1, 1, 8, 8)
    assert (
        fusion.rim_mask(ConvSpec(1, 1, 3, 2), x, strided(x)).sum() == 7
    )  # the first row and column; the last window fits


def test_a_backbones_layers_are_looked_at_one_by_one():
    got = read("fusion_error", replace(RESNET18, block=Variant("repvgg"), image_size=32, batch_size=2))
    assert 0 < got["fusion_error_rim", "fused"] < 5e-6
    native = read(
        "fusion_error", replace(RESNET18, backbone=Variant("repvgg_a0"), block=Variant("native"), image_size=32)
    )
    assert set(native) == {("fusion_error", "fused"), ("fusion_error_max", "fused")}
    assert native["fusion_error", "fused"] < 5e-6


QUICK = {"epochs": 1, "batch_size": 25, "image_size": 16, "train_images": 1000}


@pytest.mark.slow
def test_accuracy_learns_digits_and_folding_changes_little():
    cell = replace(
        RESNET18, backbone=Variant("test_resnet"), block=Variant("orepa"), optimizer=Variant("sgd", {"lr": 0.05})
    )
    got = read("accuracy", cell, **QUICK)
    again = read("accuracy", cell, **QUICK)
    assert got == again, "the same seed gives the same training"
    assert 0.3 < got["accuracy", "train"] <= 1.0
    assert abs(got["accuracy", "train"] - got["accuracy", "fused"]) * 1000 <= got["changed_predictions", "fused"]
    assert got["changed_predictions", "fused"] <= 2
    assert 0 < got["train_loss", "train"] < math.log(10)


def test_accuracy_of_a_single_layer_is_unsupported():
    with pytest.raises(Unsupported, match="no classes"):
        read("accuracy", CELL)


def test_timed_metrics_give_steps_that_do_the_work():
    subject = Subject(layer("repvgg", image_size=7, batch_size=2))
    (step,) = METRICS["train_step"].steps(subject, {})
    weights = step.run.model.branches
    before = [p.clone() for p in weights.parameters()]
    step.run()
    assert any(not torch.equal(a, b) for a, b in zip(before, weights.parameters(), strict=True))
    assert step.facts == {"optimizer": "single"}
    train, fused = METRICS["latency"].steps(subject, {})
    assert (train.form, fused.form) == ("train", "fused")
    torch.testing.assert_close(train.run(), fused.run(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("device", "implementation"), [("cpu", "single"), ("cuda", "foreach"), ("mps", "single")])
def test_the_optimizers_implementation_follows_the_target_device(device, implementation):
    cell = replace(CELL, device=Variant(device))
    assert optimizer_options(cell)["implementation"] == implementation
    optimizer = make_optimizer(cell, nn.Linear(2, 2))
    assert optimizer.defaults["foreach"] is (implementation == "foreach")
    assert optimizer.defaults["lr"] == 0.1


ELSEWHERE = {
    "train_memory_reserved",
    "train_memory_first",
    "train_memory_unpredicted",
    "max_batch_tried",
    "macs_mixing",
}
"""Read on an accelerator only, when asked for by an option, or of dynamic convolutions."""


def test_every_reading_is_a_declared_quantity():
    cell = layer("orepa", image_size=9, batch_size=2)
    for name in METRICS:
        metric = METRICS[name]
        declared = {(q.name, form): q for q in metric.quantities for form in q.forms}
        subject = Subject(cell)
        if metric.task is TaskKind.VISIT:
            got = {(step.metric, step.form): step.unit for step in metric.steps(subject, {})}
        elif metric.task is TaskKind.CELL:
            got = {(reading.metric, reading.form): reading.unit for reading in metric.readings(subject, {})}
        else:
            continue
        assert got.items() <= {key: q.unit for key, q in declared.items()}.items()
        absent = {quantity for quantity, _ in declared.keys() - got.keys()}
        assert absent - {quantity for quantity, _ in got} <= ELSEWHERE  # of two forms a block may have one
        if metric.task is TaskKind.VISIT:
            assert all(q.kind is Kind.SAMPLED for q in declared.values())
