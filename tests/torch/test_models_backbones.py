"""Backbones by name: what they are, what they take, and what they offer a block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness import catalog
from harness.errors import HarnessError, UnknownName
from harness.memory import build_on_meta
from harness.models import build, input_shape, names
from harness.models.nets.own import OwnNet, register


@pytest.mark.parametrize(
    ("name", "kernels", "native"),
    [
        ("resnet18", {"1": 3, "3": 16}, False),
        ("resnet50", {"1": 36, "3": 16}, False),
        ("mobilenetv2_100", {"1": 34, "3": 17}, False),
        ("convnext_tiny", {"7": 18}, False),
        ("plain_a0", {"3": 21}, False),
        ("repvgg_a0", {}, True),
        ("layer", {"3": 1}, False),
    ],
)
def test_a_backbone_tells_what_it_offers_a_block(name, kernels, native, described):
    found = described(name)
    assert found["kernels"] == kernels
    assert found["native"] is native
    assert found["source"] == ("harness" if name in ("plain_a0", "layer") else "timm")


def test_plain_nets_have_the_published_sizes(described):
    # the paper prints deploy sizes of 1000-class nets; a batch norm has one parameter per channel more than a bias
    millions = {name: described(name)["params"] / 1e6 for name in ("plain_a0", "plain_a1", "plain_b0")}
    assert millions == pytest.approx({"plain_a0": 8.31, "plain_a1": 12.79, "plain_b0": 14.34}, abs=0.01)


def test_plain_nets_give_logits():
    model = build("plain_a0", num_classes=7)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_a_layer_is_one_convolution_of_the_asked_size():
    model = build("layer", c_in=8, c_out=16, kernel_size=5, stride=2, groups=4, dilation=2)
    assert model(torch.zeros(2, 8, 20, 20)).shape == (2, 16, 10, 10)
    assert input_shape(model, batch=3) == (3, 8, 56, 56)


def test_inputs_have_the_size_the_model_wants_unless_told():
    resnet = build_on_meta(lambda: build("resnet18"))
    assert input_shape(resnet) == (1, 3, 224, 224)
    assert input_shape(resnet, 8, 96) == (8, 3, 96, 96)


def test_no_residual_branch_starts_dead():
    model = build("resnet18", num_classes=10)
    assert all(torch.all(m.weight == 1) for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_same_seed_builds_the_same_model():
    def one():
        torch.manual_seed(1)
        return build("resnet18", num_classes=10).state_dict()

    first, second = one(), one()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        ("resnet81", {}, UnknownName, "resnet"),
        ("plain_a7", {}, UnknownName, "plain_a0"),
        ("resnext50", {}, UnknownName, "resnext50_32x4d"),
        ("mobilenetv1", {}, UnknownName, "mobilenetv1_100"),
        ("hf-hub:timm/resnet18", {}, UnknownName, "no backbone"),
        ("resnet18", {"pretrained": True}, HarnessError, "not downloaded"),
        ("resnet18", {"flavour": 1}, HarnessError, "flavour"),
        ("layer", {"width": 1}, HarnessError, "width"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_remedy(name, options, error, says):
    with pytest.raises(error, match=says):
        build(name, **options)


def test_every_name_is_listed_once():
    assert {"layer", "plain_b0", "resnet18"} <= set(names())
    assert len(names()) == len(set(names()))


def test_a_net_that_declares_too_little_is_told_what_is_missing():
    class Stemless(OwnNet):
        pass

    class Unclassified(OwnNet):
        stem_names = ()

    with pytest.raises(TypeError, match="Stemless does not say its stem"):
        register("stemless", Stemless)
    with pytest.raises(TypeError, match="has_classes = False"):
        register("unclassified", Unclassified)
    assert not {"stemless", "unclassified"} & set(names())


def test_planning_knows_the_options_and_sizes_of_a_single_layer():
    layer = catalog.layers()["layer"]
    assert {name: (option["minimum"], option["default"]) for name, option in layer["options"].items()} == {
        "c_in": (1, 64), "c_out": (1, 64), "stride": (1, 1), "groups": (1, 1), "dilation": (1, 1), "padding": (0, None),
    }  # fmt: skip
    assert (layer["batch_size"], layer["image_size"], layer["kernel_size"]) == (8, 56, 3)
