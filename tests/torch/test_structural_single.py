"""The convolution with its structure changed: deformable, dilated, grouped, and grouped with a shuffle behind."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from harness import blocks
from harness.blocks import ConvSpec
from harness.errors import Unsupported

DOUBLE = torch.float64


def normed(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """A batch norm by its running statistics."""
    mean, variance, gamma, beta = (
        t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return gamma * (x - mean) / torch.sqrt(variance + norm.eps) + beta


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def between(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """x (C, H, W) at a place between pixels, zero outside: (C,). Four corners, each by how near it is."""
    y = x.new_zeros(x.shape[0])
    for i, j in itertools.product((0, 1), repeat=2):
        at, beside = int(row.floor()) + i, int(column.floor()) + j
        if 0 <= at < x.shape[1] and 0 <= beside < x.shape[2]:
            y = y + x[:, at, beside] * (1 - (row - at).abs()) * (1 - (column - beside).abs())
    return y


def deformed(block: nn.Module, x: Tensor, masked: bool) -> Tensor:
    """The equation of harness.blocks.structural.deformable, a sample, an output and a tap at a time."""
    s = block.spec
    place = {"stride": s.stride, "padding": s.padding, "dilation": s.dilation}
    head = F.conv2d(x, block.head.weight, block.head.bias, **place)
    taps, outputs = s.kernel_size**2, []
    for n, i, j in itertools.product(range(len(x)), range(head.shape[2]), range(head.shape[3])):
        seen = []
        for t in range(taps):
            row = i * s.stride - s.padding + t // s.kernel_size * s.dilation + head[n, 2 * t, i, j]
            column = j * s.stride - s.padding + t % s.kernel_size * s.dilation + head[n, 2 * t + 1, i, j]
            pixel = between(x[n], row, column)
            seen.append(pixel * 2 / (1 + torch.exp(-head[n, 2 * taps + t, i, j])) if masked else pixel)
        groups = torch.stack(seen, 1).reshape(s.groups, -1)
        outputs.append(
            torch.einsum("goi,gi->go", block.conv.weight.reshape(s.groups, s.c_out // s.groups, -1), groups).flatten()
        )
    y = torch.stack(outputs).reshape(len(x), *head.shape[2:], s.c_out).permute(0, 3, 1, 2)
    return normed(y, block.bn)


@pytest.mark.parametrize(
    ("c_in", "c_out", "n", "k", "stride", "groups", "dilation", "padding", "modulated"),
    [
        (2, 3, 2, 3, 1, 1, 1, None, True),
        (2, 3, 1, 3, 1, 1, 1, None, False),
        (4, 4, 2, 3, 2, 2, 1, None, True),
        (3, 3, 1, 3, 1, 3, 2, None, True),
        (2, 2, 2, 3, 2, 1, 2, 1, False),
        (2, 2, 5, 1, 1, 1, 1, None, True),
        (2, 2, 1, 5, 3, 1, 1, None, True),
    ],
)
def test_deformable_is_its_equation(c_in, c_out, n, k, stride, groups, dilation, padding, modulated, lived_in):
    block = blocks.create("deformable", c_in, c_out, k, stride, groups, dilation, padding, modulated=modulated)
    block = lived_in(block).double().eval()
    x = torch.randn(n, c_in, 5, 4, dtype=DOUBLE, requires_grad=True)
    found, wanted = block(x), deformed(block, x, modulated)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    inputs, direction = [x, *block.parameters()], torch.randn_like(wanted)
    of_found, of_wanted = (torch.autograd.grad(y, inputs, direction) for y in (found, wanted))
    for ours, theirs in zip(of_found, of_wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("k", "stride", "groups", "dilation", "padding"),
    [(3, 1, 1, 1, None), (5, 2, 2, 2, None), (3, 3, 8, 1, 0), (1, 1, 1, 1, 2)],
)
@pytest.mark.parametrize("modulated", [True, False])
def test_deformable_starts_as_the_plain_convolution(k, stride, groups, dilation, padding, modulated):
    block = (
        blocks.create("deformable", 8, 8, k, stride, groups, dilation, padding, modulated=modulated).double().train()
    )
    x = torch.randn(2, 8, 11, 9, dtype=DOUBLE)
    plain = F.conv2d(x, block.conv.weight, None, stride, block.spec.padding, dilation, groups)
    torch.testing.assert_close(block.sampled(x), plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block(x), nn.BatchNorm2d(8).double()(plain), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (-2, 1)])
def test_offsets_are_rows_first(shift):
    """The same whole offset (dy, dx) for every tap: the convolution of the map moved by so much."""
    block = blocks.create("deformable", 3, 4, modulated=False).double()
    with torch.no_grad():
        block.head.bias.copy_(torch.tensor(shift, dtype=DOUBLE).repeat(9))
    x = torch.randn(1, 3, 12, 12, dtype=DOUBLE)
    moved = x.roll((-shift[0], -shift[1]), (2, 3))
    plain = F.conv2d(moved, block.conv.weight, None, padding=1)
    inside = slice(3, -3)  # a roll brings in the other side
    torch.testing.assert_close(
        block.sampled(x)[:, :, inside, inside], plain[:, :, inside, inside], rtol=1e-12, atol=1e-12
    )


def test_deformable_counts():
    draw = random.Random(3)
    for _ in range(20):
        g, k = draw.choice([1, 2, 4]), draw.choice([1, 3, 5])
        c_in, c_out, modulated = g * draw.randint(1, 9), g * draw.randint(1, 9), draw.choice([True, False])
        block = blocks.create("deformable", c_in, c_out, k, groups=g, modulated=modulated)
        head = (3 if modulated else 2) * k * k * (c_in * k * k + 1)
        assert parameters(block) == c_out * c_in // g * k * k + head + 2 * c_out


@pytest.mark.parametrize("how", ["module", "autocast"])
def test_deformable_in_bfloat16_samples_in_float32(how, lived_in):
    """torchvision has no bfloat16 on the CPU; and places, in it, would be a quarter of a pixel apart from 32 on."""
    block = lived_in(blocks.create("deformable", 4, 4)).eval()
    x = torch.randn(2, 4, 40, 40)
    with torch.no_grad():
        wanted = block(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            y = block(x) if how == "autocast" else block.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    error = (y.float() - wanted).abs()
    assert error[:, :, 32:].mean() < 2 * error[:, :, :8].mean()
    assert error.mean() < 0.02 * wanted.std()


def test_the_sampling_goes_by_the_name_that_work_is_counted_under():
    """In a forward pass: one call, its second argument the kernel, with shapes alone too."""
    calls = []

    def count(x: Tensor, weight: Tensor, *rest: object, out_shape: torch.Size, **more: object) -> int:
        calls.append((weight, tuple(out_shape)))
        return 0

    block = blocks.create("deformable", 8, 4, stride=2, groups=2).to("meta").eval()
    counted = {torch.ops.torchvision.deform_conv2d: count}
    with FlopCounterMode(display=False, custom_mapping=counted), torch.no_grad():
        block(torch.empty(2, 8, 9, 9, device="meta"))
    assert calls == [((4, 4, 3, 3), (2, 4, 5, 5))]


@pytest.mark.parametrize(
    ("rate", "k", "stride", "dilation", "groups", "padding"),
    [(2, 3, 1, 1, 1, None), (3, 5, 2, 1, 2, None), (4, 3, 3, 2, 4, None), (2, 3, 2, 2, 1, 0), (3, 3, 1, 1, 1, 4)],
)
def test_dilated_is_the_convolution_with_its_taps_apart(rate, k, stride, dilation, groups, padding, lived_in):
    block = lived_in(blocks.create("dilated", 4, 8, k, stride, groups, dilation, padding, rate=rate)).double().eval()
    x = torch.randn(2, 4, 23, 19, dtype=DOUBLE)
    apart = rate * dilation
    zeros = apart * (k // 2) if padding is None else padding + (rate - 1) * dilation * (k // 2)
    weight = block.branch.conv.weight
    spread = weight.new_zeros(*weight.shape[:2], k + (k - 1) * (apart - 1), k + (k - 1) * (apart - 1))
    spread[:, :, ::apart, ::apart] = weight
    wanted = normed(F.conv2d(x, spread, None, stride, zeros, 1, groups), block.branch.bn)
    plain = nn.Conv2d(4, 8, k, stride, block.spec.padding, dilation, groups)
    assert block(x).shape == plain(x.float()).shape
    torch.testing.assert_close(block(x), wanted, rtol=1e-11, atol=1e-11)
    fused = block.fused()
    assert fused.dilation == (apart, apart)
    torch.testing.assert_close(fused(x), wanted, rtol=1e-11, atol=1e-11)
    assert parameters(block) == parameters(blocks.create("conv", 4, 8, k, stride, groups))


def test_a_1x1_has_nothing_to_dilate():
    with pytest.raises(Unsupported, match="no kernel size 1") as refused:
        blocks.create("dilated", 8, 8, 1)
    assert refused.value.remedy


@pytest.mark.parametrize(("count", "k", "stride", "groups"), [(8, 3, 1, 1), (2, 3, 2, 4), (4, 1, 1, 2), (16, 5, 3, 1)])
def test_grouped_convolves_every_group_for_itself(count, k, stride, groups, lived_in):
    block = lived_in(blocks.create("grouped", 16, 32, k, stride, groups, count=count)).double().eval()
    x = torch.randn(2, 16, 7, 8, dtype=DOUBLE)
    pieces = zip(x.chunk(count * groups, 1), block.branch.conv.weight.chunk(count * groups), strict=True)
    y = torch.cat([F.conv2d(of_x, weight, None, stride, k // 2) for of_x, weight in pieces], 1)
    wanted = normed(y, block.branch.bn)
    torch.testing.assert_close(block(x), wanted, rtol=1e-11, atol=1e-11)
    fused = block.fused()
    assert fused.groups == count * groups
    torch.testing.assert_close(fused(x), wanted, rtol=1e-11, atol=1e-11)


def test_grouped_counts():
    assert parameters(blocks.create("conv", 256, 256)) - 512 == 589_824
    assert parameters(blocks.create("grouped", 256, 256)) - 512 == 73_728
    draw = random.Random(4)
    for _ in range(20):
        count, g, k = draw.choice([2, 4, 8, 16, 32]), draw.choice([1, 2, 3]), draw.choice([1, 3, 5])
        c_in, c_out = count * g * draw.randint(1, 4), count * g * draw.randint(1, 4)
        for name in ("grouped", "shuffle"):
            block = blocks.create(name, c_in, c_out, k, groups=g, count=count)
            assert parameters(block) == c_out * c_in * k * k // (count * g) + 2 * c_out


@pytest.mark.parametrize("name", ["grouped", "shuffle"])
@pytest.mark.parametrize("place", [{"c_in": 12}, {"c_out": 20}, {"count": 16, "c_in": 24}, {"groups": 2, "c_in": 40}])
def test_channels_that_the_groups_would_cut_are_refused(name, place):
    with pytest.raises(Unsupported, match=r"not a multiple of .* \(option count") as refused:
        blocks.create(name, **{"c_in": 32, "c_out": 32, **place})
    assert refused.value.remedy.startswith("use multiples of ")


@pytest.mark.parametrize(
    ("c_out", "count", "groups", "stride"), [(16, 8, 1, 1), (48, 4, 2, 2), (8, 2, 1, 1), (32, 16, 1, 3)]
)
def test_shuffle_is_grouped_with_its_channels_in_other_places(c_out, count, groups, stride, lived_in):
    block = lived_in(blocks.create("shuffle", 16, c_out, 3, stride, groups, count=count)).double().eval()
    grouped = blocks.create("grouped", 16, c_out, 3, stride, groups, count=count).double().eval()
    grouped.load_state_dict(block.state_dict())
    x = torch.randn(2, 16, 7, 6, dtype=DOUBLE)
    together, width = count * groups, c_out // (count * groups)
    places = [i * width + j for j, i in itertools.product(range(width), range(together))]
    assert sorted(places) == list(range(c_out))
    assert torch.equal(block(x), grouped(x)[:, places])
    fused = block.fused()
    assert [name for name, _ in fused.named_children()] == ["conv", "after"]
    torch.testing.assert_close(fused(x), block(x), rtol=1e-11, atol=1e-11)
    assert torch.equal(nn.ChannelShuffle(width)(block(x)), grouped(x))  # the inverse has c_out / G groups


def test_behind_a_shuffle_a_group_sees_all_groups():
    """Every group of the next layer has a channel of each group in front of it, where there are enough."""
    block = blocks.create("shuffle", 32, 32, 1, count=4).eval()
    nn.init.ones_(block.branch.conv.weight)
    x = torch.zeros(1, 32, 1, 1)
    x[:, 8:16] = 1.0  # the second group
    assert (block(x) - block(0 * x))[0, :, 0, 0].nonzero().flatten().tolist() == list(range(1, 32, 4))


@pytest.mark.parametrize("name", ["dilated", "grouped", "shuffle"])
def test_what_an_output_sees_is_the_deployed_convolutions_window(name):
    block = blocks.create(name, 16, 16, groups=2, dilation=2, padding=1)
    expected = {"dilated": ConvSpec(16, 16, 3, 1, 2, 4, -1), "grouped": ConvSpec(16, 16, 3, 1, 16, 2, -1)}
    assert block.window == block.deployed == expected.get(name, expected["grouped"])
    conv = block.fused() if name != "shuffle" else block.fused().conv
    assert conv.padding == (block.deployed.padding,) * 2
    assert block.spec == ConvSpec(16, 16, 3, 1, 2, 2, -1)


@pytest.mark.parametrize("name", ["deformable", "dilated", "grouped"])
def test_weights_start_as_torch_starts_a_convolution(name):
    block = blocks.create(name, 128, 128)
    conv = block.conv if name == "deformable" else block.branch.conv
    bound = 1 / math.sqrt(conv.weight[0].numel())
    assert conv.weight.abs().max() <= bound
    assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    if name == "deformable":
        assert not any(parameter.any() for parameter in block.head.parameters())
