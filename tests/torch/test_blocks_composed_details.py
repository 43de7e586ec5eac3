"""What blocks without branch norms start as, and what goes wrong in other implementations of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import algebra

D = torch.float64


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()


def centre(tensor: Tensor) -> Tensor:
    return tensor[:, :, 1:-1, 1:-1]


@pytest.mark.parametrize("layout", ["textbook", "reference"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_doconv_starts_as_its_weight(groups, layout):
    block = blocks.create("doconv", 4, 8, groups=groups, layout=layout)
    assert not block.linear.depthwise.any()
    assert torch.equal(block._composed().weight, block.linear.weight.reshape(8, 4 // groups, 3, 3))
    bound = 1 / math.sqrt(4 // groups * 9)
    assert 0.8 * bound < largest(block.linear.weight) <= bound
    twice = blocks.create("doconv", 4, 8, groups=groups, layout=layout, multiplier=2)
    slices = twice.linear.weight.reshape(8, 4 // groups, 2, 3, 3)
    torch.testing.assert_close(twice._composed().weight, slices[:, :, 0] + slices[:, :, 1])


def test_the_layouts_of_doconv_are_the_same_but_for_groups_between_one_and_all(lived_in):
    for c_in, c_out, groups, same in [(4, 8, 1, True), (4, 4, 4, True), (4, 8, 2, False), (4, 8, 4, False)]:
        textbook = lived_in(blocks.create("doconv", c_in, c_out, groups=groups)).double()
        reference = blocks.create("doconv", c_in, c_out, groups=groups, layout="reference").double()
        reference.load_state_dict(textbook.state_dict())
        off = largest(textbook._composed().weight - reference._composed().weight)
        assert (off <= 1e-14) if same else (off > 0.1)


@pytest.mark.parametrize(("c_in", "c_out", "groups"), [(4, 4, 1), (4, 6, 1), (6, 4, 1), (8, 4, 2)])
def test_dirac_starts_as_the_identity_and_a_tenth(c_in, c_out, groups):
    block = blocks.create("dirac", c_in, c_out, groups=groups).double()
    added = block._composed().weight.clone()
    for o in range(c_out):
        if o % (c_out // groups) < c_in // groups:
            added[o, o % (c_out // groups), 1, 1] -= 1
    torch.testing.assert_close(added.flatten(1).norm(dim=1), torch.full((c_out,), 0.1, dtype=D), rtol=1e-6, atol=0)
    assert block.bn.weight.min() >= 0
    assert block.bn.weight.max() <= 1
    assert block.bn.weight.std() > 0


def test_a_filter_of_dirac_counts_by_its_direction_and_zeros_stay_zeros():
    block = blocks.create("dirac", 4, 4).double()
    before = block._composed().weight
    with torch.no_grad():
        block.linear.weight.mul_(7.5)
    torch.testing.assert_close(block._composed().weight, before, rtol=1e-14, atol=1e-14)
    nn.init.zeros_(block.linear.weight)
    block(torch.randn(2, 4, 5, 5, dtype=D)).sum().backward()
    assert torch.equal(block._composed().weight, algebra.embed(algebra.identity(4, 1, before), 3))
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_clb_starts_as_keras_does():
    block = blocks.create("clb", 16, 16, 5)
    first, second = block.linear[0].factors
    for weight, fan_in, fan_out in [(first.weight, 25 * 16, 25 * 256), (second.weight, 256, 16)]:
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.99 * bound < largest(weight) <= bound
    assert not first.bias.any()
    assert not second.bias.any()


@pytest.mark.parametrize(("name", "k"), [("expand_cl", 3), ("expand_ck", 7), ("expand_fc", 1)])
def test_factors_of_expandnets_start_as_torch_does(name, k):
    for factor in blocks.create(name, 16, 16, k).linear.factors:
        bound = 1 / math.sqrt(factor.weight[0].numel())
        assert 0.95 * bound < largest(factor.weight) <= bound


def test_the_masks_of_ecb_are_constants(lived_in):
    block = blocks.create("ecb", 8, 8)
    assert len(list(block.parameters())) == 2 + 4 + 3 * 4
    assert all(parameter.requires_grad for parameter in block.parameters())
    assert not [name for name in block.state_dict() if "mask" in name]
    for edge in list(block.linear)[2:]:
        for start in (edge.scale, edge.bias):
            assert 0 < largest(start) < 5e-3
    with torch.device("meta"):
        moved = blocks.create("ecb", 8, 8)
    moved = moved.to_empty(device="cpu").double()
    moved.load_state_dict(lived_in(block).state_dict())
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(moved(x.double()), block(x).double(), rtol=1e-4, atol=1e-4)
    assert [edge.mask.tolist() for edge in list(moved.linear)[2:]] == [
        [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
        [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
        [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
    ]


def test_a_bias_in_front_of_a_mask_comes_to_nothing(lived_in):
    edge = list(lived_in(blocks.create("ecb", 4, 4)).double().linear)[2]
    x = torch.randn(1, 4, 6, 6, dtype=D)
    before = edge(x)
    nn.init.constant_(edge.point.bias, 3.0)
    torch.testing.assert_close(edge(x), before, rtol=1e-13, atol=1e-13)


def test_padding_with_zeros_between_the_factors_is_wrong_at_the_rim_only(lived_in):
    """With a bias for a leading 1x1; for two larger kernels without one too."""
    x = torch.randn(1, 4, 12, 12, dtype=D)
    for name, k, bias in [("expand_cl", 3, True), ("expand_ck", 5, False)]:
        block = lived_in(blocks.create(name, 4, 4, k, bias=bias, norm=False)).double()
        wanted, y = block(x), x
        for factor in block.linear.factors:
            y = F.conv2d(y, factor.weight, factor.bias, padding=factor.weight.shape[-1] // 2)
        rim = k // 2
        inside = (slice(None), slice(None), slice(rim, -rim), slice(rim, -rim))
        assert largest(y[inside] - wanted[inside]) <= 1e-13 * largest(wanted)
        assert largest(y - wanted) > 1e-2 * largest(wanted)


def test_the_bias_of_clb_is_an_output_bias_and_not_the_authors_kernel_bias(lived_in):
    """Theirs sends it through the delta images: it ends up at every tap, and the convolution has none."""
    block = lived_in(blocks.create("clb", 4, 4)).double()
    first, second = block.linear[0].factors
    images = algebra.embed(algebra.identity(4, 1, first.weight), 5)
    theirs = second(F.conv2d(images, first.weight, first.bias)).flip(2, 3).transpose(0, 1)
    weight, bias = block._composed()
    shift = second.weight.flatten(1) @ first.bias + second.bias
    torch.testing.assert_close(theirs - weight, shift[:, None, None, None].expand(4, 4, 3, 3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bias, shift, rtol=1e-12, atol=1e-12)
    x = torch.randn(1, 4, 9, 9, dtype=D)
    assert largest(F.conv2d(x, theirs, padding=1) - block(x)) > 0.1 * largest(block(x))


def test_the_residual_of_clb_is_there_where_it_can_be(lived_in):
    for c_out, stride, there in [(4, 1, True), (8, 1, False), (4, 2, False)]:
        for reparam in ("online", "offline"):
            plain = lived_in(blocks.create("clb", 4, c_out, 3, stride, reparam=reparam)).double()
            block = blocks.create("clb", 4, c_out, 3, stride, reparam=reparam, residual=True).double()
            block.load_state_dict(plain.state_dict(), strict=True)
            x = torch.randn(1, 4, 6, 6, dtype=D)
            added = block(x) - plain(x)
            assert largest(added - x) <= 1e-12 if there else not added.any()
