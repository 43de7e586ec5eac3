"""Every fusable block becomes one convolution that computes what the block computes."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from test_blocks_sizes import make, sizes_of, with_sizes
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from harness import blocks
from harness.blocks import BLOCKS

FUSABLE = [name for name in BLOCKS if BLOCKS[name].fusable()]

LAYOUTS = [(8, 8, 1), (8, 12, 1), (8, 8, 4), (8, 16, 4), (8, 8, 8), (8, 16, 8), (16, 8, 8), (3, 5, 1), (5, 5, 5)]
"""(c_in, c_out, groups): same, wider, grouped, depthwise, channel multiplier, fewer outputs than inputs, odd."""


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over largest magnitude; 0 for nothing to compare."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item() if wanted.numel() else 0.0


def interior(y_NCHW: Tensor, rim: int) -> Tensor:
    return y_NCHW[:, :, rim:-rim, rim:-rim] if rim else y_NCHW


@pytest.mark.parametrize(("c_in", "c_out", "groups"), LAYOUTS)
@pytest.mark.parametrize(("name", "kernel_size"), with_sizes(FUSABLE, 1, 3, 5, 7, 13))
def test_a_fused_block_computes_what_the_trained_block_computes(name, c_in, c_out, groups, kernel_size, lived_in):
    for stride, dilation in product([1, 2], [1, 2]):
        block = lived_in(blocks.create(name, c_in, c_out, kernel_size, stride, groups, dilation)).double().eval()
        side = 9 + 2 * block.spec.padding
        x = torch.randn(2, c_in, side, side + 1, dtype=torch.float64)
        with torch.no_grad():
            y, fused = block(x), block.fused()(x)
        rim = -(-block.spec.padding // stride)
        assert y.shape == (2, c_out, -(-side // stride), -(-(side + 1) // stride))
        assert relative(fused, y) <= 1e-12, (stride, dilation)
        assert relative(interior(fused, rim), interior(y, rim)) <= 1e-12, (stride, dilation)
        for edge in (y.narrow(2, 0, 1), y.narrow(3, y.shape[3] - 1, 1)):
            assert edge.abs().max() > 0
        assert relative(fused[:, :, 0], y[:, :, 0]) <= 1e-12, (stride, dilation)
        assert relative(fused[:, :, :, -1], y[:, :, :, -1]) <= 1e-12, (stride, dilation)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 3), (1, 7), (5, 4)])
@pytest.mark.parametrize("name", FUSABLE)
def test_inputs_smaller_than_the_kernel(name, shape, lived_in):
    for kernel_size, stride, dilation in product(sizes_of(name, 3, 5, 13), [1, 2], [1, 3]):
        block = lived_in(blocks.create(name, 6, 6, kernel_size, stride, 2, dilation)).double().eval()
        x = torch.randn(2, 6, *shape, dtype=torch.float64)
        assert relative(block.fused()(x), block(x)) <= 1e-12


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (name, key, value)
        for name in FUSABLE
        for key, option in BLOCKS[name].options().items()
        for value in option.choices
    ],
)
def test_every_option_fuses(name, key, value, lived_in):
    block = lived_in(make(name, 4, 4, **{key: value})).double().eval()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    assert relative(block.fused()(x), block(x)) <= 1e-12


@pytest.mark.parametrize("name", FUSABLE)
def test_fusing_makes_something_new_and_leaves_the_block_alone(name, lived_in):
    block = lived_in(make(name, 4, 4)).train()
    block.requires_grad_(False)
    before, stream = copy.deepcopy(block.state_dict()), torch.get_rng_state()
    first, second = block.fused(), block.fused()
    assert torch.equal(torch.get_rng_state(), stream)
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(first.weight, second.weight)
    assert block.training
    assert not any(parameter.requires_grad for parameter in block.parameters())
    kept = {tensor.untyped_storage().data_ptr() for tensor in block.state_dict().values()}
    assert not kept & {tensor.untyped_storage().data_ptr() for tensor in first.state_dict().values()}
    assert list(first.modules()) == [first]


@pytest.mark.parametrize("name", FUSABLE)
def test_a_block_in_training_mode_fuses_by_its_running_statistics(name, lived_in):
    block = lived_in(make(name, 4, 4)).double().train()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    fused = block.fused()
    assert relative(fused(x), block.eval()(x)) <= 1e-12


@pytest.mark.parametrize("name", FUSABLE)
def test_a_fused_block_can_be_fine_tuned(name, lived_in):
    fused = lived_in(make(name, 4, 4)).requires_grad_(False).fused()
    before = fused.weight.detach().clone()
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.01)
    loss = fused(torch.randn(2, 4, 6, 6)).square().mean()
    loss.backward()
    optimizer.step()
    assert not torch.equal(fused.weight, before)
    assert fused.bias.grad.abs().max() > 0


@pytest.mark.parametrize("name", FUSABLE)
def test_a_fused_state_loads_into_a_fresh_fused_block(name, lived_in):
    fused = lived_in(make(name, 4, 4)).fused()
    fresh = make(name, 4, 4).fused()
    fresh.load_state_dict(fused.state_dict())
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(fresh(x), fused(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FUSABLE)
def test_a_half_precision_block_is_folded_exactly_and_rounded_once(name, dtype, lived_in):
    block = lived_in(make(name, 4, 4)).to(dtype).eval()
    fused = block.fused()
    assert fused.weight.dtype == fused.bias.dtype == dtype
    fused(torch.randn(1, 4, 5, 5, dtype=dtype))  # the authors' RepVGG raises here: weight float32, bias half
    exact = make(name, 4, 4).double()
    exact.load_state_dict(block.state_dict())  # the same numbers, in float64
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(fused.weight.double(), exact.fused().weight, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", FUSABLE)
def test_float32_is_off_by_rounding_only(name, lived_in):
    block = lived_in(make(name, 16, 16)).eval()
    x = torch.randn(2, 16, 12, 12)
    assert relative(block.fused()(x), block(x)) <= 5e-6


@pytest.mark.parametrize(("name", "kernel_size"), with_sizes(FUSABLE, 5))
def test_shapes_fuse_without_numbers(name, kernel_size):
    with torch.device("meta"):
        fused = blocks.create(name, 8, 16, kernel_size, 2, 4, 2).fused()
    assert fused.weight.is_meta
    with FakeTensorMode():
        block = blocks.create(name, 8, 16, kernel_size, 2, 4, 2)
        fake = block.fused()
        y, z = block(torch.randn(2, 8, 9, 9)), fake(torch.randn(2, 8, 9, 9))
    assert fused.weight.shape == fake.weight.shape == (16, 2, kernel_size, kernel_size)
    assert y.shape == z.shape == (2, 16, 5, 5)
    assert fake.weight.stride() == fused.weight.stride() == (2 * kernel_size**2, kernel_size**2, kernel_size, 1)


@pytest.mark.parametrize("name", FUSABLE)
def test_channels_last(name, lived_in):
    block = lived_in(make(name, 4, 4)).eval()
    x = torch.randn(2, 4, 6, 6)
    wanted = block(x)
    assert wanted.is_contiguous()
    block.to(memory_format=torch.channels_last)
    y = block(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, wanted) <= 5e-6
    assert block.fused().weight.is_contiguous()


@pytest.mark.parametrize("name", FUSABLE)
def test_fusing_under_inference_mode_gives_trainable_parameters(name):
    block = make(name, 4, 4)
    with torch.inference_mode():
        fused = block.fused()
    fused(torch.randn(1, 4, 5, 5)).sum().backward()
    assert fused.weight.grad is not None


def test_dbb_pads_with_the_batch_norms_answer_to_zero(lived_in):
    """Zeros there instead would leave the interior right and the rim wrong."""
    block = lived_in(blocks.create("dbb", 4, 4)).double().eval()
    chain = block.branches[2]
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    padded = chain.rim(chain.first(x))
    outside = chain.rim.bn(torch.zeros(1, 4, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(padded[:, :, :1, :1], outside)
    zeros = chain.second(F.pad(chain.rim.bn(chain.first(x)), [1] * 4))
    assert relative(zeros[:, :, 0], chain(x)[:, :, 0]) > 1e-3
