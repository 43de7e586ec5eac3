"""Where the papers put their blocks: the networks that the presets give have the published numbers of parameters."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from metric_cells import net
from torch import nn

import harness
from harness import blocks
from harness.blocks.dynamic.dcd import DCDLinear
from harness.errors import HarnessError
from harness.measuring.subject import Subject
from harness.metrics import METRICS
from harness.models import LayerChange, build, randomize_statistics
from harness.models.swap import swap
from harness.records import Variant
from harness.where import PRESETS, parse


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def left(model: nn.Module) -> dict[str, LayerChange]:
    """The convolutions that stayed, by name."""
    return {change.name: change for change in model.swap_report if not change.changed}  # type: ignore[union-attr]


def replaced(model: nn.Module) -> set[str]:
    return {change.name for change in model.swap_report if change.changed}  # type: ignore[union-attr]


ODCONV = [
    ("resnet18", 1, 11_943_944),
    ("resnet18", 4, 44_901_640),
    ("resnet50", 1, 28_635_112),
    ("resnet50", 4, 90_670_888),
    ("resnet101", 1, 50_818_769),
    ("resnet101", 2, 90_441_623),
    ("mobilenetv2_100", 1, 4_940_185),
    ("mobilenetv2_100", 4, 11_512_149),
    ("mobilenetv2_075", 1, 3_507_113),
    ("mobilenetv2_075", 4, 7_496_013),
    ("mobilenetv2_050", 1, 2_425_537),
    ("mobilenetv2_050", 4, 4_435_501),
]


@pytest.mark.parametrize(("backbone", "kernels", "published"), ODCONV)
def test_odconv_has_the_parameters_of_its_repository(backbone, kernels, published):
    assert parameters(swap(on_meta(backbone), "odconv", where="odconv-paper", kernels=kernels)) == published


@pytest.mark.parametrize(("backbone", "published"), [("resnet18", 45_475_008), ("resnet50", 100_895_176)])
def test_dyconv_has_the_parameters_of_the_reimplementation(backbone, published):
    assert parameters(swap(on_meta(backbone), "dyconv", where="dyconv-paper")) == published


@pytest.mark.parametrize(
    ("backbone", "options", "published"),
    [
        ("resnet18", {}, 14_703_332),
        ("resnet50", {"rule": "bottleneck"}, 29_835_056),
        ("mobilenetv2_100", {"rule": "mobile", "squeeze": 16}, 5_720_028),
        ("mobilenetv2_100", {"rule": "mobile", "squeeze": 8}, 7_452_088),
        ("mobilenetv2_050", {"rule": "mobile", "squeeze": 8}, 3_056_616),
    ],
)
def test_dcd_has_the_parameters_of_its_repository_with_a_dynamic_classifier(backbone, options, published):
    new = swap(on_meta(backbone), "dcd", where="dcd-paper", **options)
    assert parameters(new) == published
    name = "fc" if backbone.startswith("resnet") else "classifier"
    assert isinstance(new.get_submodule(name), DCDLinear)
    assert next(change for change in new.swap_report if change.name == name).after == "DCDLinear"


def test_cgc_gates_the_stem_too_and_has_the_derived_total():
    new = swap(on_meta("resnet50"), "cgc", where="cgc-paper")
    assert parameters(new) == 25_589_951
    assert "conv1" in replaced(new)
    assert {change.reason for change in left(new).values()} == {"kernel size 1 is not among 3, 5, 7"}


def test_se_behind_each_residual_branch_is_timms_seresnet50():
    assert parameters(swap(on_meta("resnet50"), "se", where="attention-paper")) == parameters(on_meta("seresnet50"))


@pytest.mark.parametrize(("backbone", "ends"), [("resnet18", "conv2"), ("resnet50", "conv3"), ("mobilenetv2_100", "l")])
def test_attentions_stand_at_the_end_of_each_unit(backbone, ends):
    new = swap(on_meta(backbone), "eca", where="attention-paper")
    units = {"resnet18": 8, "resnet50": 16, "mobilenetv2_100": 17}[backbone]
    assert len(replaced(new)) == units
    # the one unit without an expansion ends in what timm calls its only 1x1
    assert all(name.endswith(ends) for name in replaced(new) - {"blocks.0.0.conv_pw"})
    assert not any("downsample" in name for name in replaced(new))


def test_stem_shortcuts_and_classifier_are_static_in_odconv_and_shortcuts_are_not_in_dyconv():
    static = left(swap(on_meta("resnet18"), "odconv", where="odconv-paper"))
    assert set(static) == {"conv1", *(f"layer{i}.0.downsample.0" for i in (2, 3, 4))}
    assert Counter(change.reason for change in static.values()) == {"excepted": 3, "the stem stays unless named": 1}
    assert set(left(swap(on_meta("resnet18"), "dyconv", where="dyconv-paper"))) == {"conv1"}
    assert set(left(swap(on_meta("mobilenetv2_100"), "odconv", where="odconv-paper"))) == {"conv_stem"}


def test_dcd_takes_expansions_and_projections_of_a_mobilenet_alone():
    new = swap(on_meta("mobilenetv2_100"), "dcd", where="dcd-paper", rule="mobile")
    assert replaced(new) - {"classifier"} == {
        f"blocks.{i}.{j}.{conv}"
        for i, units in ((1, 2), (2, 3), (3, 4), (4, 3), (5, 3), (6, 1))
        for j in range(units)
        for conv in ("conv_pw", "conv_pwl")
    }


def test_weightnet_takes_shufflenets_units_and_neither_end():
    new = swap(on_meta("tv_shufflenet_v2_x1_0"), "weightnet", where="weightnet-paper")
    assert set(left(new)) == {"conv1.0", "conv5.0"}


def test_condconv_takes_the_last_three_stages_and_no_gate():
    new = swap(on_meta("efficientnet_b0"), "condconv", where="condconv-paper")
    assert replaced(new)
    assert all(name.startswith(("blocks.4", "blocks.5", "blocks.6")) for name in replaced(new))
    assert not any(".se." in name for name in replaced(new))


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"condconv-paper"}))  # an EfficientNet's names
def test_a_block_that_has_no_linear_form_leaves_the_classifier(preset):
    new = swap(on_meta("resnet18"), "conv", where=preset)
    assert type(new.get_submodule("fc")) is nn.Linear


def test_the_classifier_is_made_anew_in_the_models_dtype_and_runs():
    new = swap(build("resnet18", num_classes=7).bfloat16(), "dcd", where="dcd-paper")
    assert new.fc.linear.weight.dtype == torch.bfloat16
    assert new.train()(torch.randn(2, 3, 64, 64, dtype=torch.bfloat16)).shape == (2, 7)


@pytest.mark.parametrize(
    ("where", "says"),
    [({"except": 3}, "except cannot be 3"), ({"unit_end": "yes"}, "unit_end: true"), ({"excpt": "a"}, "except")],
)
def test_keys_of_where_are_checked(where, says):
    with pytest.raises(HarnessError, match=says):
        parse(where)


def test_exceptions_and_unit_ends_can_be_written():
    where = {"kernel_size": [1, 3], "unit_end": True, "except": ["layer1.*", "layer4.*"]}
    new = harness.swap(on_meta("resnet50"), "conv", where=where)
    assert {name.split(".")[0] for name in replaced(new)} == {"layer2", "layer3"}
    assert all(isinstance(new.get_submodule(name), blocks.Block) for name in replaced(new))
    named = {"except": "layer1.*", "name": "layer1.0.conv2"}  # a full name picks, whatever else is said
    assert replaced(harness.swap(on_meta("resnet50"), "conv", where=named)) == {"layer1.0.conv2"}


def test_kws_warehouses_are_a_fact_of_its_parameters():
    cell = net("resnet18", "kw", where=Variant("kw-paper"), image_size=224)
    (train, fused) = METRICS["params"].readings(Subject(cell), {})
    said = train.facts["warehouses"]
    assert train.values == (11_932_148,)
    # (64 x 16 + 2 x 16 + 17 x 57 m) for m = 9 four times, 18 and 2
    assert said[0] == "stage0: 6 layers, 56 cells of 64 x 64, 229,376 parameters; attention 60,600"
    assert len(said) == 4
    assert fused.facts == train.facts
    small = net("mobilenetv2_050", "kw", where=Variant("kw-paper"), image_size=224)
    said = next(iter(METRICS["params"].readings(Subject(small), {}))).facts["warehouses"]
    assert any("more than it attends to" in line for line in said)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"kernel_size": 5}, "keeps the kernel sizes"), ({"ratio": 3}, "no ratio 3"), ({"ratoi": 1}, "ratio")],
)
def test_what_kw_cannot_do_in_a_network_is_refused(options, says):
    with pytest.raises(HarnessError, match=says):
        swap(on_meta("resnet18"), "kw", **options)


def test_kw_shares_a_warehouse_for_each_stage_of_what_where_picks():
    new = swap(on_meta("resnet18"), "kw")
    assert [(each.name, each.cells, each.c_out) for each in new.warehouse_report] == [
        ("stage0", 54, 64),  # five 3x3 layers, the last of 64 -> 128: six of 64 x 64
        ("stage1", 45, 128),
        ("stage2", 45, 256),
        ("stage3", 27, 512),
    ]
    assert "downsample" not in " ".join(replaced(new))
    with pytest.raises(HarnessError, match="picks no convolution"):
        swap(on_meta("resnet18"), "kw", where=5)


NEW = [
    name
    for name in blocks.BLOCKS
    if blocks.BLOCKS[name].family in ("dynamic", "dynamic filter", "attention", "structural")
]


@pytest.mark.parametrize("name", NEW)
def test_every_block_takes_its_place_trains_and_keeps_its_function_once_fused(name):
    """In a small ResNet, by the default rule: strides, residual sums and 3x3 layers of several widths."""
    block = blocks.BLOCKS[name]
    where = {"name": "layer*.conv2"} if block.same_channels else None
    size = None if 3 in block.kernel_sizes else min(block.kernel_sizes)
    new = swap(build("test_resnet", num_classes=5), name, where=where, kernel_size=size).double().train()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    new(x).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in new.parameters())
    assert any(p.grad is not None and p.grad.any() for p in new.parameters())
    randomize_statistics(new, 0, x)
    new.eval()
    torch.testing.assert_close(harness.fuse(new)(x), new(x), rtol=1e-9, atol=1e-9)
