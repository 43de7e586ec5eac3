"""Whole nets put together from the blocks have the reference's parameters, trained and fused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness import blocks
from harness.blocks import FusableBlock


def count(net: nn.Module, fused: bool) -> int:
    """Parameters of a net, its blocks as one convolution each where that is wanted."""
    total = sum(parameter.numel() for parameter in net.parameters())
    if fused:
        for block in (module for module in net.modules() if isinstance(module, FusableBlock)):
            total += sum(p.numel() for p in block.fused().parameters()) - sum(p.numel() for p in block.parameters())
    return total


def mobileone(multipliers: tuple[float, ...], branches: int, se: bool) -> nn.Sequential:
    """Stem of one branch; pairs of a depthwise and a 1x1 block; global average and classifier."""
    channels = min(64, int(64 * multipliers[0]))
    layers: list[nn.Module] = [blocks.create("mobileone", 3, channels, 3, 2, branches=1)]
    for stage, (pairs, multiplier) in enumerate(zip((2, 8, 10, 1), multipliers, strict=True)):
        width = int(64 * 2**stage * multiplier)
        for pair in range(pairs):
            options = {"branches": branches, "se": se and (stage == 3 or (stage == 2 and pair >= 5))}
            layers.append(blocks.create("mobileone", channels, channels, 3, 1 if pair else 2, channels, **options))
            layers.append(blocks.create("mobileone", channels, width, 1, **options))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


@pytest.mark.parametrize(
    ("multipliers", "branches", "se", "train", "deploy"),
    [
        ((0.75, 1, 1, 2), 4, False, 5_293_272, 2_078_504),
        ((1.5, 1.5, 2, 2.5), 1, False, 4_825_192, 4_764_840),
        ((1.5, 2, 2.5, 4), 1, False, 7_884_648, 7_808_168),
        ((2, 2.5, 3, 4), 1, False, 10_170_600, 10_078_312),
        ((3, 3.5, 3.5, 4), 1, True, 14_951_248, 14_838_352),
    ],
    ids=["S0", "S1", "S2", "S3", "S4"],
)
def test_mobileones_have_the_references_parameters(multipliers, branches, se, train, deploy):
    with torch.device("meta"):
        net = mobileone(multipliers, branches, se)
    assert (count(net, fused=False), count(net, fused=True)) == (train, deploy)


def conv_bn(c_in: int, c_out: int, k: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
    """A plain one, which keeps its norm: the authors' merging takes the large kernels only."""
    return blocks.create("conv", c_in, c_out, k, stride, groups).branch


def replknet_31b() -> nn.Sequential:
    layers = [conv_bn(3, 128, 3, 2), conv_bn(128, 128, 3, 1, 128), conv_bn(128, 128), conv_bn(128, 128, 3, 2, 128)]
    for stage, (size, depth) in enumerate(zip((31, 29, 27, 13), (2, 2, 18, 2), strict=True)):
        c = 128 * 2**stage
        if stage:
            layers += [conv_bn(c // 2, c), conv_bn(c, c, 3, 2, c)]
        for _ in range(depth):
            layers += [nn.BatchNorm2d(c), conv_bn(c, c), blocks.create("replk", c, c, size, 1, c), conv_bn(c, c)]
            layers += [nn.BatchNorm2d(c), conv_bn(c, 4 * c), conv_bn(4 * c, c)]
    return nn.Sequential(*layers, nn.BatchNorm2d(1024), nn.Linear(1024, 1000))


def test_replknet_31b_has_the_references_parameters():
    with torch.device("meta"):
        net = replknet_31b()
    assert (count(net, fused=False), count(net, fused=True)) == (79_864_168, 79_527_272)


def unireplknet(depths: tuple[int, ...], width: int, every: int) -> nn.ModuleList:
    """`every`: one block of the third stage in so many is large."""
    layers: list[nn.Module] = []
    for stage, depth in enumerate(depths):
        c = width * 2**stage
        down = [(3, c // 2), (c // 2, c)] if stage == 0 else [(c // 2, c)]
        for c_in, c_out in down:
            layers += [nn.Conv2d(c_in, c_out, 3, 2, 1), nn.LayerNorm(c_out)]
        for number in range(depth):
            large = stage in (1, 3) or (stage == 2 and number % every == 0)
            dw = blocks.create("unirep", c, c, 13, 1, c) if large else nn.Conv2d(c, c, 3, 1, 1, groups=c, bias=False)
            se = [nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)]
            grn_and_scale = nn.ParameterList([torch.zeros(4 * c), torch.zeros(4 * c), torch.zeros(c)])
            mlp = [nn.Linear(c, 4 * c), nn.Linear(4 * c, c, bias=False)]
            layers += [dw, nn.BatchNorm2d(c), *se, *mlp, grn_and_scale, nn.BatchNorm2d(c)]
    return nn.ModuleList([*layers, nn.LayerNorm(c), nn.Linear(c, 1000)])


def beyond_the_blocks(depths: tuple[int, ...], width: int, every: int) -> int:
    """Parameters that the authors' conversion saves beside the blocks'.

    Each block: the batch norm behind the depthwise convolution (2C, a plain one gains a bias C), GRN's beta (4C), and
    the last batch norm (2C) and layer scale (C) for a bias (C).
    """
    saved = 0
    for stage, depth in enumerate(depths):
        plain = [depth, 0, depth - math.ceil(depth / every), 0][stage]
        saved += width * 2**stage * ((2 + 4 + 2 + 1 - 1) * depth - plain)
    return saved


@pytest.mark.parametrize(
    ("depths", "width", "every", "train", "deploy"),
    [
        ((2, 2, 6, 2), 40, 1, 4_649_060, 4_437_300),
        ((2, 2, 6, 2), 48, 1, 6_489_328, 6_235_216),
        ((2, 2, 6, 2), 64, 1, 11_080_520, 10_741_704),
        ((2, 2, 8, 2), 80, 1, 18_818_880, 18_318_560),
        ((3, 3, 18, 3), 80, 2, 31_693_420, 31_037_980),
        ((3, 3, 27, 3), 96, 3, 56_456_704, 55_645_984),
    ],
    ids=["A", "F", "P", "N", "T", "S"],
)
def test_unireplknets_have_the_references_parameters(depths, width, every, train, deploy):
    with torch.device("meta"):
        net = unireplknet(depths, width, every)
    assert count(net, fused=False) == train
    assert count(net, fused=True) - beyond_the_blocks(depths, width, every) == deploy
