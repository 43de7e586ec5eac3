"""Networks whose layers share warehouses: who shares with whom, the exact sizes of the paper's, copies, refusals."""

from __future__ import annotations

import copy
import io
import pickle
from fractions import Fraction
from functools import cache
from math import prod

import pytest
import timm
import torch
from torch import nn
from warehouse_kernels import assembled, at

from harness import blocks
from harness.blocks.parts.per_sample import KernelWork
from harness.blocks.parts.warehouse_layers import ContrastingAttention, KWConv2d, KWLayer, KWLinear, NonLocalRows
from harness.errors import HarnessError, Unsupported
from harness.models import build
from harness.models.warehouse_plans import PAPER, STATIC, layers_of
from harness.models.warehouses import plan, swap_in_warehouses
from harness.training.annealing import Annealing

TOTALS = [
    # backbone, ratio, all parameters, in cells, in attentions, elsewhere
    ("resnet18", "1/4", 4_031_768, 2_789_376, 710_384, 532_008),  # the released configuration; published are 4.08 M
    ("resnet18", "1/2", 7_431_044, 5_578_752, 1_320_284, 532_008),
    ("resnet18", 1, 11_932_148, 11_157_504, 242_636, 532_008),
    ("resnet18", 2, 23_242_127, 22_315_008, 395_111, 532_008),
    ("resnet18", 4, 45_862_085, 44_630_016, 700_061, 532_008),
    ("resnet50", "1/2", 17_638_264, 11_712_512, 3_793_744, 2_132_008),
    ("resnet50", 1, 28_052_310, 23_425_024, 2_495_278, 2_132_008),
    ("resnet50", 4, 102_015_144, 93_700_096, 6_183_040, 2_132_008),
    ("convnext_tiny", 1, 39_370_674, 27_756_000, 10_781_546, 833_128),
    ("mobilenetv2_100", "1/2", 2_654_396, 1_447_488, 531_924, 674_984),
    ("mobilenetv2_100", 1, 5_168_146, 2_189_760, 1_663_274, 1_315_112),
    ("mobilenetv2_100", 4, 11_379_382, 8_759_040, 1_305_230, 1_315_112),
    ("mobilenetv2_050", "1/2", 1_466_888, 909_776, 375_008, 182_104),
    ("mobilenetv2_050", 1, 2_854_522, 669_136, 885_842, 1_299_544),
    ("mobilenetv2_050", 4, 4_648_587, 2_676_544, 672_499, 1_299_544),
]

CELLS = {
    ("resnet18", "1/4"): [(56, 32, 32), (47, 64, 64), (47, 128, 128), (27, 256, 256)],
    ("resnet18", "1/2"): [(112, 32, 32), (94, 64, 64), (94, 128, 128), (54, 256, 256)],
    ("resnet18", 1): [(56, 64, 64), (47, 128, 128), (47, 256, 256), (27, 512, 512)],
    ("resnet18", 4): [(224, 64, 64), (188, 128, 128), (188, 256, 256), (108, 512, 512)],
    ("resnet50", "1/2"): [(174, 32, 32), (208, 64, 64), (276, 128, 128), (94, 256, 256)],
    ("resnet50", 1): [(87, 64, 64), (104, 128, 128), (138, 256, 256), (47, 512, 512)],
    ("resnet50", 4): [(348, 64, 64), (416, 128, 128), (552, 256, 256), (188, 512, 512)],
    ("convnext_tiny", 1): [(16, 96, 3), (147, 96, 1), (24, 96, 96), (4, 192, 96), (147, 192, 1), (24, 192, 192), (4, 384, 192), (441, 384, 1), (72, 384, 384), (4, 768, 384), (147, 768, 1), (24, 768, 768)],
    ("mobilenetv2_100", "1/2"): [(9, 32, 3), (36, 32, 1), (18, 144, 1), (27, 192, 1), (36, 384, 1), (27, 576, 1), (6, 480, 80), (27, 960, 1), (40, 80, 160), (20, 1000, 32)],
}  # fmt: skip


