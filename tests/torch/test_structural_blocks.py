"""The structural blocks of several convolutions: each is its equation, folds, starts and refuses as it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from structural_checks import norms_of, relative
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks, fuse
from harness.blocks import BLOCKS, Block, ConvSpec
from harness.errors import Unsupported

PLACES = [
    ConvSpec(8, 8),
    ConvSpec(6, 9, stride=2),
    ConvSpec(5, 4, 5, stride=3),
    ConvSpec(4, 4, 5, dilation=2),
    ConvSpec(8, 8, margin=1),
    ConvSpec(4, 6, 5, stride=2, margin=-1),
    ConvSpec(4, 4, 5, margin=-2),
    ConvSpec(6, 8, stride=2, dilation=2, margin=-2),
    ConvSpec(4, 6, 5, stride=2, dilation=3, margin=2),
]


def placed(name: str, spec: ConvSpec, **options: int | bool) -> Block:
    """The block there, or with the next kernel size that it has and the same margin."""
    sizes = BLOCKS[name].kernel_sizes
    return BLOCKS[name](replace(spec, kernel_size=max(spec.kernel_size, sizes[0])), **options)


class Parts:
    """A block's weights and norms alone, in the order of its paper; where each convolution stands is said anew."""

    def __init__(self, block: Block) -> None:
        self.spec = block.spec
        self.weights = iter([conv.weight for conv in block.modules() if isinstance(conv, nn.Conv2d)])
        self.norms = iter(norms_of(block))

    def norm(self, y: Tensor) -> Tensor:
        bn = next(self.norms)
        mean, var = bn.running_mean, bn.running_var
        if bn.training:
            mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
        c = (slice(None), None, None)
        return (y - mean[c]) / torch.sqrt(var[c] + bn.eps) * bn.weight[c] + bn.bias[c]

    def point(self, x: Tensor) -> Tensor:
        return self.norm(torch.einsum("oi,nihw->nohw", next(self.weights).flatten(1), x))

    def conv(self, x: Tensor, groups: int = 1, grown: int = 0) -> Tensor:
        """The spec's convolution; `grown`: of a kernel so much larger and padded accordingly."""
        s = self.spec
        padding = s.dilation * ((s.kernel_size + grown) // 2) + s.margin
        return self.norm(F.conv2d(x, next(self.weights), None, s.stride, padding, s.dilation, groups))

    def same(self, x: Tensor, size: int) -> Tensor:
        s = self.spec
        return F.conv2d(x, next(self.weights), None, 1, s.dilation * (size // 2), s.dilation)

    def framed(self, x: Tensor) -> Tensor:
        """x with the margin around it."""
        return F.pad(x, [self.spec.margin] * 4)

    def strided(self, x: Tensor) -> Tensor:
        """What a strided 1x1 reads."""
        return self.framed(x)[:, :, :: self.spec.stride, :: self.spec.stride]

    def added(self, y: Tensor, x: Tensor) -> Tensor:
        s = self.spec
        return y + self.framed(x) if s.c_in == s.c_out and s.stride == 1 else y


def depthwise_separable(p: Parts, x: Tensor) -> Tensor:
    return p.point(p.conv(x, groups=x.shape[1]).clamp(min=0))


def bottleneck(p: Parts, x: Tensor, residual: bool = False) -> Tensor:
    y = p.point(p.conv(p.point(x).clamp(min=0)).clamp(min=0))
    return p.added(y, x) if residual else y


def inverted_residual(p: Parts, x: Tensor, expand: int = 6, residual: bool = True) -> Tensor:
    y = p.point(x).clamp(0, 6) if expand > 1 else x
    y = p.point(p.conv(y, groups=y.shape[1]).clamp(0, 6))
    return p.added(y, x) if residual else y


def residual(p: Parts, x: Tensor) -> Tensor:
    y = p.norm(p.same(p.conv(x).clamp(min=0), p.spec.kernel_size))
    return p.added(y, x) if p.spec.c_in == p.spec.c_out and p.spec.stride == 1 else y + p.point(p.strided(x))


def inception(p: Parts, x: Tensor, five: bool = True) -> Tensor:
    one = p.point(p.strided(x))
    square = p.conv(p.point(x).clamp(min=0))
    large = p.conv(p.point(x).clamp(min=0), grown=2 if five else 0)
    return torch.cat([one, square, large, p.point(max_pooled(p.spec, x))], 1)


def max_pooled(s: ConvSpec, x: Tensor) -> Tensor:
    """By looking at every window's taps."""
    framed = F.pad(F.pad(x, [max(s.margin, 0)] * 4), [s.padding - max(s.margin, 0)] * 4, value=-math.inf)
    reach = s.dilation * (s.kernel_size - 1)
    height, width = (framed.shape[axis] - reach for axis in (2, 3))
    starts = range(0, reach + 1, s.dilation)
    taps = [framed[:, :, i : i + height : s.stride, j : j + width : s.stride] for i in starts for j in starts]
    return torch.stack(taps).amax(0)


def dense(p: Parts, x: Tensor, layers: int = 2, growth: int = 32) -> Tensor:
    """The transition's 1x1 in front of the pool, as DenseNet has it."""
    maps = [p.framed(x)]
    for _ in range(layers):
        y = p.norm(torch.cat(maps, 1)).clamp(min=0)
        maps.append(p.same(p.point(y).clamp(min=0), p.spec.kernel_size))
        assert maps[-1].shape[1] == growth
    y = p.norm(torch.cat(maps, 1)).clamp(min=0)
    return p.norm(average_pooled(torch.einsum("oi,nihw->nohw", next(p.weights).flatten(1), y), p.spec.stride))


def average_pooled(x: Tensor, stride: int) -> Tensor:
    """Window by window, each as large as there are pixels."""
    rows, columns = (range(0, side, stride) for side in x.shape[2:])
    means = [[x[:, :, i : i + stride, j : j + stride].mean((2, 3)) for j in columns] for i in rows]
    return torch.stack([torch.stack(row, -1) for row in means], -2)


def stacked_3x3(p: Parts, x: Tensor, activation: bool = True) -> Tensor:
    s, left = p.spec, p.spec.margin
    y = x
    for i in range(s.kernel_size // 2):
        if i and activation:
            y = y.clamp(min=0)
        first = i == 0
        # without a stride a negative margin takes the padding of one after the other
        margin = left if s.stride > 1 else max(left, -s.dilation)
        y = F.pad(y, [s.dilation + margin] * 4)
        y = p.norm(F.conv2d(y, next(p.weights), None, s.stride if first else 1, 0, s.dilation))
        left -= margin
    return y


EQUATIONS: dict[str, Callable[..., Tensor]] = {
    "bottleneck": bottleneck,
    "dense": dense,
    "depthwise_separable": depthwise_separable,
    "inception": inception,
    "inverted_residual": inverted_residual,
    "residual": residual,
    "stacked_3x3": stacked_3x3,
}

NAMES = sorted(EQUATIONS)

VARIANTS: list[tuple[str, dict[str, int | bool]]] = [
    *((name, {}) for name in EQUATIONS),
    ("bottleneck", {"residual": True}),
    ("inverted_residual", {"expand": 1}),
    ("inverted_residual", {"residual": False}),
    ("inception", {"five": False}),
    ("dense", {"layers": 4, "growth": 16}),
    ("stacked_3x3", {"activation": False}),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_a_block_is_its_equation(name, options, place, training, lived_in):
    """Outputs, and gradients of x and of all parameters; x is left as it was, whatever is done in place."""
    block = lived_in(placed(name, place, **options)).double().train(training)
    x = torch.randn(3, place.c_in, 13, 10, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    found, wanted = block(x), EQUATIONS[name](Parts(block), x, **options)
    s = block.spec
    kernel = torch.zeros(s.c_out, s.c_in, s.kernel_size, s.kernel_size, dtype=x.dtype)
    assert found.shape == F.conv2d(x, kernel, None, s.stride, s.padding, s.dilation).shape
    assert relative(found, wanted) <= 1e-12
    assert torch.equal(x, before)
    direction = torch.randn_like(wanted)
    parameters = [x, *block.parameters()]
    for a, b in zip(
        torch.autograd.grad(found, parameters, direction),
        torch.autograd.grad(wanted, parameters, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def seen(module: nn.Module, side: int, at: int) -> list[int]:
    """The rows of x that one output pixel reads."""
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[:, :, at, at].sum(), x)
    return gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()


def positive(module: nn.Module) -> nn.Module:
    """No ReLU stops anything and nothing cancels."""
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.01)
    return module.double().eval()


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("k", [5, 7, 9, 11, 13])
def test_a_stack_sees_the_very_pixels_of_the_large_kernel(k, dilation):
    stack, plain = (positive(blocks.create(name, 3, 4, k, 1, 1, dilation)) for name in ("stacked_3x3", "conv"))
    rows = seen(plain, 41, 20)
    assert len(rows) == k
    assert rows[-1] - rows[0] == dilation * (k - 1)
    assert seen(stack, 41, 20) == rows


@pytest.mark.parametrize(("k", "stride"), [(5, 2), (7, 2), (5, 3)])
def test_behind_a_stride_the_stack_sees_more_around_the_same_centre(k, stride):
    stack, plain = (positive(blocks.create(name, 3, 4, k, stride)) for name in ("stacked_3x3", "conv"))
    rows, theirs = seen(stack, 41, 6), seen(plain, 41, 6)
    assert len(rows) == 3 + 2 * (k // 2 - 1) * stride > len(theirs) == k
    assert rows[0] + rows[-1] == theirs[0] + theirs[-1]


@pytest.mark.parametrize(("k", "dilation"), [(5, 1), (7, 2)])
def test_without_padding_a_stack_is_the_inside_of_the_padded_one(k, dilation, lived_in):
    same = lived_in(blocks.create("stacked_3x3", 4, 6, k, 1, 1, dilation)).double().eval()
    x = torch.randn(2, 4, 20, 19, dtype=torch.float64)
    for less in range(1, dilation * (k // 2) + 1):
        block = blocks.create("stacked_3x3", 4, 6, k, 1, 1, dilation, dilation * (k // 2) - less).double().eval()
        block.load_state_dict(same.state_dict())
        assert block(x).shape == same(x)[:, :, less:-less, less:-less].shape
    assert relative(block(x), same(x)[:, :, less:-less, less:-less]) <= 1e-12


def test_a_residual_unit_with_zero_init_starts_as_its_shortcut():
    x = torch.randn(4, 6, 7, 8)
    for training in (True, False):
        assert torch.equal(blocks.create("residual", 6, 6, zero_init=True).train(training)(x), x)
        assert not torch.allclose(blocks.create("residual", 6, 6).train(training)(x), x, atol=0.1)
    strided = blocks.create("residual", 6, 8, stride=2, zero_init=True)
    torch.testing.assert_close(strided(x), strided.projection(x), rtol=0, atol=0)


def test_a_residual_unit_with_zero_init_leaves_its_start():
    block = blocks.create("residual", 4, 4, zero_init=True)
    before = [parameter.clone() for parameter in block.parameters()]
    x = torch.randn(4, 4, 7, 8)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        block(x).square().mean().backward()
        optimizer.step()
    assert not [p for p, old in zip(block.parameters(), before, strict=True) if torch.equal(p, old)]


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_start_as_torchs_and_norms_as_the_identity(name):
    """Uniform within 1 / sqrt(fan in): its limit and its deviation."""
    block = blocks.create(name, 64, 64, max(5, BLOCKS[name].kernel_sizes[0]))
    for conv in (conv for conv in block.modules() if isinstance(conv, nn.Conv2d)):
        limit = 1 / math.sqrt(conv.weight[0].numel())
        assert conv.bias is None
        assert 0.97 * limit < conv.weight.abs().max().item() <= limit
        assert conv.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
    for each in norms_of(block):
        assert torch.equal(each.weight, torch.ones_like(each.weight))
        assert not each.bias.any()


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_fuse_folds_every_batch_norm_that_follows_a_convolution(name, options, place, lived_in):
    """DenseNet's norms in front of convolutions stay: the layers' first ones and the transition's."""
    block = lived_in(placed(name, place, **options)).double().eval()
    x = torch.randn(2, place.c_in, 13, 10, dtype=torch.float64)
    fused = fuse(block)
    with torch.no_grad():
        assert relative(fused(x), block(x)) <= 1e-12
    assert len(norms_of(fused)) == (len(block.layers) + 1 if name == "dense" else 0)
    assert len(norms_of(block)) > len(norms_of(fused))


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_refused_with_a_remedy(name):
    with pytest.raises(Unsupported, match="has no groups") as refused:
        blocks.create(name, 8, 8, BLOCKS[name].kernel_sizes[0], groups=2)
    assert refused.value.remedy == "use groups 1"


@pytest.mark.parametrize("name", ["depthwise_separable", "inverted_residual", "inception", "stacked_3x3"])
def test_a_1x1_is_refused_where_it_means_nothing(name):
    with pytest.raises(Unsupported, match="has no kernel size 1"):
        blocks.create(name, 8, 8, 1)


@pytest.mark.parametrize("c_out", [1, 2, 3])
def test_an_inception_module_has_something_in_each_branch(c_out):
    with pytest.raises(Unsupported, match=f"c_out = {c_out} ") as refused:
        blocks.create("inception", 8, c_out)
    assert "c_out >= 4" in refused.value.remedy
    assert blocks.create("inception", 8, 4)(torch.randn(2, 8, 5, 5)).shape == (2, 4, 5, 5)
