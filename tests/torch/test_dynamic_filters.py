"""Involution and CARAFE: a filter of its own for every pixel, against a loop over the pixels."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harness import blocks
from harness.blocks import ConvSpec
from harness.blocks.filters.carafe import CARAFE
from harness.blocks.parts.per_sample import KernelWork, MapWork
from harness.blocks.parts.window_sum import WindowSum
from harness.errors import Unsupported

DOUBLE = torch.float64


def assert_same(found: Tensor, wanted: Tensor, inputs: list[Tensor]) -> None:
    """Outputs and all gradients."""
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(wanted)
    of_found, of_wanted = (torch.autograd.grad(y, inputs, direction) for y in (found, wanted))
    for ours, theirs in zip(of_found, of_wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def normed(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """A batch norm by its running statistics."""
    mean, variance, gamma, beta = (
        t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return gamma * (x - mean) / torch.sqrt(variance + norm.eps) + beta


def point(x: Tensor, conv: nn.Conv2d) -> Tensor:
    y = torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], x)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def framed(x: Tensor, zeros: int) -> Tensor:
    """x inside a larger map of zeros, or without its rim."""
    if zeros < 0:
        return x[:, :, -zeros : x.shape[2] + zeros, -zeros : x.shape[3] + zeros]
    y = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * zeros, x.shape[3] + 2 * zeros)
    y[:, :, zeros : zeros + x.shape[2], zeros : zeros + x.shape[3]] = x
    return y


def pixel_by_pixel(x: Tensor, kernels: Tensor, spec: ConvSpec, scale: int = 1) -> Tensor:
    """kernels (N, G, k, k, rows, columns), of outputs; the window of each cut out, its channels with their kernel."""
    x = framed(x, spec.padding)
    groups, rows, columns = kernels.shape[1], *kernels.shape[4:]
    y = []
    for i, j in itertools.product(range(rows), range(columns)):
        top, left = i // scale * spec.stride, j // scale * spec.stride
        reach = spec.dilation * (spec.kernel_size - 1) + 1
        window = x[:, :, top : top + reach : spec.dilation, left : left + reach : spec.dilation]
        own = kernels[..., i, j].repeat_interleave(x.shape[1] // groups, 1)
        y.append((window * own).sum((2, 3)))
    return torch.stack(y, 2).reshape(*x.shape[:2], rows, columns)


def involved(block: nn.Module, x: Tensor, groups: int) -> Tensor:
    """The equation of harness.blocks.filters.involution, with none of its code."""
    spec, net = block.spec, block.kernels
    wide = framed(x, spec.margin)
    s = spec.stride
    cells = [
        [wide[:, :, i : i + s, j : j + s].mean((2, 3)) for j in range(0, wide.shape[3], s)]
        for i in range(0, wide.shape[2], s)
    ]
    small = torch.stack([torch.stack(row, 2) for row in cells], 2)
    made = point(torch.relu(normed(point(small, net.reduce), net.bn)), net.expand)
    k = spec.kernel_size
    kernels = made.reshape(made.shape[0], groups, k, k, *made.shape[2:])
    return normed(pixel_by_pixel(x, kernels, spec), block.bn)


@pytest.mark.parametrize(
    ("channels", "width", "groups", "n", "k", "stride", "dilation", "padding", "size"),
    [
        (8, 16, 1, 2, 3, 1, 1, None, (5, 6)),
        (32, 16, 2, 5, 3, 1, 1, None, (3, 4)),
        (32, 8, 4, 1, 3, 2, 1, None, (5, 7)),
        (64, 32, 2, 2, 5, 1, 2, None, (4, 3)),
        (16, 16, 1, 2, 7, 2, 1, None, (7, 6)),
        (6, 16, 1, 2, 3, 3, 2, None, (7, 8)),
        (4, 16, 1, 2, 3, 2, 1, 0, (7, 8)),
        (4, 16, 1, 2, 3, 2, 1, 3, (5, 4)),
        (16, 8, 2, 2, 1, 2, 1, None, (3, 3)),
    ],
)
def test_involution_is_its_equation(channels, width, groups, n, k, stride, dilation, padding, size, lived_in):
    block = blocks.create("involution", channels, channels, k, stride, 1, dilation, padding, group_width=width)
    block = lived_in(block).double().eval()
    x = torch.randn(n, channels, *size, dtype=DOUBLE, requires_grad=True)
    found = block(x)
    plain = nn.Conv2d(channels, channels, k, stride, block.spec.padding, dilation)
    assert found.shape == plain(x.detach().float()).shape
    assert_same(found, involved(block, x, groups), [x, *block.parameters()])


@pytest.mark.parametrize(
    ("stride", "dilation", "padding"), [(1, 1, None), (2, 1, None), (3, 2, None), (2, 1, 1), (1, 1, 5)]
)
def test_involution_with_a_constant_kernel_is_a_depthwise_convolution(stride, dilation, padding, lived_in):
    block = lived_in(blocks.create("involution", 32, 32, 5, stride, 1, dilation, padding)).double().eval()
    nn.init.zeros_(block.kernels.expand.weight)
    x = torch.randn(2, 32, 11, 8, dtype=DOUBLE)
    weight = block.kernels.expand.bias.reshape(2, 1, 5, 5).repeat_interleave(16, 0)
    y = F.conv2d(x, weight, None, stride, block.spec.padding, dilation, groups=32)
    torch.testing.assert_close(block(x), normed(y, block.bn), rtol=1e-11, atol=1e-11)


def test_the_kernel_of_an_output_is_made_of_the_pixels_at_its_place():
    """At stride 2 on an odd map the last pool window has one row: a mean over the zeros below it would halve it."""
    block = blocks.create("involution", 4, 4, stride=2).eval()
    pooled = block.kernels.pool(torch.arange(5.0).reshape(1, 1, 5, 1).expand(1, 4, 5, 5))
    torch.testing.assert_close(pooled[0, 0, :, 0], torch.tensor([0.5, 2.5, 4.0]))


@pytest.mark.parametrize(("channels", "k", "count"), [(64, 7, 4388), (128, 7, 17096), (256, 3, 25872)])
def test_involution_counts_of_the_reference(channels, k, count):
    block = blocks.create("involution", channels, channels, k)
    assert parameters(block) - parameters(block.bn) == count


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_involution_counts_over_random_places():
    draw = random.Random(1)
    for _ in range(20):
        width, k = draw.choice([8, 16, 32]), draw.choice([1, 3, 5, 7])
        c = width * draw.randint(1, 6)
        block = blocks.create("involution", c, c, k, draw.choice([1, 2]), group_width=width)
        assert parameters(block) == c * c // 4 + c // 2 + (c // 4 + 1) * k * k * c // width + 2 * c
    assert (
        parameters(blocks.create("involution", 6, 6)) == 6 * 1 + 2 + (1 + 1) * 9 + 12
    )  # one group, one hidden channel


def test_involution_refuses_a_group_that_would_be_cut():
    blocks.create("involution", 24, 24, group_width=8)
    blocks.create("involution", 24, 24, group_width=32)
    for place in ({"group_width": 16}, {"groups": 2, "group_width": 8}):
        with pytest.raises(Unsupported) as refused:
            blocks.create("involution", 24, 24, **place)
        assert refused.value.remedy
    with pytest.raises(Unsupported, match="keeps the number of channels"):
        blocks.create("involution", 16, 32)


def test_involution_starts_as_torch_starts_a_convolution():
    net = blocks.create("involution", 256, 256, 7).kernels
    for conv in (net.reduce, net.expand):
        bound = 1 / math.sqrt(conv.in_channels)
        assert conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def weights_of(net: nn.Module, x: Tensor, spec: ConvSpec, groups: int, scale: int) -> Tensor:
    """The weights of CARAFE as kernels (N, groups, k, k, outputs' rows, columns), shuffled before the softmax."""
    around = net.encode.kernel_size[0] // 2 + spec.margin  # what it looks at is there, where the margin is negative
    compressed = framed(point(x, net.compress), around)
    logits = F.conv2d(compressed, net.encode.weight, net.encode.bias, spec.stride)
    n, _, rows, columns = logits.shape
    k = spec.kernel_size
    shuffled = logits.new_zeros(n, groups * k * k, rows * scale, columns * scale)
    for channel, a, b in itertools.product(range(groups * k * k), range(scale), range(scale)):
        shuffled[:, channel, a::scale, b::scale] = logits[:, channel * scale**2 + a * scale + b]
    exponents = torch.exp(shuffled.reshape(n, groups, k, k, rows * scale, columns * scale))
    return exponents / exponents.sum((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("channels", "scale", "k", "groups", "compressed", "encoder", "n"),
    [(4, 2, 5, 1, 64, 3, 2), (6, 3, 3, 2, 8, 1, 1), (4, 1, 3, 4, 5, 5, 5), (8, 2, 3, 2, 16, 3, 2)],
)
def test_the_upsampler_is_its_equation(channels, scale, k, groups, compressed, encoder, n, lived_in):
    net = lived_in(CARAFE(channels, scale, k, groups, compressed, encoder)).double()
    x = torch.randn(n, channels, 3, 4, dtype=DOUBLE, requires_grad=True)
    spec = ConvSpec(channels, channels, k)
    kernels = weights_of(net.weights, x, spec, groups, scale)
    assert net(x).shape == (n, channels, scale * 3, scale * 4)
    assert_same(net(x), pixel_by_pixel(x, kernels, spec, scale), [x, *net.parameters()])


@pytest.mark.parametrize("scale", [2, 3])
def test_with_uniform_weights_the_upsampler_is_a_box_and_nearest_neighbours(scale):
    net = CARAFE(6, scale, groups=2).double()
    nn.init.zeros_(net.weights.encode.weight)
    x = torch.randn(2, 6, 7, 5, dtype=DOUBLE)
    wanted = F.interpolate(F.avg_pool2d(x, 5, 1, 2), scale_factor=scale, mode="nearest")
    torch.testing.assert_close(net(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("c_in", "c_out", "groups", "n", "k", "stride", "dilation", "padding"),
    [
        (4, 4, 1, 2, 3, 1, 1, None),
        (4, 6, 2, 5, 3, 1, 1, None),
        (8, 4, 4, 1, 5, 2, 1, None),
        (4, 4, 1, 2, 3, 3, 2, None),
        (4, 4, 1, 2, 3, 1, 1, 0),
        (4, 4, 2, 2, 5, 2, 1, 0),
        (4, 4, 1, 2, 3, 2, 2, 4),
    ],
)
def test_the_filter_is_its_equation(c_in, c_out, groups, n, k, stride, dilation, padding, lived_in):
    block = blocks.create("carafe", c_in, c_out, k, stride, 1, dilation, padding, groups_of_kernels=groups)
    block = lived_in(block).double().eval()
    x = torch.randn(n, c_in, 7, 6, dtype=DOUBLE, requires_grad=True)
    y = pixel_by_pixel(x, weights_of(block.weights, x, block.spec, groups, 1), block.spec)
    assert y.shape[2:] == nn.Conv2d(c_in, c_out, k, stride, block.spec.padding, dilation)(x.detach().float()).shape[2:]
    if c_in != c_out:
        y = point(y, block.point)
    assert_same(block(x), normed(y, block.bn), [x, *block.parameters()])


def test_the_filter_and_the_upsampler_at_scale_1_are_one_operator(lived_in):
    block = lived_in(blocks.create("carafe", 4, 4, 5)).double().eval()
    net = CARAFE(4, scale=1).double()
    net.load_state_dict({key: value for key, value in block.state_dict().items() if not key.startswith("bn")})
    x = torch.randn(2, 4, 6, 7, dtype=DOUBLE)
    torch.testing.assert_close(block(x), normed(net(x), block.bn), rtol=1e-12, atol=1e-12)


def test_carafe_counts():
    assert parameters(CARAFE(256)) == 74_148
    draw = random.Random(2)
    for _ in range(20):
        c, s, k, g = 4 * draw.randint(1, 40), draw.randint(1, 4), draw.choice([3, 5, 7]), draw.choice([1, 2, 4])
        assert parameters(CARAFE(c, s, k, g)) == 64 * c + 64 + 577 * s * s * k * k * g
        c_out = draw.choice([c, 2 * c])
        mixing = c * c_out if c != c_out else 0
        block = blocks.create("carafe", c, c_out, k, groups_of_kernels=g)
        assert parameters(block) == 64 * c + 64 + 577 * k * k * g + mixing + 2 * c_out


def test_carafe_starts_as_the_reference_says():
    net = CARAFE(256).weights
    bound = math.sqrt(6 / (256 + 64))
    assert net.compress.weight.abs().max() <= bound
    assert net.compress.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert net.encode.weight.std().item() == pytest.approx(1e-3, rel=0.03)
    assert not net.compress.bias.any()
    assert not net.encode.bias.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: CARAFE(8, kernel_size=4),
        lambda: CARAFE(8, encoder_size=2),
        lambda: CARAFE(8, groups=3),
        lambda: CARAFE(8, scale=0),
        lambda: blocks.create("carafe", 8, 8, 1),
        lambda: blocks.create("carafe", 6, 8, groups_of_kernels=4),
        lambda: blocks.create("carafe", 8, 8, groups=2),
    ],
)
def test_carafe_refuses_with_a_remedy(make):
    with pytest.raises(Unsupported) as refused:
        make()
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("stride", "dilation", "phases", "groups"), [(1, 1, 1, 1), (2, 1, 4, 2), (1, 2, 3, 4), (3, 2, 1, 2)]
)
def test_gradients_of_the_sum_once_and_twice(stride, dilation, phases, groups):
    spec = ConvSpec(4, 4, 3, stride, dilation=dilation)
    rows, columns = -(-4 // stride), -(-3 // stride)
    x = torch.randn(2, 4, 4, 3, dtype=DOUBLE, requires_grad=True)
    weights = torch.randn(2, groups, 9, phases, rows, columns, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(WindowSum(spec), (x, weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(WindowSum(spec), (x, weights), fast_mode=True)


def test_sums_in_bfloat16_are_rounded_once():
    spec = ConvSpec(16, 16, 7)
    x, weights = (
        torch.rand(2, 16, 9, 9).bfloat16().requires_grad_(),
        torch.rand(2, 1, 49, 1, 9, 9).bfloat16().requires_grad_(),
    )
    exactly = [tensor.detach().double().requires_grad_() for tensor in (x, weights)]
    y, wanted = WindowSum(spec)(x, weights), WindowSum(spec)(*exactly)
    direction = torch.rand_like(y)
    found = [y, *torch.autograd.grad(y, [x, weights], direction)]
    for ours, theirs in zip(found, [wanted, *torch.autograd.grad(wanted, exactly, direction.double())], strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=0)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that anything returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize(
    ("module", "channels", "outputs"), [(blocks.create("involution", 64, 64, 7), 64, 64), (CARAFE(64), 64, 256)]
)
def test_the_window_is_never_unfolded(module, channels, outputs):
    """Neither way is anything larger than the output, the weights or the padded map: 49 or 100 maps are not made."""
    x = torch.randn(2, channels, 20, 20, requires_grad=True)
    with Largest() as largest:
        module(x).square().sum().backward()
    weights = 4 * 49 if outputs == 64 else 100
    assert largest.elements == 2 * max(outputs * 20 * 20, weights * 20 * 20, channels * 26 * 26 * (outputs == 64))


@pytest.mark.parametrize(
    ("module", "k", "scale"), [(blocks.create("involution", 32, 32, 5, 2), 5, 1), (CARAFE(32, 3, groups=2), 5, 3)]
)
def test_the_sum_is_counted_as_work_on_the_map_and_the_weights_as_work_on_kernels(module, k, scale):
    counted = {torch.ops.aten.addcmul_: lambda *shapes, out_shape, **more: math.prod(out_shape)}
    stride = 2 if scale == 1 else 1
    x = torch.empty(2, 32, 8, 10, device="meta")
    with FlopCounterMode(display=False, custom_mapping=counted) as counter, torch.no_grad():
        module.to("meta")(x)
    flops = counter.get_flop_counts()
    marks = {
        mark: [name for name, part in module.named_modules() if isinstance(part, mark)]
        for mark in (MapWork, KernelWork)
    }
    (work,), (kernels,) = (
        flops[f"{type(module).__name__}.{marks[mark][0]}"].values() for mark in (MapWork, KernelWork)
    )
    assert work == 2 * 32 * k * k * scale**2 * (8 // stride) * (10 // stride)
    assert kernels + work == sum(flops["Global"].values())


@pytest.mark.parametrize("name", ["involution", "carafe"])
def test_one_sample_of_one_pixel_more_can_be_trained_on(name):
    """The kernels' norms are over the map: a batch of one is enough."""
    block = blocks.create(name, 8, 8).train()
    block(torch.randn(1, 8, 2, 1)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