@cache
def on_meta(name):
    """Once for all tests: a swap leaves it as it is."""
    with torch.device("meta"):
        return timm.create_model(name)


def swapped(model, *args, **options):
    return swap_in_warehouses(model, plan(model, *args, **options))


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "ratio", "total", "cells", "attention", "rest"), TOTALS)
def test_every_network_of_the_paper_has_its_exact_size(name, ratio, total, cells, attention, rest):
    new = swapped(on_meta(name), ratio)
    attentions = sum(size(module) for module in new.modules() if isinstance(module, ContrastingAttention))
    assert (size(new), size(new.warehouses), attentions) == (total, cells, attention)
    assert total - cells - attention == rest
    assert sum(report.cell_parameters for report in new.warehouse_report) == cells
    assert sum(report.attention_parameters for report in new.warehouse_report) == attention
    sizes = [(report.cells, report.c_out, report.c_in) for report in new.warehouse_report]
    assert sizes == CELLS.get((name, ratio), sizes)
    assert [tuple(each.cells.shape) for each in new.warehouses] == [(n, out * into) for n, out, into in sizes]


@pytest.mark.parametrize(("name", "total"), [("resnet34", 22_484_688), ("resnet101", 53_311_148)])
def test_relatives_of_the_papers_networks(name, total):
    assert size(swapped(on_meta(name))) == total


def test_the_published_size_of_the_smallest_resnet_is_not_that_of_its_configuration():
    ours = size(swapped(on_meta("resnet18"), "1/4"))
    assert 4.08e6 / ours == pytest.approx(1.012, abs=5e-4)


@pytest.mark.parametrize(("ratio", "expected"), [("1/2", 0.770e9), (1, 0.385e9), (4, 1.540e9)])
def test_multiplications_that_mix_cells(ratio, expected):
    """ResNet18 on one image of 224 pixels: half the cells cost twice as much, because there are four times the rows."""
    new = swapped(on_meta("resnet18"), ratio).eval()
    counted = []
    for module in new.modules():
        if isinstance(module, KernelWork):
            module.register_forward_hook(lambda module, args, y: counted.append(prod(args[0].shape) * args[1].shape[1]))
    new(torch.empty(1, 3, 224, 224, device="meta"))
    assert len(counted) == 19
    assert sum(counted) == pytest.approx(expected, rel=7e-4)
    rows = {name: layer.attention.beta.shape[0] for name, layer in new.named_modules() if isinstance(layer, KWLayer)}
    reports = new.warehouse_report
    assert sum(counted) == sum(sum(rows[name] for name in each.layers) * each.cell_parameters for each in reports)


def test_resnets_hand_the_first_layers_of_a_stage_to_the_one_before():
    layers = plan(on_meta("resnet18")).layers
    assert [name for name, where in layers.items() if where == STATIC] == ["conv1", "fc"]
    for name, where in layers.items():
        if where != STATIC:
            stage = int(name[5]) - 1
            assert where == f"stage{stage - (stage > 0 and name.endswith(('.0.conv1', '.0.downsample.0')))}"
    deep = plan(on_meta("resnet50")).layers
    static = [name for name, where in deep.items() if where == STATIC]
    assert static == ["conv1", "layer1.0.conv1", "layer1.0.downsample.0", "fc"]
    assert (deep["layer2.0.conv1"], deep["layer2.0.conv2"], deep["layer2.0.downsample.0"]) == ("stage0", "stage1", "stage0")  # fmt: skip


def test_mobilenets_separate_as_their_ratio_asks():
    model = on_meta("mobilenetv2_100")
    counts = {ratio: len(plan(model, ratio).warehouses) for ratio in ("1/2", 1, 4)}
    assert counts == {"1/2": 10, 1: 13, 4: 19}
    small = list(plan(model, "1/2").warehouses)
    assert small == ["stem", *(f"stage{i}_dw" for i in range(1, 6)), "stage6_pw0", "stage6_dw", "stage6_pw1", "linear"]
    assert plan(model).layers["conv_head"] == "stage6_pw"
    assert plan(model, 4).layers["conv_head"] == "stage6_pw1"
    assert plan(model, 4).layers["blocks.0.0.conv_pw"] == "stage1_pw1"
    assert plan(model, 4).warehouses["stage2_pw0"] == ["blocks.1.1.conv_pw", "blocks.2.0.conv_pw"]
    assert plan(model, 1).layers["classifier"] == STATIC


