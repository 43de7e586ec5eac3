"""The harness's own networks are the published ones, and torchvision's are there beside timm's."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
import torch
import torchvision
from metric_cells import both_params, count, net
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torchvision.models.resnet import BasicBlock

from harness import indexing
from harness.errors import HarnessError
from harness.measuring.subject import Subject
from harness.memory import build_on_meta
from harness.models import build, fuse, swap
from harness.models.nets import backbones
from harness.models.nets.diracnet import DiracSlot
from harness.models.nets.plain_vgg import SIZES, ConvSlot
from harness.models.nets.sesr import SESRSlot
from harness.models.nets.wide_resnet import WideResNet18
from harness.records import Variant


@cache
def on_meta(name):
    return build_on_meta(lambda: build(name))


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def batch_norm(x, norm):
    """In eval mode, from the equation."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


# -- plain ------------------------------------------------------------------------------------------------------------

REPOPTIMIZER = {"plain_b1": 51_841_832, "plain_b2": 80_330_536, "plain_l1": 76_037_928, "plain_l2": 118_132_776}
"""The networks that RepOptimizer trains as they are, batch norms included: blocks-more, section 12."""


@pytest.mark.parametrize("name", REPOPTIMIZER)
def test_plain_nets_are_those_of_repoptimizer(name):
    assert size_of(on_meta(name)) == REPOPTIMIZER[name]


MILLIONS = {
    # of parameters, deployed, cut off after two decimals: tables 4 and 5 of arXiv:2101.03697
    "plain_b1": 51.82, "plain_b1g2": 41.36, "plain_b1g4": 36.12, "plain_b2": 80.31, "plain_b2g4": 55.77,
    "plain_b3": 110.96, "plain_b3g4": 75.62,
}  # fmt: skip


@pytest.mark.parametrize("name", MILLIONS)
def test_plain_nets_have_deployed_the_parameters_that_the_paper_prints(name):
    model = on_meta(name)
    # a batch norm has one parameter per channel more than the bias that it becomes
    norms = sum(module.num_features for module in model.modules() if isinstance(module, BatchNorm))
    assert math.floor((size_of(model) - norms) / 1e4) / 100 == MILLIONS[name]


def test_the_published_deployed_size_of_b1g4_to_the_thousand():
    assert round(both_params(net("plain_b1g4", where=Variant("repvgg-paper")))["fused"] / 1e6, 3) == 36.125


GMACS = {"plain_b1g2": (8.8, 4.6), "plain_b2g4": (11.3, 6.0), "plain_b3": (26.2, 12.9)}
"""Theoretical FLOPs and Winograd multiplications, ibid."""


@pytest.mark.parametrize("name", GMACS)
def test_plain_nets_multiply_as_often_as_the_paper_prints(name):
    got = count("macs", net(name, where=Variant("repvgg-paper"), image_size=224), "fused")
    assert (round(got["macs"] / 1e9, 1), round(got["winograd_muls"] / 1e9, 1)) == GMACS[name]


def shapes(convs):
    return [(conv.in_channels, conv.out_channels, conv.stride[0], conv.groups) for conv in convs]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("a2", "a2"), ("b1g4", "b1g4"), ("b2g4", "b2g4"), ("l2", "d2se")],
)
def test_every_layer_of_a_plain_net_is_the_one_in_timm(ours, theirs):
    repvgg = on_meta(f"repvgg_{theirs}")
    wanted = shapes(module.conv_kxk.conv for module in repvgg.modules() if hasattr(module, "conv_kxk"))
    got = shapes(module for module in on_meta(f"plain_{ours}").modules() if isinstance(module, nn.Conv2d))
    assert got == wanted


def test_groups_stand_in_every_second_layer_up_to_the_27th():
    for name in ("plain_a0g2", "plain_b0g2"):
        convs = [module for module in on_meta(name).modules() if isinstance(module, nn.Conv2d)]
        assert [i for i, conv in enumerate(convs) if conv.groups == 2] == list(range(2, min(len(convs), 27), 2))


def test_grouped_plain_nets_take_blocks():
    new = swap(build("plain_a0g4", num_classes=4), "repvgg", where="repvgg-paper")
    assert {module.spec.groups for module in new.modules() if hasattr(module, "spec")} == {1, 4}
    assert new(torch.randn(2, 3, 32, 32)).shape == (2, 4)


