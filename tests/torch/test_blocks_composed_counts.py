"""What blocks without branch norms cost: the counts of the networks that they were published with."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness import blocks
from harness.blocks import Block


def size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def folded(modules: Iterable[Block]) -> int:
    return sum(size(block.fused()) for block in modules)


ECBSR = {
    (4, 8, 2): (10_804, 2_708),
    (4, 8, 4): (16_624, 3_584),
    (4, 16, 2): (39_956, 10_020),
    (4, 16, 4): (47_120, 11_760),
    (10, 32, 2): (353_620, 93_956),
    (10, 32, 4): (363_472, 97_424),
    (16, 64, 2): (2_190_932, 593_796),
    (16, 64, 4): (2_206_160, 600_720),
}


@pytest.mark.parametrize(("m", "c", "scale"), ECBSR)
def test_parameters_of_ecbsr(m, c, scale):
    with torch.device("meta"):
        made = [blocks.create("ecb", *ends) for ends in [(1, c), *[(c, c)] * m, (c, scale**2)]]
        train, deploy = ECBSR[m, c, scale]
        assert size(*made) + (m + 1) * c == train  # a slope for each channel behind each block but the last
        assert folded(made) == deploy


DIRACNETS = {
    # stem taps and channels, (inputs, outputs) of the layers, classes: trained, and folded where it is published
    "18": ((49, 64), [(64, 64, 4), (128, 64, 4), (256, 128, 4), (512, 256, 4)], 1000, 11_523_368, 11_511_784),
    "34": ((49, 64), [(64, 64, 6), (128, 64, 8), (256, 128, 12), (512, 256, 6)], 1000, 21_638_952, 21_616_232),
    "34-2": ((9, 32), [(32, 32, 10), (64, 32, 10), (128, 64, 10)], 10, 1_854_378, None),
    "28-10": ((9, 160), [(160, 160, 8), (320, 160, 8), (640, 320, 8)], 10, 36_450_090, None),
}


@pytest.mark.parametrize("net", DIRACNETS)
def test_parameters_of_diracnets(net):
    (taps, stem), groups, classes, trained, deployed = DIRACNETS[net]
    with torch.device("meta"):
        made = [blocks.create("dirac", c_in if i == 0 else c, c) for c, c_in, n in groups for i in range(n)]
        linear = groups[-1][0] * classes + classes
        assert size(*made) + 3 * taps * stem + 2 * stem + linear == trained
        if deployed is not None:
            assert folded(made) + 3 * taps * stem + stem + linear == deployed


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(
    ("c_in", "c_out", "k", "groups"), [(64, 128, 3, 1), (8, 16, 5, 4), (8, 8, 3, 8), (8, 12, 1, 4)]
)
def test_parameters_of_doconv(c_in, c_out, k, groups, multiplier):
    """What D costs: C * k^2 * s, s = multiplier * k^2; nothing at a 1x1."""
    outputs = multiplier * k * k if k > 1 else 1
    over = c_in * k * k * outputs if k > 1 else 0
    block = blocks.create("doconv", c_in, c_out, k, groups=groups, multiplier=multiplier)
    assert size(block) == c_out * c_in // groups * outputs + over + 2 * c_out
    assert size(block.fused()) == c_out * c_in // groups * k * k + c_out


class SmallNet(nn.Sequential):
    """Three convolutions with norm, ReLU and pooling, two linear layers; `conv` and `linear` name blocks, or nothing."""

    def __init__(self, k: int, conv: str | None, linear: str | None) -> None:
        padding = 3 if k == 7 else 0
        layers: list[nn.Module] = []
        for c_in, c_out in [(3, 8), (8, 16), (16, 32)]:
            if conv is None:
                layers += [nn.Conv2d(c_in, c_out, k, padding=padding), nn.BatchNorm2d(c_out)]
            else:
                layers += [blocks.create(conv, c_in, c_out, k, padding=padding, bias=True, expand_input=c_in > 3)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        first = 512 if k == 7 else 128
        middle = nn.Conv2d(first, 64, 1) if linear is None else blocks.create(linear, first, 64, 1)
        super().__init__(*layers, nn.Flatten(), nn.Unflatten(1, (first, 1, 1)), middle, nn.ReLU(), nn.Conv2d(64, 10, 1))


@pytest.mark.parametrize(
    ("k", "conv", "linear", "count"),
    [
        (3, None, None, 15_050),
        (3, None, "expand_fc", 220_618),
        (3, "expand_cl", None, 109_086),
        (3, "expand_cl", "expand_fc", 314_654),
        (7, None, None, 66_186),
        (7, None, "expand_fc", 1_624_970),
        (7, "expand_cl", None, 547_102),
        (7, "expand_cl", "expand_fc", 2_105_886),
        (7, "expand_ck", None, 186_982),
        (7, "expand_ck", "expand_fc", 1_745_766),
    ],
)
def test_parameters_of_smallnet(k, conv, linear, count):
    net = SmallNet(k, conv, linear)
    assert size(net) == count
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10, 1, 1)


@pytest.mark.parametrize(
    ("plain", "depthwise", "count"),
    [
        (4_231_976, [32, 64, 128, 128, 256, 256, *[512] * 6, 1024], 4_958_348),
        (3_504_872, [96, 144, 192, 576], 3_666_108),  # V2: of the depthwise layers, those with stride 2
    ],
    ids=["mobilenet", "mobilenet v2"],
)
def test_parameters_of_expanded_mobilenets(plain, depthwise, count):
    with torch.device("meta"):
        stem = blocks.create("expand_cl", 3, 32, norm=False)
        layers = [blocks.create("expand_cl", c, c, groups=c, norm=False) for c in depthwise]
    assert (
        plain + size(stem) - 3 * 32 * 9 + sum(size(layer) - 9 * c for layer, c in zip(layers, depthwise, strict=True))
        == count
    )


def sesr(m: int, f: int, scale: int, **options: int | str | bool) -> nn.Sequential:
    """The convolutions of a SESR net in a row: what lies between them has no parameters of this kind and no MACs."""
    ends = [(1, f, 5), *[(f, f, 3)] * m, (f, scale**2, 5)]
    return nn.Sequential(*(blocks.create("clb", *end, residual=0 < i <= m, **options) for i, end in enumerate(ends)))


@pytest.mark.parametrize(
    ("net", "x2", "x4"),
    [
        ((3, 16), 8_912, 13_712),
        ((5, 16), 13_520, 18_320),
        ((7, 16), 18_128, 22_928),
        ((11, 16), 27_344, 32_144),
        ((11, 32), 105_376, 114_976),
    ],
)
def test_parameters_of_sesr(net, x2, x4):
    m, f = net
    with torch.device("meta"):
        for scale, deployed in ((2, x2), (4, x4)):
            made = sesr(m, f, scale)
            assert folded(made) == deployed + (m + 1) * f + scale**2  # weights only are published
            for p in (64, 256):
                trained = p * (25 + f) + m * p * 10 * f + p * (25 * f + scale**2)
                assert size(sesr(m, f, scale, width=p, bias=False)) == trained
        assert size(sesr(5, 16, 2, bias=False)) == 318_720
        assert size(sesr(5, 16, 2)) + 5 * 16 == 320_692


def macs(net: nn.Module, batch: int) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.empty(batch, 1, 64, 64, device="meta"))
    return counter.get_total_flops() // 2


def test_the_collapse_of_sesr_costs_what_is_published():
    """M5, x2, batch 32 of 64x64 pixels: 41.77 G expanded, 1.84 G collapsed, of which the authors' collapse is 0.071 G."""
    with torch.device("meta"):
        expanded, delta, product = (
            sesr(5, 16, 2, **options) for options in ({"reparam": "offline"}, {"composition": "delta"}, {})
        )
    images = 32 * 64 * 64
    assert macs(expanded, 32) == images * 318_720 == 41_775_267_840
    ends = [(1, 16, 25), *[(16, 16, 9)] * 5, (16, 4, 25)]
    collapse = sum(c * taps * (taps * c * 256 + 256 * o) for c, o, taps in ends)
    carried = sum(256 * o for _, o, _ in ends)  # F_2 b_1
    assert macs(delta, 32) == images * 13_520 + collapse + carried
    assert (f"{macs(expanded, 32) / 1e9:.3f}", f"{macs(delta, 32) / 1e9:.3f}") == ("41.775", "1.843")
    assert 3 * macs(delta, 2) - 2 * macs(delta, 3) == collapse + carried  # as metric macs_kernel tells it apart
    assert 3 * macs(product, 2) - 2 * macs(product, 3) == sum(c * taps * 256 * o for c, o, taps in ends) + carried