@pytest.mark.parametrize(("name", "ratio", "reduction", "norm", "basis", "epochs"), [
    ("resnet18", "1/2", 16, "batch", None, (20, 300)),
    ("resnet50", "1/2", 16, "batch", Fraction(1, 16), (20, 300)),
    ("resnet50", 1, 16, "batch", None, (20, 300)),
    ("convnext_tiny", 1, 16, "layer", None, (20, 300)),
    ("mobilenetv2_100", "1/2", 32, "batch", None, (15, 150)),
    ("mobilenetv2_100", 4, 16, "batch", None, (15, 150)),
])  # fmt: skip
def test_settings_of_the_papers_networks(name, ratio, reduction, norm, basis, epochs):
    settings = plan(on_meta(name), ratio).settings
    assert (1 / settings.reduction, settings.norm, settings.basis) == (reduction, norm, basis)
    assert (settings.schedule.start, settings.schedule.end) == (1, 0)
    assert (settings.schedule.epochs, settings.schedule.of) == epochs
    assert plan(on_meta(name), ratio, attention_norm="layer").settings.norm == "layer"


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_the_general_rule_finds_the_papers_stages(name):
    """For a ResNet under a foreign name; the paper leaves static two layers of ResNet50 that it takes in."""
    model = copy.copy(on_meta(name))
    published = dict(plan(model).layers)
    model.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key != "architecture"}
    general = dict(plan(model).layers)
    if name == "resnet50":
        published |= {"layer1.0.conv1": "stage0", "layer1.0.downsample.0": "stage0"}
    assert general == published


def test_behind_a_pooling_the_first_convolution_is_handed_on():
    members = plan(on_meta("vgg13")).warehouses
    assert members == {
        "stage0": ["features.2", "features.5"],
        "stage1": ["features.7", "features.10"],
        "stage2": ["features.12", "features.15"],
        "stage3": ["features.17", "features.20"],
        "stage4": ["features.22"],
    }


@pytest.mark.parametrize("name", ["efficientnet_b0", "regnety_002", "resnext50_32x4d"])
def test_dense_grouped_and_depthwise_layers_are_never_together(name):
    chosen = plan(on_meta(name), "1/2")
    layers = dict(layers_of(on_meta(name)))
    for warehouse, members in chosen.warehouses.items():
        kinds = {(layers[each].groups > 1) + (layers[each].groups == layers[each].in_channels) for each in members}
        assert kinds == {2 if warehouse.endswith("_dw") else int(warehouse.endswith("_grouped"))}
        assert chosen.ratios[warehouse].cells == (Fraction(1) if kinds - {0} else Fraction(1, 2))
    for each, reason in chosen.reasons.items():
        if ".se." in each:
            assert "single pixel" in reason
    assert chosen.reasons[next(iter(layers))] == "the stem is static"
    assert len(chosen.warehouses) > 4


def test_named_layers_keep_the_stages_of_the_whole_network():
    model = on_meta("resnet18")
    named = {name for name, layer in layers_of(model) if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)}
    published, chosen = plan(model).layers, plan(model, 1, frozenset(named))
    for name, warehouse in chosen.layers.items():
        assert warehouse == (published[name] if name in named else STATIC)
    assert chosen.reasons["layer2.0.downsample.0"] == "not picked"
    one = plan(model, 1, ["conv1", "layer2.0.conv1"])
    assert one.warehouses == {"stem": ["conv1"], "stage0": ["layer2.0.conv1"]}


SMALL = {
    "resnet18": {"channels": (8, 16, 16, 32)},
    "resnet50": {"channels": (8, 16, 16, 32)},
    "convnext_tiny": {"depths": (1, 2, 1, 1), "dims": (8, 16, 32, 32)},
    "mobilenetv2_035": {},
}