def test_sizes_are_named_as_in_the_papers():
    assert {"a0", "a1", "a2", "b0", "b1", "b2", "b3", "l1", "l2", "b1g2", "b3g4"} <= set(SIZES)
    assert "l1g4" not in SIZES


# -- wide -------------------------------------------------------------------------------------------------------------


def test_at_factor_one_the_wide_net_is_torchvisions_resnet18(lived_in):
    ours = lived_in(WideResNet18(1.0, num_classes=10)).double().eval()
    theirs = torchvision.models.resnet18(num_classes=10).double().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "factor"), [("wide_resnet18_x1_5", 1.5), ("wide_resnet18_x2", 2.0)])
def test_every_width_of_the_wide_nets_is_multiplied(name, factor):
    plain, wide = (
        {key: module for key, module in on_meta(which).named_modules() if isinstance(module, nn.Conv2d)}
        for which in ("tv_resnet18", name)
    )
    assert {key: conv.out_channels for key, conv in wide.items()} == {
        key: factor * conv.out_channels for key, conv in plain.items()
    }
    assert build_on_meta(lambda: build(name, num_classes=10)).fc.out_features == 10


# -- DiracNet ---------------------------------------------------------------------------------------------------------


def dirac_logits(model, x, groups):
    """Each layer relu, 3x3, bn; `groups` of (channels, layers), max-pool 2/2 between two of them."""
    slots = iter([module for module in model.layers if hasattr(module, "conv")])
    for i, (channels, layers) in enumerate(groups):
        x = F.max_pool2d(x, 2, stride=2) if i else x
        for slot in islice(slots, layers):
            x = batch_norm(F.conv2d(x.relu(), slot.conv.weight, padding=1), slot.norm)
        assert x.shape[1] == channels
    assert next(slots, None) is None
    linear = model.head[-1]
    return x.relu().mean((2, 3)) @ linear.weight.T + linear.bias


def test_diracnet_18_computes_what_the_reference_describes(lived_in):
    ours = lived_in(build("diracnet18", num_classes=5)).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    stem = batch_norm(F.conv2d(x, ours.stem.conv.weight, stride=2, padding=3), ours.stem.norm)
    stem = F.max_pool2d(stem, 3, stride=2, padding=1)
    wanted = dirac_logits(ours, stem, [(64, 4), (128, 4), (256, 4), (512, 4)])
    torch.testing.assert_close(ours(x), wanted, rtol=1e-12, atol=1e-12)


DIRACNETS = {
    # classes, learnable parameters as printed by the authors, and folded as counted for blocks-more, section 2
    "diracnet18": (1000, 11_523_368, 11_511_784), "diracnet34": (1000, 21_638_952, 21_616_232),
    "diracnet34_2_cifar": (10, 1_854_378, None), "diracnet28_10_cifar": (10, 36_450_090, None),
}  # fmt: skip


@pytest.mark.parametrize("name", DIRACNETS)
def test_diracnets_have_the_published_sizes(name):
    classes, learnable, folded = DIRACNETS[name]
    model = swap(build_on_meta(lambda: build(name, num_classes=classes)), "dirac")
    assert size_of(model) == learnable
    assert folded in (None, size_of(fuse(model)))


def test_a_diracnet_folds_into_plain_convolutions(lived_in):
    model = lived_in(swap(build("diracnet34_2_cifar", num_classes=10), "dirac")).double().eval()
    deployed = fuse(model)
    assert {type(module) for module in deployed.modules() if list(module.parameters(recurse=False))} == {
        nn.Conv2d, nn.Linear
    }  # fmt: skip
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)


# -- checkpointing ----------------------------------------------------------------------------------------------------


SMALL = {
    "plain": lambda: build("plain_a0g4", num_classes=4), "wide": lambda: WideResNet18(0.25, num_classes=4),
    "dirac": lambda: build("diracnet34_2_cifar", num_classes=4), "sesr": lambda: build("sesr_m3_x2"),
}  # fmt: skip


LAYERS = (ConvSlot, BasicBlock, DiracSlot, SESRSlot)


@pytest.mark.parametrize("kind", SMALL)
def test_checkpointing_computes_layers_again_one_by_one_and_the_same_gradients(kind):
    model = SMALL[kind]().train()
    ran = []
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm):
            module.momentum = 0.0  # or a layer that runs twice would count twice
        if isinstance(module, LAYERS):
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    x = torch.randn(backbones.input_shape(model, 2, 32))
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(x).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        backbones.checkpoint_activations(model)
    once = list(dict.fromkeys(ran))
    assert ran == once + once + [name for name in reversed(once) if name != "stem"]
    torch.testing.assert_close(gradients[0], gradients[1])


