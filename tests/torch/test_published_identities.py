"""Identities that papers state in passing, each held against plain operations in float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import Kernel, algebra
from harness.blocks.parts.branches import ConvBN, Parallel
from harness.blocks.parts.linear_branches import COMPONENTS
from harness.blocks.reparam.linearized import Scaled

F64 = torch.float64


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def largest(y: Tensor) -> float:
    return y.abs().max().item()


# --- sizes: VGG's stacks (arXiv:1409.1556, section 2.3), group convolution, Winograd (arXiv:1509.09308, section 4) ---


@pytest.mark.parametrize(("count", "size", "share"), [(2, 5, 18 / 25), (3, 7, 27 / 49)])
def test_stacked_3x3_see_as_far_as_a_larger_kernel_and_have_fewer_weights(count, size, share):
    """What one output can see is where its gradient on the input is not zero: size x size, all of it and no more."""
    stack = nn.Sequential(*(blocks.create("conv", 6, 6, padding=0).fused() for _ in range(count))).double()
    whole = blocks.create("conv", 6, 6, size, padding=0).fused().double()
    seen = []
    for layers in (stack, whole):
        x = randn(1, 6, 13, 13).requires_grad_()
        y = layers(x)
        (gradient,) = torch.autograd.grad(y[0, 0, y.shape[2] // 2, y.shape[3] // 2], x)
        seen.append(gradient[0].abs().sum(0) > 0)
    first = (13 - size) // 2
    expected = torch.zeros(13, 13, dtype=torch.bool)
    expected[first : first + size, first : first + size] = True
    assert torch.equal(seen[0], expected)
    assert torch.equal(seen[1], expected)
    assert sum(layer.weight.numel() for layer in stack) / whole.weight.numel() == pytest.approx(share, rel=1e-15)


def test_8_groups_have_an_eighth_of_the_weights():
    dense, grouped = (blocks.create("conv", 32, 64, groups=groups).kernel().weight.numel() for groups in (1, 8))
    assert grouped * 8 == dense


def test_winograd_needs_4_9_of_the_multiplications():
    """F(2x2, 3x3): Y = A' [(G g G') * (B' d B)] A, 16 products for 4 outputs of a 4x4 tile d, where there were 36."""
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=F64)
    b = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=F64)
    a = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=F64)
    x, weight = randn(2, 3, 8, 6), randn(5, 3, 3, 3)
    tiles = F.unfold(F.pad(x, [1] * 4), 4, stride=2).view(2, 3, 4, 4, -1)
    transformed = torch.einsum("ar,oirs,bs->oiab", g, weight, g), torch.einsum("ar,nirst,bs->niabt", b, tiles, b)
    products = torch.einsum("oiab,niabt->noiabt", *transformed)
    y = torch.einsum("ra,noiabt,sb->norst", a, products, a).reshape(2, 5, 2, 2, 4, 3)
    wanted = F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(y.permute(0, 1, 4, 2, 5, 3).reshape(2, 5, 8, 6), wanted, rtol=1e-13, atol=1e-13)
    assert products.numel() * 9 == wanted.numel() * 3 * 9 * 4


# --- DBB's transforms (arXiv:2103.13425, section 3.2) and ACNet's additivity (arXiv:1908.03930, section 3.2) ---

PLACES = list(product([1, 2, 4], [1, 2], [1, 2]))
"""(groups, stride, dilation) for 4 -> 8 channels."""


def conv(x: Tensor, kernel: Kernel, place: tuple[int, int, int], padding: tuple[int, int] | int = 0) -> Tensor:
    groups, stride, dilation = place
    return F.conv2d(x, kernel.weight, kernel.bias, stride, padding, dilation, groups)