def small(name):
    model = timm.create_model(name, num_classes=10, **SMALL[name])
    assert model.pretrained_cfg["architecture"] == name
    return model


@pytest.mark.parametrize("name", SMALL)
def test_at_temperature_one_a_network_is_its_static_one(name, lived_in):
    """Every layer in its place with its stride, padding, groups and bias, and with cells of its own."""
    model = small(name)
    new = at(lived_in(swapped(model)), 1.0).eval()
    static, state = small(name).eval(), new.state_dict()
    static.load_state_dict({key: value for key, value in state.items() if key in static.state_dict()}, strict=False)
    for report, warehouse in zip(new.warehouse_report, new.warehouses, strict=True):
        for layer, part in zip(report.layers, warehouse.layout.layers, strict=True):
            kernel = assembled(warehouse.cells[part.first :][: part.rows].detach(), new.get_submodule(layer).spec, report.c_out, report.c_in)  # fmt: skip
            place = static.get_submodule(layer)
            place.weight.data = kernel.reshape(place.weight.shape)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(new(x), static(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "ratio"), [("resnet18", "1/4"), ("resnet50", "1/2"), ("convnext_tiny", 2), ("mobilenetv2_035", "1/2")])  # fmt: skip
def test_a_network_trains_and_its_copies_are_their_own(name, ratio, lived_in):
    model = lived_in(small(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    new = swapped(model, ratio)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [key for key in new.state_dict() if "cells" in key] == [f"warehouses.{i}.cells" for i in range(len(new.warehouses))]  # fmt: skip
    x = torch.randn(4, 3, 64, 64)
    at(new, 0.5)
    new(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in new.parameters())
    new.zero_grad(set_to_none=True)
    new.eval()
    with torch.no_grad():
        y = new(x)
        again = swapped(small(name), ratio)
        again.load_state_dict(new.state_dict())
        for other in (copy.deepcopy(new), pickle.loads(pickle.dumps(new)), again.eval()):
            assert torch.equal(other(x), y)
            assert size(other) == size(new)
            owned = set(map(id, other.warehouses))
            assert owned == {id(layer.warehouse) for layer in other.modules() if isinstance(layer, KWLayer)}
            assert not owned & set(map(id, new.warehouses))


def test_a_network_from_meta_is_complete_once_loaded():
    new = swapped(small("resnet18"), "1/2").eval()
    with torch.device("meta"):
        empty = small("resnet18")
    loaded = swapped(empty, "1/2").to_empty(device="cpu")
    buffer = io.BytesIO()
    torch.save(new.state_dict(), buffer)
    buffer.seek(0)
    loaded.load_state_dict(torch.load(buffer))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.eval()(x), new(x))


def test_layers_keep_place_bias_type_and_mode():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 6, 3, stride=2, padding=4, dilation=2, groups=2),
        nn.Conv2d(6, 6, 5, padding="same", bias=False),
        nn.Conv2d(6, 12, 3, padding="valid"),
    ).to(torch.bfloat16)
    model[1].eval()
    new = swapped(model, 1, ["1", "2", "3"])
    specs = [new[i].spec for i in (1, 2, 3)]
    assert [(s.stride, s.padding, s.dilation, s.groups) for s in specs] == [(2, 4, 2, 2), (1, 2, 1, 1), (1, 0, 1, 1)]
    assert [new[i].bias is not None for i in (1, 2, 3)] == [True, False, True]
    assert not new[1].bias.any()
    assert [new[i].training for i in (1, 2, 3)] == [False, True, True]
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    x = torch.randn(2, 3, 15, 14).bfloat16()
    assert new(x).shape == model(x).shape  # a Sequential also runs the warehouses, which let everything pass


def test_convnexts_linear_layers_share_too():
    new = swapped(small("convnext_tiny"))
    block = new.stages[1].blocks[1]
    assert isinstance(block.conv_dw, KWConv2d)
    assert isinstance(block.mlp.fc1, KWLinear)
    assert block.mlp.fc1.warehouse is block.mlp.fc2.warehouse is new.stages[1].blocks[0].mlp.fc1.warehouse
    assert isinstance(new.head.fc, nn.Linear)


