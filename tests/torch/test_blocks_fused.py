"""Every fusable block becomes one convolution that computes what the block computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
from block_places import Place, declared, fed, images, make, places, sizes_of, with_sizes
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from harness import blocks
from harness.blocks import BLOCKS, Block

FUSABLE = [name for name in BLOCKS if BLOCKS[name].fusable()]

LAYOUTS: list[tuple[int, int, int]] = [
    (8, 8, 1),
    (8, 12, 1),
    (8, 8, 4),
    (8, 16, 4),
    (8, 8, 8),
    (8, 16, 8),
    (16, 8, 8),
    (3, 5, 1),
    (5, 5, 5),
]
"""(c_in, c_out, groups): same, wider, grouped, depthwise, channel multiplier, fewer outputs than inputs, odd."""


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over largest magnitude; 0 for nothing to compare."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item() if wanted.numel() else 0.0


def interior(y_NCHW: Tensor, rim: int) -> Tensor:
    return y_NCHW[:, :, rim:-rim, rim:-rim] if rim else y_NCHW


EXACT = 1e-12


def check_fused(name: str, place: Place, lived_in: Callable[[Block], Block]) -> None:
    """Whole map, interior and two edges, in float64, with statistics and biases that a fresh block does not have."""
    block = lived_in(blocks.create(name, *place)).double().eval()
    window, stride = block.window, place[3]
    side = 9 + 2 * window.padding
    x = fed(block, torch.randn(2, place[0], side, side + 1, dtype=torch.float64))
    with torch.no_grad():
        y, fused = block(x), block.fused()(x)
    rim = -(-window.padding // stride)
    assert y.shape == (2, place[1], -(-side // stride), -(-(side + 1) // stride))
    for part in (lambda map: map, lambda map: interior(map, rim), lambda map: map[:, :, 0], lambda map: map[..., -1]):
        assert part(y).abs().max() > 0
        assert relative(part(fused), part(y)) <= EXACT, place


BRANCHED = [name for name in FUSABLE if BLOCKS[name].family != "attention"]
"""Those whose kernel is more than one convolution's and its norm's: with an attention behind, two sizes show it."""


@pytest.mark.parametrize(
    ("name", "kernel_size"), dict.fromkeys([*with_sizes(FUSABLE, 1, 3), *with_sizes(BRANCHED, 5, 13)])
)
def test_a_fused_block_computes_what_the_trained_block_computes(name, kernel_size, lived_in):
    wanted = [
        (c_in, c_out, kernel_size, stride, groups, dilation)
        for (c_in, c_out, groups), stride, dilation in product(LAYOUTS, [1, 2], [1, 2])
    ]
    for place in places(name, wanted):
        check_fused(name, place, lived_in)


@pytest.mark.parametrize("name", FUSABLE)
def test_any_padding_is_exact(name, lived_in):
    """Fewer zeros than "same", and more: 1x1 and identity branches crop or pad."""
    tried = 0
    # each of stride, groups and dilation with and without the others
    for k, (stride, groups, dilation) in product(
        sizes_of(name, 1, 3, 5, 7), [(1, 1, 1), (2, 4, 1), (1, 4, 2), (2, 1, 2)]
    ):
        channels = max(4, groups * blocks.declaration(name)["limits"]["channel_multiple"])
        if not declared(name, (channels, channels, k, stride, groups, dilation)):
            continue
        same = dilation * (k // 2)
        for padding in {0, same // 2, same, same + 1, same + 3}:
            block = blocks.create(name, channels, channels, k, stride, groups, dilation, padding=padding)
            block = lived_in(block).double().eval()
            x = images(block, 2, 15, 16, torch.float64)
            plain = nn.Conv2d(channels, channels, k, stride, padding, dilation, groups)
            y = block(x)
            if block.window is block.spec:
                assert y.shape == plain(x.float()).shape
            assert relative(block.fused()(x), y) <= EXACT, (k, stride, groups, dilation, padding)
            tried += 1
    assert tried


@pytest.mark.parametrize("name", FUSABLE)
def test_inputs_smaller_than_the_kernel(name, lived_in):
    wanted = [
        (6, 6, k, stride, 2, dilation) for k, stride, dilation in product(sizes_of(name, 3, 5, 13), [1, 2], [1, 3])
    ]
    for place, shape in product(places(name, wanted), [(1, 1), (2, 2), (2, 3), (1, 7), (5, 4)]):
        block = lived_in(blocks.create(name, *place)).double().eval()
        x = images(block, 2, *shape, torch.float64)
        assert relative(block.fused()(x), block(x)) <= EXACT, (place, shape)


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
    for stride in (1, 2):
        channels = 4 if BLOCKS[name].channel_multiple == 1 else 32
        block = lived_in(make(name, channels, channels, stride=stride, **{key: value})).double().eval()
        x = images(block, 2, 7, 7, torch.float64)
        assert relative(block.fused()(x), block(x)) <= EXACT


@pytest.mark.parametrize("name", FUSABLE)
def test_fusing_makes_something_new_and_leaves_the_block_alone(name, lived_in):
    block = lived_in(make(name, 4, 4)).train()
    block.requires_grad_(False)
    before, stream = copy.deepcopy(block.state_dict()), torch.get_rng_state()
    first, second = block.fused(), block.fused()
    assert torch.equal(torch.get_rng_state(), stream)
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)
    for once, again in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(once, again)
    assert block.training
    assert not any(parameter.requires_grad for parameter in block.parameters())
    kept = {tensor.untyped_storage().data_ptr() for tensor in block.state_dict().values()}
    assert not kept & {tensor.untyped_storage().data_ptr() for tensor in first.state_dict().values()}
    if isinstance(block.after, nn.Identity) and "carry" not in block.options():
        assert list(first.modules()) == [first]


@pytest.mark.parametrize("name", FUSABLE)
def test_a_block_in_training_mode_fuses_by_its_running_statistics(name, lived_in):
    block = lived_in(make(name, 4, 4)).double().train()
    x = images(block, 2, 6, 6, torch.float64)
    fused = block.fused().eval()
    assert relative(fused(x), block.eval()(x)) <= EXACT


@pytest.mark.parametrize("name", FUSABLE)
def test_a_fused_block_can_be_fine_tuned(name, lived_in):
    block = lived_in(make(name, 4, 4)).requires_grad_(False)
    fused = block.fused()
    before = copy.deepcopy(dict(fused.named_parameters()))
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.01)
    loss = fused(images(block, 2, 6, 6)).square().mean()
    loss.backward()
    optimizer.step()
    assert before
    still = [label for label, parameter in fused.named_parameters() if torch.equal(parameter, before[label])]
    # a bias in front of a softmax or a batch norm has no part in what comes out
    assert not [label for label in still if not (label.startswith("after.") and label.endswith("bias"))]


@pytest.mark.parametrize("name", FUSABLE)
def test_a_fused_state_loads_into_a_fresh_fused_block(name, lived_in):
    block = lived_in(make(name, 4, 4))
    fused, fresh = block.fused().eval(), make(name, 4, 4).fused().eval()
    fresh.load_state_dict(fused.state_dict())
    x = images(block, 2, 6, 6)
    assert torch.equal(fresh(x), fused(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FUSABLE)
def test_a_half_precision_block_is_folded_exactly_and_rounded_once(name, dtype, lived_in):
    block = lived_in(make(name, 4, 4)).to(dtype).eval()
    fused = block.fused()
    assert all(parameter.dtype == dtype for parameter in fused.parameters())
    fused(images(block, 1, 5, 5, dtype))  # the authors' RepVGG raises here: weight float32, bias half
    exact = make(name, 4, 4).double()
    exact.load_state_dict(block.state_dict())  # the same numbers, in float64
    rounding = torch.finfo(dtype).eps
    for found, wanted in zip(fused.parameters(), exact.fused().parameters(), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", FUSABLE)
def test_float32_is_off_by_rounding_only(name, lived_in):
    block = lived_in(make(name, 16, 16)).eval()
    x = images(block, 2, 12, 12)
    assert relative(block.fused()(x), block(x)) <= 5e-6


@pytest.mark.parametrize(("name", "kernel_size"), with_sizes(FUSABLE, 5))
def test_shapes_fuse_without_numbers(name, kernel_size):
    with torch.device("meta"):
        fused = make(name, 8, 16, kernel_size=kernel_size, stride=2, groups=4, dilation=2).fused()
    assert all(parameter.is_meta for parameter in fused.parameters())
    with FakeTensorMode():
        block = make(name, 8, 16, kernel_size=kernel_size, stride=2, groups=4, dilation=2)
        fake = block.fused()
        y, z = (module(torch.randn(2, block.spec.c_in, 9, 9)) for module in (block, fake))
    s = block.deployed
    assert y.shape == z.shape == (2, s.c_out, -(-9 // s.stride), -(-9 // s.stride))
    if isinstance(fused, nn.Conv2d):
        assert fused.weight.shape == fake.weight.shape == (s.c_out, s.c_in // s.groups, kernel_size, kernel_size)
    for one, other in zip(fused.parameters(), fake.parameters(), strict=True):
        assert one.shape == other.shape
        assert one.is_contiguous()
        assert other.is_contiguous()


@pytest.mark.parametrize("name", FUSABLE)
def test_channels_last(name, lived_in):
    block = lived_in(make(name, 4, 4)).eval()
    x = images(block, 2, 6, 6)
    wanted = block(x)
    assert wanted.is_contiguous()
    block.to(memory_format=torch.channels_last)
    y = block(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, wanted) <= 5e-6
    if isinstance(fused := block.fused(), nn.Conv2d):
        assert fused.weight.is_contiguous()


@pytest.mark.parametrize("name", FUSABLE)
def test_fusing_under_inference_mode_gives_trainable_parameters(name):
    block = make(name, 4, 4)
    with torch.inference_mode():
        fused = block.fused()
    fused(images(block, 2, 5, 5)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())


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
