"""The structural blocks beside torchvision's own modules and nets, and counted as the reference counts them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
import torchvision
from structural_checks import count, norms_of, relative
from timm.models import create_model
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.densenet import _DenseBlock, _DenseLayer, _Transition
from torchvision.models.googlenet import Inception
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from harness import blocks
from harness.blocks import BLOCKS, Block

SEVERAL_LAYERS = (
    "bottleneck", "dense", "depthwise_separable", "inception", "inverted_residual", "residual", "stacked_3x3",
)  # fmt: skip
"""Blocks that are more than one convolution."""


def weights(module: nn.Module) -> int:
    """Parameters of the convolutions alone."""
    return sum(count(conv) for conv in module.modules() if isinstance(conv, nn.Conv2d))


def copied(theirs: nn.Module, ours: nn.Module) -> None:
    """Parameters and statistics, in the order in which both register them."""
    for old, new in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
        assert old.shape == new.shape
        new.copy_(old)
    for old_norm, new_norm in zip(norms_of(theirs), norms_of(ours), strict=True):
        new_norm.eps = old_norm.eps


def against(theirs: nn.Module, ours: nn.Module, x: Tensor, last: nn.Module | None = None) -> None:
    """Both with the same state, in evaluation and then in training: outputs and running statistics."""
    with torch.no_grad():
        copied(theirs, ours)
        for training in (False, True):
            theirs.train(training), ours.train(training)
            wanted, y = theirs(x), ours(x)
            assert y.min() < 0 < y.max()  # no activation behind it
            assert relative(y if last is None else last(y), wanted) <= 1e-12
    for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("c_in", "c_out", "stride", "expand"), [(8, 8, 1, 6), (8, 12, 2, 6), (8, 8, 2, 4), (6, 6, 1, 1)]
)
def test_inverted_residual_is_torchvisions(c_in, c_out, stride, expand, lived_in):
    theirs = lived_in(InvertedResidual(c_in, c_out, stride, expand)).double()
    ours = blocks.create("inverted_residual", c_in, c_out, stride=stride, expand=expand).double()
    against(theirs, ours, torch.randn(2, c_in, 9, 8, dtype=torch.float64))


def projected(c_in: int, c_out: int, stride: int) -> nn.Module | None:
    if (c_in, stride) == (c_out, 1):
        return None
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


@pytest.mark.parametrize(("c_in", "c_out", "stride"), [(8, 8, 1), (8, 16, 2), (8, 16, 1), (8, 8, 2)])
def test_residual_is_torchvisions_basic_block_up_to_its_last_relu(c_in, c_out, stride, lived_in):
    theirs = lived_in(BasicBlock(c_in, c_out, stride, projected(c_in, c_out, stride))).double()
    ours = blocks.create("residual", c_in, c_out, stride=stride).double()
    against(theirs, ours, torch.randn(2, c_in, 9, 8, dtype=torch.float64), nn.ReLU())


def test_residual_trains_as_rm_does(lived_in):
    rm = lived_in(blocks.create("rm", 6, 8, 5, 2)).double()
    against(rm, blocks.create("residual", 6, 8, 5, 2).double(), torch.randn(2, 6, 9, 8, dtype=torch.float64))


@pytest.mark.parametrize("dilation", [1, 2])
def test_bottleneck_is_torchvisions_up_to_its_last_relu(dilation, lived_in):
    theirs = lived_in(Bottleneck(16, 4, dilation=dilation)).double()
    ours = blocks.create("bottleneck", 16, 16, dilation=dilation, residual=True).double()
    against(theirs, ours, torch.randn(2, 16, 9, 8, dtype=torch.float64), nn.ReLU())


def test_a_strided_bottleneck_is_torchvisions_without_the_shortcut(lived_in):
    theirs = lived_in(Bottleneck(8, 4, 2, Zero())).double()
    ours = blocks.create("bottleneck", 8, 16, stride=2).double()
    against(theirs, ours, torch.randn(2, 8, 9, 8, dtype=torch.float64), nn.ReLU())


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1)


def test_inception_is_torchvisions_up_to_its_last_relus(lived_in):
    theirs = lived_in(Inception(12, 16, 24, 32, 4, 8, 8)).double()
    ours = blocks.create("inception", 12, 64, five=False).double()
    against(theirs, ours, torch.randn(2, 12, 9, 8, dtype=torch.float64), nn.ReLU())


def test_inceptions_true_5x5_reads_what_a_3x3_in_its_middle_does_not(lived_in):
    """The same module, its 5x5 branch with a 3x3's weights around which there are zeros."""
    small = lived_in(blocks.create("inception", 8, 16, five=False)).double().eval()
    large = blocks.create("inception", 8, 16).double().eval()
    state = small.state_dict()
    state["branches.2.2.conv.weight"] = F.pad(state["branches.2.2.conv.weight"], [1] * 4)
    large.load_state_dict(state)
    x = torch.randn(2, 8, 9, 8, dtype=torch.float64)
    assert relative(large(x), small(x)) <= 1e-12
    nn.init.ones_(large.branches[2][2].conv.weight)
    changed = (large(x) - small(x)).abs().amax((0, 2, 3)) > 1e-6
    assert changed.tolist() == [False] * 12 + [True] * 2 + [False] * 2


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_dense_is_torchvisions_dense_block_and_transition(layers, lived_in):
    """Its transition halves an even map; the block's own batch norm, the next layer's first there, is left out."""
    ours = blocks.create("dense", 12, 20, stride=2, layers=layers, growth=16).double()
    width = 12 + 16 * layers
    theirs = lived_in(nn.Sequential(_DenseBlock(layers, 12, 4, 16, 0.0), _Transition(width, 20))).double()
    ours.transition[-1].bn = nn.Identity()
    against(theirs, ours, torch.randn(2, 12, 8, 6, dtype=torch.float64))