def test_a_seed_gives_the_same_weights():
    model = small("resnet18")
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(swapped(model, 2).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_annealing_finds_every_attention():
    new = swapped(small("mobilenetv2_035"), "1/2")
    annealing = Annealing(new, steps_per_epoch=2)
    annealing.step()
    attentions = [module for module in new.modules() if isinstance(module, ContrastingAttention)]
    assert len(attentions) == sum(len(report.layers) for report in new.warehouse_report)
    assert {round(module.temperature.item(), 6) for module in attentions} == {round(1 - 1 / 30, 6)}


def test_a_basis_is_for_bottlenecks_below_one():
    assert any(isinstance(module, NonLocalRows) for module in swapped(on_meta("resnet50"), "1/2").modules())
    for name, ratio in (("resnet50", 1), ("resnet18", "1/2")):
        assert not any(isinstance(module, NonLocalRows) for module in swapped(on_meta(name), ratio).modules())


def test_reports():
    new = swapped(on_meta("convnext_tiny"))
    changes = {change.name: change for change in new.swap_report}
    convs = {name for name, layer in layers_of(on_meta("convnext_tiny")) if isinstance(layer, nn.Conv2d)}
    assert convs <= set(changes)
    assert "head.fc" not in changes
    linear = changes["stages.0.blocks.0.mlp.fc1"]
    assert (linear.before, linear.after) == ("Linear", "kw(96, 384, 1x1) of stage0_pw")
    warnings = {report.name: report.warning for report in new.warehouse_report}
    assert "4,956,642 parameters attend to 169,344 in 441 cells of 384 x 1" in warnings["stage2_dw"]
    assert warnings["stage2_pw"] == ""
    static = {change.name: change for change in swapped(on_meta("resnet50")).swap_report}["layer1.0.conv1"]
    assert not static.changed
    assert static.reason == f"static in {PAPER}"


@pytest.mark.parametrize("ratio", [1.5, 0.3, "3/4", "half", 0])
def test_ratios_that_cannot_be_are_refused_before_anything_is_built(ratio):
    with pytest.raises(Unsupported, match="ratio"):
        plan(on_meta("resnet18"), ratio)


def test_what_does_not_come_out_even_is_refused_before_anything_is_built():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 3, stride=2), nn.Conv2d(5, 5, 3))
    chosen = plan(model, "1/2", ["1", "3"])
    assert chosen.warehouses == {"stage0": ["1"], "stage1": ["3"]}
    state = torch.get_rng_state()
    with pytest.raises(Unsupported, match="warehouse stage1: cells of 2 channels do not fill 5 outputs"):
        swap_in_warehouses(model, chosen)
    assert torch.equal(torch.get_rng_state(), state)


def test_attentions_that_would_fill_the_memory_are_refused():
    with torch.device("meta"):
        model = build("tv_googlenet")
    with pytest.raises(Unsupported, match="43228 cells of 8 x 8") as refusal:
        swapped(model)
    assert "where" in refusal.value.remedy


def test_models_that_have_no_layer_for_it():
    with pytest.raises(HarnessError, match="no layer of this VisionTransformer"):
        plan(on_meta("vit_tiny_patch16_224"))
    with pytest.raises(HarnessError, match="'fc' is no convolution"):
        plan(on_meta("resnet18"), 1, ["fc"])
    with pytest.raises(Unsupported, match="layer 1: its padding is circular"):
        plan(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), 1, ["1"])
    new = swapped(on_meta("resnet18"))
    with pytest.raises(Unsupported, match="warehouses already"):
        swap_in_warehouses(new, plan(on_meta("resnet18")))


def test_blocks_inside_a_model_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), blocks.create("repvgg", 4, 4), nn.Conv2d(4, 4, 3))
    assert dict(plan(model).layers) == {"0": STATIC, "2": "stage0"}
