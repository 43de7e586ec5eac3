"""What whole networks of ODConv, DY-Conv and CondConv cost: the exact totals of the reference.

A network is timm's, on the meta device; every convolution that is dynamic in the original counts as a block without
its batch norm, because the network has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import timm
import torch
from timm.layers import CondConv2d
from timm.models._efficientnet_blocks import CondConvResidual
from torch import nn

from harness import blocks


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def built(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def as_block(conv: nn.Conv2d, name: str, **options) -> int:
    """Parameters of the block that takes this convolution's place, without its batch norm."""
    with torch.device("meta"):
        block = blocks.create(
            name, conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.groups, **options
        )
    return size(block) - size(block.bn)


def dropped_in(net: nn.Module, dynamic: Iterable[str], name: str, **options) -> int:
    total, modules = size(net), dict(net.named_modules())
    for path in dynamic:
        total += as_block(modules[path], name, **options) - size(modules[path])
    return total


def convolutions(net: nn.Module, keep: Callable[[str], bool]) -> list[str]:
    return [path for path, module in net.named_modules() if isinstance(module, nn.Conv2d) and keep(path)]


ODCONV = {
    ("resnet18", 1): 11_943_944,
    ("resnet18", 4): 44_901_640,
    ("resnet50", 1): 28_635_112,
    ("resnet50", 4): 90_670_888,
    ("resnet101", 1): 50_818_769,
    ("resnet101", 2): 90_441_623,
    ("mobilenetv2_100", 1): 4_940_185,
    ("mobilenetv2_100", 4): 11_512_149,
    ("mobilenetv2_075", 1): 3_507_113,
    ("mobilenetv2_075", 4): 7_496_013,
    ("mobilenetv2_050", 1): 2_425_537,
    ("mobilenetv2_050", 4): 4_435_501,
}


@pytest.mark.parametrize(("net", "kernels"), ODCONV)
def test_odconv_networks(net, kernels):
    """ResNets: stem, shortcuts and classifier static. MobileNetV2: stem and classifier; the last 1x1 is dynamic."""
    model = built(net)
    paths = convolutions(model, lambda path: path not in ("conv1", "conv_stem") and "downsample" not in path)
    assert dropped_in(model, paths, "odconv", kernels=kernels) == ODCONV[net, kernels]


@pytest.mark.parametrize(("net", "total"), [("resnet18", 45_475_008), ("resnet50", 100_895_176)])
def test_dyconv_networks(net, total):
    """Shortcuts are dynamic too, the stem is not."""
    model = built(net)
    assert dropped_in(model, convolutions(model, lambda path: path != "conv1"), "dyconv") == total


CONDCONV = {
    "tf_efficientnet_cc_b0_4e": (4, 13_314_116),
    "tf_efficientnet_cc_b0_8e": (8, 24_013_284),
    "tf_efficientnet_cc_b1_8e": (8, 39_715_968),
}


@pytest.mark.parametrize("net", CONDCONV)
def test_condconv_networks(net):
    """timm routes once for the three convolutions of a block: there the first one's routing counts, no other."""
    model, (experts, total) = built(net), CONDCONV[net]
    counted = size(model)
    residuals = [module for module in model.modules() if isinstance(module, CondConvResidual)]
    for residual in residuals:
        layers = [module for module in residual.modules() if isinstance(module, CondConv2d)]
        assert len(layers) == 3
        counted -= size(residual.routing_fn) + sum(size(layer) for layer in layers)
        for index, layer in enumerate(layers):
            routing = (layer.in_channels + 1) * experts if index else 0
            counted += as_block(layer, "condconv", experts=experts) - routing
    assert residuals
    assert counted == total