def test_a_dense_layer_is_torchvisions(lived_in):
    theirs = lived_in(_DenseLayer(64, 32, 4, 0.0)).double()
    ours = blocks.create("dense", 64, 64).double().layers[0]
    against(theirs, ours, torch.randn(2, 64, 5, 6, dtype=torch.float64))
    assert count(ours) == 45_440


def test_resnet18_and_mobilenet_v2_are_nets_of_these_blocks(lived_in):
    """Every unit replaced, its state copied: the same outputs, and the published totals."""
    for build, unit, total in (
        (torchvision.models.resnet18, BasicBlock, 11_689_512),
        (torchvision.models.mobilenet_v2, InvertedResidual, 3_504_872),
    ):
        net = lived_in(build(weights=None)).double().eval()
        x = torch.randn(1, 3, 40, 33, dtype=torch.float64)
        with torch.no_grad():
            wanted = net(x)
            for parent, key, old in list(units(net, unit)):
                new = replacement(old).double().eval()
                copied(old, new)
                parent.add_module(key, nn.Sequential(new, nn.ReLU()) if unit is BasicBlock else new)
            assert not list(units(net, unit))
            assert relative(net(x), wanted) <= 1e-11
        assert count(net) == total


def units(net: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in net.modules():
        for key, child in parent.named_children():
            if isinstance(child, kind):
                yield parent, key, child


def replacement(unit: nn.Module) -> Block:
    if isinstance(unit, BasicBlock):
        return blocks.create("residual", unit.conv1.in_channels, unit.conv1.out_channels, stride=unit.stride)
    assert isinstance(unit, InvertedResidual)
    convs = [conv for conv in unit.modules() if isinstance(conv, nn.Conv2d)]
    c_in, expand = convs[0].in_channels, convs[-1].in_channels // convs[0].in_channels
    return blocks.create("inverted_residual", c_in, unit.out_channels, stride=unit.stride, expand=expand)


def test_mobilenet_v1_has_thirteen_of_these_blocks():
    """timm's net, on meta: 13 depthwise separable units, and its total (4.2 M in the paper) with ours in their place."""
    with torch.device("meta"):
        net = create_model("mobilenetv1_100")
        found = [unit for unit in net.modules() if type(unit).__name__ == "DepthwiseSeparableConv"]
        ours = [
            blocks.create(
                "depthwise_separable", unit.conv_dw.in_channels, unit.conv_pw.out_channels, 3, unit.conv_dw.stride[0]
            )
            for unit in found
        ]
    assert len(ours) == 13
    assert [count(block) for block in ours] == [count(unit) for unit in found]
    stem, head = 3 * 32 * 9 + 2 * 32, 1024 * 1000 + 1000
    assert sum(map(count, ours)) + stem + head == count(net) == 4_231_976


def test_the_counts_of_the_reference():
    narrow = blocks.create("bottleneck", 256, 256)
    assert weights(narrow) == 69_632
    assert weights(blocks.create("conv", 256, 256)) == 589_824
    published = blocks.create("inception", 192, 256, five=False)
    assert count(published) == 155_872 == count(Inception(192, 64, 96, 128, 16, 32, 32))
    assert count(blocks.create("inception", 192, 256)) == 155_872 + 16 * 32 * (25 - 9)
    convs = [conv for conv in published.modules() if isinstance(conv, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64, 96, 128, 16, 32, 32]


def bn(*channels: int) -> int:
    return 2 * sum(channels)


def closed_form(name: str, i: int, o: int, k: int, stride: int, options: dict[str, int | bool]) -> int:
    if name == "depthwise_separable":
        return i * k * k + i * o + bn(i, o)
    if name == "bottleneck":
        b = math.ceil(o / options["reduction"])
        return i * b + b * b * k * k + b * o + bn(b, b, o)
    if name == "inverted_residual":
        h = i * options["expand"]
        return (i * h + bn(h)) * (options["expand"] > 1) + h * k * k + h * o + bn(h, o)
    if name == "residual":
        return (i + o) * o * k * k + bn(o, o) + (i * o + bn(o)) * (i != o or stride > 1)
    if name == "stacked_3x3":
        n = (k - 1) // 2
        return 9 * i * o + (n - 1) * 9 * o * o + n * bn(o)
    if name == "inception":
        one, eighth = o // 4, max(o // 8, 1)
        square, b, c = o - one - 2 * eighth, math.ceil(3 * o / 8), math.ceil(o / 16)
        size = k + 2 * options["five"]
        kernels = i * (one + b + c + eighth) + b * square * k * k + c * eighth * size * size
        return kernels + bn(o, b, c)
    g, made = options["growth"], 0
    for layer in range(options["layers"]):
        width = i + layer * g
        made += bn(width) + width * 4 * g + bn(4 * g) + 4 * g * g * k * k
    width = i + options["layers"] * g
    return made + bn(width) + width * o + bn(o)


@pytest.mark.parametrize("name", SEVERAL_LAYERS)
def test_parameters_in_closed_form(name):
    draw = random.Random(name)
    for _ in range(25):
        i, o, k, stride = (
            draw.randint(4, 90),
            draw.randint(4, 90),
            draw.choice(BLOCKS[name].kernel_sizes),
            draw.choice([1, 2]),
        )
        i = o if draw.random() < 0.3 else i
        options = {key: draw.choice(option.choices) for key, option in BLOCKS[name].options().items()}
        with torch.device("meta"):
            block = blocks.create(name, i, o, k, stride, **options)
        assert count(block) == closed_form(name, i, o, k, stride, options)


@pytest.mark.parametrize(("c_in", "c_out", "k"), [(64, 64, 3), (32, 256, 5), (7, 10, 7)])
def test_a_depthwise_separable_convolution_has_the_papers_share_of_weights(c_in, c_out, k):
    share = Fraction(
        weights(blocks.create("depthwise_separable", c_in, c_out, k)), weights(blocks.create("conv", c_in, c_out, k))
    )
    assert share == Fraction(1, c_out) + Fraction(1, k * k)


@pytest.mark.parametrize("k", [5, 7, 9, 11, 13])
def test_a_stack_has_fewer_weights_than_the_kernel_in_whose_place_it_is(k):
    assert weights(blocks.create("stacked_3x3", 16, 16, k)) == 9 * (k // 2) * 16**2 < k * k * 16**2
    assert k != 5 or weights(blocks.create("stacked_3x3", 16, 16, k)) == 18 * 16**2
