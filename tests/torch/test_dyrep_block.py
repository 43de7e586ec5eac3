"""DyRep's block: what each branch computes, growing and cutting without a change of the eval output, folding."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import ConvSpec
from harness.blocks.reparam.dyrep import SLOTS, DyRepConv

ALL = ("1x1", "1x1-kxk", "1x1-average", "1xk", "kx1", "identity")
LAYOUTS = [(6, 6, 1), (6, 10, 1), (6, 6, 6), (6, 6, 2), (4, 8, 4)]
"""(c_in, c_out, groups): same, wider, depthwise, grouped, channel multiplier."""


def relative(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def grown(c_in=6, c_out=6, kernel_size=3, stride=1, groups=1, dilation=1, **rest):
    return blocks.create("dyrep", c_in, c_out, kernel_size, stride, groups, dilation, **rest, branches="all").double()


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Written:
    """The block as the paper's equations say it, in plain operations; `training` takes statistics of the batch."""

    def __init__(self, block, training):
        self.block, self.training = block, training

    def norm(self, x, bn):
        """The normalised map, and what a zero becomes by running statistics, in training after their update."""
        mean, var = bn.running_mean.clone(), bn.running_var.clone()
        used = mean, var
        if self.training:
            used = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            mean, var = 0.9 * mean + 0.1 * used[0], 0.9 * var + 0.1 * x.var((0, 2, 3), unbiased=True)
        zero = bn.bias - mean * bn.weight / (var + bn.eps).sqrt()
        scale = bn.weight / (used[1] + bn.eps).sqrt()
        return (x - used[0][:, None, None]) * scale[:, None, None] + bn.bias[:, None, None], zero

    def conv(self, x, weight, padding, bias=None):
        s = self.block.spec
        dilation = s.dilation if max(weight.shape[2:]) > 1 else 1
        return F.conv2d(x, weight, bias, s.stride, padding, dilation, s.groups)

    def rim(self, x, conv, bn):
        """1x1, norm, and the answer to zero around it."""
        p = self.block.spec.padding
        y, zero = self.norm(F.conv2d(x, conv.weight, groups=self.block.spec.groups), bn)
        inside = F.pad(torch.ones_like(y), [p] * 4)
        return torch.where(inside > 0, F.pad(y, [p] * 4), zero[:, None, None])

    def average(self, x, padding):
        s = self.block.spec
        taps = x.new_full((s.c_out, 1, s.kernel_size, s.kernel_size), 1 / s.kernel_size**2)
        return F.conv2d(x, taps, None, s.stride, padding, s.dilation, s.c_out)

    def __call__(self, x):
        block, s = self.block, self.block.spec
        p, m = s.padding, s.margin
        inner = F.pad(x, [m] * 4)  # what a 1x1 reads; a negative margin crops
        wide, tall = F.pad(x, [p, p, m, m]), F.pad(x, [m, m, p, p])
        b = block.branches
        total = self.norm(self.conv(x, block.conv.weight, p, block.conv.bias), block.norm)[0]
        if "1x1" in b:
            total = total + self.norm(self.conv(inner, b["1x1"].conv.weight, 0), b["1x1"].bn)[0]
            total = total + self.norm(self.conv(wide, b["1xk"].conv.weight, 0), b["1xk"].bn)[0]
            total = total + self.norm(self.conv(tall, b["kx1"].conv.weight, 0), b["kx1"].bn)[0]
        first, second = b["1x1-kxk"].first.conv, b["1x1-kxk"].second
        total = (
            total + self.norm(self.conv(self.rim(x, first, b["1x1-kxk"].rim.bn), second.conv.weight, 0), second.bn)[0]
        )
        pooled = b["1x1-average"]
        if s.groups == s.c_in == s.c_out:
            total = total + self.norm(self.average(F.pad(x, [p] * 4), 0), pooled.bn)[0]
        else:
            total = (
                total + self.norm(self.average(self.rim(x, pooled.first.conv, pooled.rim.bn), 0), pooled.second.bn)[0]
            )
        if "identity" in b:
            total = total + self.norm(inner, b["identity"].bn)[0]
        return self.norm(total, block.bn)[0]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("c_in", "c_out", "groups"), LAYOUTS)