def some(c_out: int, inputs: int, rows: int, columns: int) -> Kernel:
    return Kernel(randn(c_out, inputs, rows, columns), randn(c_out))


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_t1_a_batch_norm_goes_into_the_convolution(place, lived_in):
    x, weight, norm = randn(2, 4, 9, 8), randn(8, 4 // place[0], 3, 3), lived_in(nn.BatchNorm2d(8)).double().eval()
    wanted = norm(F.conv2d(x, weight, None, place[1], place[2], place[2], place[0]))
    same(conv(x, algebra.fold(weight, norm), place, place[2]), wanted)


@pytest.mark.parametrize("place", PLACES)
def test_t2_branches_of_one_shape_are_their_sum(place):
    x, kernels = randn(2, 4, 9, 8), [some(8, 4 // place[0], 3, 3) for _ in range(3)]
    same(conv(x, algebra.add(kernels), place, 1), sum(conv(x, kernel, place, 1) for kernel in kernels))


@pytest.mark.parametrize("place", PLACES)
def test_t3_a_1x1_and_a_kxk_behind_it_are_one_kxk(place):
    """Exact at the rim only where the first one's output is there too; zeros in its place cost the rim, no more."""
    groups, _, dilation = place
    x, first, second = randn(2, 4, 13, 12), some(6 * groups, 4 // groups, 1, 1), some(8, 6, 3, 3)
    one = conv(x, algebra.chain_folded(first, second, groups), place, dilation)
    middle = conv(F.pad(x, [dilation] * 4), first, (groups, 1, 1))
    same(one, conv(middle, second, place))
    zeros = conv(conv(x, first, (groups, 1, 1)), second, place, dilation)
    assert largest(one - zeros) > 0.1
    same(one[:, :, 2:-2, 2:-2], zeros[:, :, 2:-2, 2:-2])
    unbiased = algebra.chain_folded(first._replace(bias=torch.zeros_like(first.bias)), second, groups)
    zeros = conv(conv(x, first, (groups, 1, 1)) - first.bias[:, None, None], second, place, dilation)
    same(conv(x, unbiased, place, dilation), zeros)


@pytest.mark.parametrize("place", PLACES)
def test_t4_outputs_side_by_side_are_kernels_side_by_side(place):
    groups = place[0]
    x, one, other = randn(2, 4, 9, 8), some(groups, 4 // groups, 3, 3), some(2 * groups, 4 // groups, 3, 3)
    found = conv(x, Kernel(*(algebra.concat(a, b, groups) for a, b in zip(one, other, strict=True))), place, 1)
    maps = [conv(x, kernel, place, 1) for kernel in (one, other)]
    each = 3 * torch.arange(groups)  # a group has one output of the first, then two of the second
    same(found[:, each], maps[0])
    same(found[:, torch.stack([each + 1, each + 2], 1).flatten()], maps[1])


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_t5_average_pooling_is_a_convolution(groups, stride, kernel_size):
    """Zeros around the map count, as torch has it."""
    x = randn(2, 4, 9, 8)
    taps = Kernel(algebra.average(4, groups, kernel_size, x), x.new_zeros(4))
    wanted = F.avg_pool2d(x, kernel_size, stride, kernel_size // 2)
    same(conv(x, taps, (groups, stride, 1), kernel_size // 2), wanted)


@pytest.mark.parametrize("place", PLACES)
def test_t6_and_acnets_additivity(place):
    """1x1, 1xk and kx1 are k x k with zeros around; so a square, a row and a column add up to a skeleton."""
    dilation = place[2]
    x, shapes = randn(2, 4, 13, 12), [(5, 5), (5, 1), (1, 5), (1, 1), (3, 3)]
    kernels = {shape: some(8, 4 // place[0], *shape) for shape in shapes}
    maps = {(r, c): conv(x, kernels[r, c], place, (dilation * (r // 2), dilation * (c // 2))) for r, c in shapes}
    padded = {shape: Kernel(algebra.embed(kernel.weight, 5), kernel.bias) for shape, kernel in kernels.items()}
    for shape in shapes:
        same(conv(x, padded[shape], place, 2 * dilation), maps[shape])
    cross = shapes[:3]
    one = algebra.add(padded[shape] for shape in cross)
    same(conv(x, one, place, 2 * dilation), sum(maps[shape] for shape in cross))


@pytest.mark.parametrize("groups", [1, 2])
def test_two_3x3_in_a_row_are_a_5x5_where_all_padding_comes_first(groups):
    x, first, second = randn(1, 4, 9, 9), randn(6, 4 // groups, 3, 3), randn(8, 6 // groups, 3, 3)
    one = F.conv2d(x, algebra.stack(first, second, groups), None, 1, 2, 1, groups)
    same(one, F.conv2d(F.conv2d(x, first, None, 1, 2, 1, groups), second, None, 1, 0, 1, groups))
    between = F.conv2d(F.conv2d(x, first, None, 1, 1, 1, groups), second, None, 1, 1, 1, groups)
    assert largest(one - between) > 0.1
    same(one[:, :, 1:-1, 1:-1], between[:, :, 1:-1, 1:-1])


# --- OREPA's proposition 1 (arXiv:2204.00826, section 3): which topologies change how the whole kernel is optimized ---
#
# W is the kernel of all branches together and G the loss's gradient on it. One step of rate r moves one kernel by -r G.
# Branches of one layer are fixed linear maps of their weights, W = sum_j E_j w_j: they move it by -r sum_j E_j E_j' G,
# a map that neither data nor weights change: n times the rate for n whole kernels, a rate for each tap where a branch
# has some of the taps. A learned scale is a second layer: W = sum_j v_j W_j moves by -r sum_j (v_j^2 E_j E_j' G +
# <G, W_j> W_j), up to r^2, and no rate makes the second term of G. Behind a batch norm <G, W> = 0, as the loss does not
# see how large W is: the term is zero for a single branch, and for branches that are all alike, scaled or not.

PLACE = blocks.ConvSpec(24, 8)
"""Inputs enough that G's nine taps do not span everything that a kernel can do."""
RATE = 1e-3


class Sum(nn.Module):
    """Kernels 3x3 in parallel, each scaled where that is asked for, and a batch norm or nothing behind the sum."""

    def __init__(self, count: int, *, scaled: bool, norm: bool = True) -> None:
        super().__init__()
        kernels: dict[str, nn.Module] = {str(i): ConvBN(PLACE) for i in range(count)}
        for kernel in kernels.values():
            kernel.bn = nn.Identity()
        self.branches = Parallel(3, {n: Scaled(k, PLACE.c_out) if scaled else k for n, k in kernels.items()})
        self.bn = nn.BatchNorm2d(PLACE.c_out) if norm else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.bn(self.branches(x_NCHW))


def composed(block: nn.Module) -> Tensor:
    """W."""
    kernel = block.branches.kernel()
    return (kernel.weight if isinstance(kernel, Kernel) else kernel).detach().clone()


def loss(y: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).cos()
    return (y * weights + y.tanh() ** 2).mean()


def ready(block: nn.Module) -> nn.Module:
    """In float64; the norm's eps, which keeps <G, W> from being zero, next to nothing."""
    if isinstance(block.bn, nn.BatchNorm2d):
        block.bn.eps = 1e-300
    return block.double().train()


def one_step(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """How a step of SGD on all the block's parameters moves W, over the rate; and G, from one kernel in W's place."""
    before = composed(block).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(block.bn(F.conv2d(x, before, None, 1, 1))), before)
    loss(block(x)).backward()
    torch.optim.SGD(block.parameters(), lr=RATE).step()
    return (composed(block) - before.detach()) / RATE, gradient


def unexplained(moved: Tensor, gradient: Tensor) -> float:
    """The share of a movement of W that no rates explain, one for each output and pair of taps; 0 to 1."""
    bases = torch.linalg.qr(gradient.flatten(2)).Q  # (O, C, taps)
    moved = moved.flatten(2)
    return float((moved - bases @ (bases.mT @ moved)).norm() / moved.norm())


def taps(centre: float, cross: float, corner: float) -> Tensor:
    return torch.tensor([[corner, cross, corner], [cross, centre, cross], [corner, cross, corner]], dtype=F64)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_kernels_side_by_side_are_one_kernel_at_so_many_times_the_rate(count):
    """Five steps, with momentum. (Not with weight decay: each decays at the rate of one.)"""
    many, one = ready(Sum(count, scaled=False)), ready(Sum(1, scaled=False))
    with torch.no_grad():
        one.branches[0].conv.weight.copy_(composed(many))
    optimizers = [
        torch.optim.SGD([{"params": b.branches.parameters(), "lr": r}, {"params": b.bn.parameters()}], 0.05, 0.9)
        for b, r in ((many, 0.05), (one, 0.05 * count))
    ]
    start, x = composed(one), randn(4, 24, 8, 8)
    for _ in range(5):
        for block, optimizer in zip((many, one), optimizers, strict=True):
            optimizer.zero_grad()
            loss(block(x)).backward()
            optimizer.step()
    assert largest(composed(one) - start) > 1e-3
    same(composed(many), composed(one))


@pytest.mark.parametrize(
    ("of", "rates"), [("acb", taps(3, 2, 1)), ("repvgg", taps(2, 1, 1)), ("mobileone", taps(5, 4, 4))]
)
def test_unscaled_branches_of_one_layer_have_a_fixed_rate_for_each_tap(of, rates, lived_in):
    """As many times the rate as there are branches with this tap: not one kernel's step, but never more than a rate."""
    block = ready(lived_in(blocks.BLOCKS["linearized"](PLACE, of=of, scaling="none")))
    moved, gradient = one_step(block, randn(4, 24, 8, 8))
    torch.testing.assert_close(moved, -gradient * rates, rtol=0, atol=1e-9 * largest(gradient))
    assert unexplained(moved, gradient) < 1e-9


@pytest.mark.parametrize("scaling", ["vector", "scalar"])
@pytest.mark.parametrize(("of", "rates"), [("acb", taps(3, 2, 1)), ("repvgg", taps(2, 1, 1))])
def test_scaled_branches_move_the_kernel_where_no_rate_would(of, rates, scaling, lived_in):
    x = randn(4, 24, 8, 8)
    fresh = ready(blocks.BLOCKS["linearized"](PLACE, of=of, scaling=scaling))
    assert unexplained(*one_step(fresh, x)) > 0.005  # scales 1, weights small against them
    block = ready(lived_in(fresh))
    scales = [branch.scale.detach().clone().view(-1, 1, 1, 1) for branch in block.branches]
    kernels = [algebra.embed(branch.branch.kernel().weight.detach().clone(), 3) for branch in block.branches]
    block.zero_grad()
    moved, gradient = one_step(block, x)
    assert unexplained(moved, gradient) > 0.1
    wanted, axes = torch.zeros_like(moved), (1, 2, 3) if scaling == "vector" else (0, 1, 2, 3)
    for v, kernel, branch in zip(scales, kernels, block.branches, strict=True):
        along = (gradient * kernel).sum(axes, keepdim=True)
        own = gradient * (kernel != 0) if list(branch.branch.parameters()) else torch.zeros_like(gradient)
        wanted -= v**2 * own + along * kernel - RATE * v * along * own
    torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-9 * largest(wanted))


def test_one_scaled_kernel_is_one_kernel_behind_a_batch_norm_only(lived_in):
    x = randn(4, 24, 8, 8)
    for norm in (True, False):
        block = ready(lived_in(Sum(1, scaled=True, norm=norm)))
        scale = block.branches[0].scale.detach().clone()
        moved, gradient = one_step(block, x)
        if norm:
            wanted = -gradient * scale.square()[:, None, None, None]
            torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-9 * largest(gradient))
            same(block.branches[0].scale, scale)
        else:
            assert unexplained(moved, gradient) > 0.1


def test_scaled_kernels_that_are_alike_are_one_kernel_too(lived_in):
    x, block = randn(4, 24, 8, 8), ready(lived_in(Sum(3, scaled=True)))
    for alike in (False, True):
        if alike:
            for branch in block.branches:
                branch.branch.load_state_dict(block.branches[0].branch.state_dict())
        block.zero_grad()
        moved, gradient = one_step(block, x)
        assert unexplained(moved, gradient) < 1e-9 if alike else unexplained(moved, gradient) > 0.1


ONE_LAYER = {"origin", "average", "prior", "point"}


@pytest.mark.parametrize(
    ("used", "scaling", "differently"),
    [
        ({"origin"}, "none", False),
        ({"origin"}, "vector", False),  # the norm behind it
        (ONE_LAYER, "none", False),
        (ONE_LAYER, "vector", True),
        ({"chain"}, "none", True),  # two layers
        ({"separable"}, "none", True),
        (set(COMPONENTS), "vector", True),
    ],
)
def test_the_proposition_for_the_components_of_orepa(used, scaling, differently, lived_in):
    switches = {name: name in used for name in COMPONENTS}
    block = ready(lived_in(blocks.BLOCKS["orepa"](PLACE, scaling=scaling, **switches)))
    share = unexplained(*one_step(block, randn(4, 24, 8, 8)))
    assert share > 0.2 if differently else share < 1e-9


def test_dbb_is_optimized_differently_without_scales_too():
    """Its 1x1-kxk is two layers: the proposition's second half is not about every block of several branches."""
    block = ready(blocks.BLOCKS["linearized"](PLACE, of="dbb", scaling="none"))
    assert unexplained(*one_step(block, randn(4, 24, 8, 8))) > 0.005