# -- torchvision ------------------------------------------------------------------------------------------------------

CLASSIFIERS = torchvision.models.list_models(module=torchvision.models, exclude=["vit_*", "swin_*"])
AUXILIARY = {"inception_v3": 3_326_696}
"""Parameters of what stays off, which torchvision counts in."""


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_model_of_torchvision_has_the_parameters_that_it_says(name):
    said = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert size_of(on_meta(f"tv_{name}")) == said - AUXILIARY.get(name, 0)


def test_names_of_timm_stay_timms_and_all_others_are_torchvisions():
    found = {name: backbones.source(name) for name in ("vgg16", "resnet18", "tv_resnet18", "tv_resnet34", "alexnet")}
    assert found == {
        "vgg16": "timm", "resnet18": "timm", "tv_resnet18": "torchvision", "tv_resnet34": "torchvision",
        "alexnet": "torchvision",
    }  # fmt: skip
    assert type(on_meta("resnet18")).__module__.startswith("timm.")
    for name in ("tv_resnet18", "tv_resnet34", "alexnet"):
        assert type(on_meta(name)).__module__.startswith("torchvision.")
    assert "tv_layer" not in backbones.names()


def test_quantised_and_detecting_models_are_no_backbones():
    assert not {"quantized_resnet18", "tv_quantized_resnet18", "tv_fasterrcnn_resnet50_fpn", "tv_r3d_18"} & set(
        backbones.names()
    )


@pytest.mark.parametrize("name", ["tv_regnet_y_400mf", "tv_maxvit_t"])
def test_nothing_of_a_model_of_torchvision_on_meta_has_storage(name):
    assert all(tensor.is_meta for tensor in on_meta(name).state_dict().values())


@pytest.mark.parametrize("name", ["googlenet", "tv_inception_v3"])
def test_networks_with_auxiliary_classifiers_give_one_output_in_training(name):
    model = on_meta(name).train()
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "tv_resnet18"])
def test_a_model_of_torchvision_has_as_many_classes_as_asked_and_no_downloaded_weights(name, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    assert build(name, num_classes=3).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(HarnessError, match="not downloaded"):
        build(name, weights="DEFAULT")


def test_a_convolution_that_classifies_is_no_layer_for_a_block():
    new = swap(build("squeezenet1_0", num_classes=5), "conv", where={"kernel_size": [1, 3]})
    assert isinstance(new.classifier[1], nn.Conv2d)
    assert new(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["squeezenet1_0", "shufflenet_v2_x0_5", "mnasnet0_5", "tv_regnet_x_400mf"])
def test_networks_of_torchvision_take_blocks_and_fold(name, lived_in):
    model = lived_in(swap(build(name, num_classes=5), "repvgg")).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    wanted = model(x)
    assert wanted.std() > 0
    torch.testing.assert_close(fuse(model)(x), wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


# -- the subject ------------------------------------------------------------------------------------------------------


def test_classes_make_logits_and_cross_entropy():
    subject = Subject(net("plain_a0", image_size=32))
    assert subject.has_classes
    assert subject.input_shape() == (2, 3, 32, 32)
    logits = torch.randn(2, 1000)
    assert torch.equal(subject.loss(logits, subject.target()), F.cross_entropy(logits, subject.target()))
    assert not Subject(replace(subject.cell, backbone=Variant("layer"))).has_classes


# -- the catalog ------------------------------------------------------------------------------------------------------


def test_only_the_backbones_that_fit_are_built_again(monkeypatch):
    monkeypatch.setattr(backbones, "names", lambda: ["layer", "new", "old", "tv_new", "unfit"])
    monkeypatch.setattr(indexing, "backbone_entry", lambda name: None if name == "unfit" else {"built": name})
    listed = {"old": {"kept": 1}, "tv_new": {"kept": 2}, "gone": {"kept": 3}}
    found = indexing.backbone_index(["*new", "unfit"], listed)
    assert list(found) == ["old", "tv_new", "layer", "new"]  # those that were listed keep their places
    assert found["new"] == {"built": "new"}
    assert found["old"] == {"kept": 1}
    assert found["tv_new"] == {"built": "tv_new"}