def test_a_grown_block_computes_what_the_paper_writes(c_in, c_out, groups, training, lived_in):
    for kernel_size, stride, dilation, margin in product([3, 5], [1, 2], [1, 2], [-1, 0, 1]):
        padding = dilation * (kernel_size // 2) + margin
        block = lived_in(grown(c_in, c_out, kernel_size, stride, groups, dilation, padding=padding)).train(training)
        x = noise(3, c_in, 11, 12)
        wanted = Written(copy.deepcopy(block), training)(x)
        assert relative(block(x), wanted) <= 1e-12, (kernel_size, stride, dilation, margin)


@pytest.mark.parametrize("branches", ["none", "all"])
@pytest.mark.parametrize("kernel_size", range(1, 14, 2))
def test_a_fused_block_computes_what_the_trained_block_computes(kernel_size, branches, lived_in):
    for (c_in, c_out, groups), stride, dilation, margin in product(LAYOUTS, [1, 2], [1, 2], [-1, 0, 2]):
        padding = dilation * (kernel_size // 2) + margin
        if padding >= 0:
            place = (c_in, c_out, kernel_size, stride, groups, dilation, padding)
            block = lived_in(blocks.create("dyrep", *place, branches=branches)).double().eval()
            x = noise(1, c_in, 3 + dilation * (kernel_size - 1), 4 + dilation * (kernel_size - 1))  # rim and interior
            y, fused = block(x), block.fused()(x)
            assert relative(fused, y) <= 1e-12, place
            assert relative(fused[:, :, 0], y[:, :, 0]) <= 1e-12, place
            assert relative(fused[..., -1], y[..., -1]) <= 1e-12, place


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(2, 2, 0), (4, 4, 0), (4, 2, 1), (2, 1, 1), (16, 16, 0)]
)
@pytest.mark.parametrize("groups", [1, 4])
def test_an_even_kernel_has_the_branches_that_need_no_centre(kernel_size, stride, padding, groups, lived_in):
    block = DyRepConv.around(nn.Conv2d(4, 4, kernel_size, stride, padding, groups=groups))
    assert block.fitting == ("1x1-kxk", "1x1-average")
    block.grow(block.fitting)
    lived_in(block).double().eval()
    x = noise(2, 4, 32, 32)
    assert block(x).shape == block.conv(x).shape
    assert relative(block.fused()(x), block(x)) <= 1e-12


def test_which_branches_fit():
    assert DyRepConv(ConvSpec(4, 4)).fitting == ALL
    assert DyRepConv(ConvSpec(4, 6)).fitting == ALL[:-1]
    assert DyRepConv(ConvSpec(4, 4, stride=2)).fitting == ALL[:-1]
    assert DyRepConv(ConvSpec(4, 4)).fitting == ALL  # the authors' default list is changed by the block before
    assert DyRepConv(ConvSpec(4, 4, kernel_size=1)).fitting == ()
    assert set(ALL) < set(SLOTS)


def test_the_block_starts_plain_or_as_large_as_it_gets():
    plain = blocks.create("dyrep", 8, 8)
    assert [name for name, _ in plain.named_parameters()] == ["conv.weight", "bn.weight", "bn.bias"]
    assert sum(p.numel() for p in plain.parameters()) == 8 * 8 * 9 + 16
    block = grown(8, 8)
    assert block.slots == SLOTS
    convs = 8 * 8 * (9 + 1 + (1 + 9) + 1 + 3 + 3)  # origin, 1x1, 1x1-kxk, 1x1-average, 1xk, kx1
    norms = 2 * 8 * (1 + 1 + 2 + 2 + 1 + 1 + 1 + 1)  # the identity's and the outer one last
    assert sum(p.numel() for p in block.parameters()) == convs + 8 + norms  # 8: the origin's bias
    assert blocks.create("dyrep", 8, 8, 1, branches="all").slots == ("kxk",)


def test_how_a_branch_starts():
    block = grown(64, 128, 5, groups=2)
    assert all(weight == pytest.approx(0.01) for weight in block.importance().values())
    chain, pooled = block.branches["1x1-kxk"], block.branches["1x1-average"]
    started = [
        (block.branches["1x1"].conv, 128),
        (block.branches["1xk"].conv, 5 * 128),
        (block.branches["kx1"].conv, 5 * 128),
        (chain.first.conv, 64),
        (chain.second.conv, 25 * 128),
        (pooled.first.conv, 128),
    ]
    for conv, outputs in started:
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / outputs), rel=0.05)
    assert all(bn.weight.eq(1).all() for bn in (chain.rim.bn, pooled.rim.bn, block.norm))
    assert all(norm.bias.eq(0).all() for norm in block.norms())


def expanded(block, generator=None):
    """`block` grown with all that fits and the total absorbed: what DyRep does, less the calibration."""
    total = block.exact().summed()
    block.grow(block.fitting, generator)
    block.absorb(total)
    return block


@pytest.mark.parametrize(("c_in", "c_out", "groups"), LAYOUTS)
@pytest.mark.parametrize("bias", [False, True])
def test_growing_keeps_the_eval_output_and_not_the_training_output(c_in, c_out, groups, bias, lived_in):
    x = noise(4, c_in, 9, 9)
    block = DyRepConv.around(lived_in(nn.Conv2d(c_in, c_out, 3, 2, 1, groups=groups, bias=bias)).double())
    before = block(x)
    expanded(block)
    assert relative(block.eval()(x), before) <= 1e-13
    # The authors' subtraction forgets that a batch norm with variance 1 divides by sqrt(1 + eps).
    block.conv.weight.data /= math.sqrt(1 + block.norm.eps)
    block.conv.bias.data /= math.sqrt(1 + block.norm.eps)
    assert 1e-6 < relative(block.eval()(x), before) < 1e-4
    assert relative(block.train()(x), before) > 0.1


def test_growing_keeps_the_bias_parameter_and_makes_the_weight_anew():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    weight, bias = conv.weight, conv.bias
    block = expanded(DyRepConv.around(conv))
    assert block.conv is conv
    assert block.conv.bias is bias
    assert block.conv.weight is not weight


def test_a_generator_decides_what_grows():
    def grow(seed):
        torch.manual_seed(5)
        return expanded(DyRepConv(ConvSpec(4, 4)), torch.Generator().manual_seed(seed)).state_dict()

    first, same, other = grow(1), grow(1), grow(2)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["branches.1x1.conv.weight"], other["branches.1x1.conv.weight"])


def test_cutting_keeps_the_eval_output_and_what_is_left(lived_in):
    block = lived_in(grown()).eval()
    x = noise(2, 6, 8, 8)
    before, origin = block(x), [block.conv.weight, block.conv.bias, *block.norm.parameters()]
    kept = copy.deepcopy(block.branches["1xk"].state_dict())
    block.cut(["1x1", "1x1-average", "identity"])
    assert block.slots == ("1x1-kxk", "kxk", "1xk", "kx1")
    assert relative(block(x), before) <= 1e-13
    assert all(torch.equal(block.branches["1xk"].state_dict()[key], kept[key]) for key in kept)
    # The origin's parameters stay (so does their momentum), its batch norm starts anew.
    now = [block.conv.weight, block.conv.bias, *block.norm.parameters()]
    assert all(a is b for a, b in zip(origin, now, strict=True))
    assert block.norm.weight.eq(1).all()
    assert block.norm.bias.eq(0).all()
    assert block.norm.running_mean.eq(0).all()
    assert block.norm.running_var.eq(1).all()


def test_with_no_branch_left_it_is_a_plain_convolution_with_a_bias(lived_in):
    block = lived_in(grown()).eval()
    x = noise(2, 6, 8, 8)
    before = block(x)
    block.cut(block.fitting)
    assert {name for name, _ in block.named_parameters()} == {"conv.weight", "conv.bias", "bn.weight", "bn.bias"}
    assert relative(block(x), before) <= 1e-13
    assert relative(block.bn(block.conv(x)), before) <= 1e-13
    expanded(block)
    assert relative(block.eval()(x), before) <= 1e-13


def test_importance_is_the_ratio_of_the_last_gammas():
    block = grown()
    with torch.no_grad():
        block.norm.weight.copy_(torch.tensor([2.0, -2, 2, -2, 2, -2]))
        block.branches["1x1-kxk"].second.bn.weight.copy_(torch.tensor([0.0, -1, 2, -3, 0, 0]))
        block.branches["1x1-kxk"].rim.bn.weight.fill_(100)  # not the last one of its branch
    assert block.importance()["1x1-kxk"] == pytest.approx(0.5)
    assert block.importance()["identity"] == pytest.approx(0.005)


def test_new_branches_are_like_the_convolution_they_join():
    conv = nn.Conv2d(4, 4, 3, padding=1).to(torch.bfloat16).to(memory_format=torch.channels_last).eval()
    block = expanded(DyRepConv.around(conv))
    assert {tensor.dtype for tensor in block.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in block.modules())
    assert block.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert block.branches["1x1-kxk"].second.conv.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 6, 6).to(torch.bfloat16)
    assert block(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


def test_a_grown_block_copies_loads_and_compiles(lived_in):
    torch.compiler.reset()
    block = lived_in(grown()).float().eval()
    x = torch.randn(2, 6, 7, 7)
    fresh = grown().float().eval()
    fresh.load_state_dict(block.state_dict())
    assert torch.equal(fresh(x), block(x))
    assert torch.equal(copy.deepcopy(block)(x), block(x))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
