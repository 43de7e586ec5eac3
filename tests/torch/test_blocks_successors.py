"""RepVGG's successors, offline: each is its paper's equation, and its fused form, against code written anew here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from itertools import product
from operator import add

import pytest
import timm.models.byobnet as byobnet
import timm.models.fastvit as fastvit
import timm.models.repvit as repvit
import torch
from timm.layers import SqueezeExcite
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import FusableBlock, algebra
from harness.errors import Unsupported

SPREAD = {  # of the reference, section 11, not of the block's own table
    5: [(3, 1), (3, 2)],
    7: [(5, 1), (3, 2), (3, 3)],
    9: [(5, 1), (5, 2), (3, 3), (3, 4)],
    11: [(5, 1), (5, 2), (3, 3), (3, 4), (3, 5)],
    13: [(5, 1), (7, 2), (3, 3), (3, 4), (3, 5)],
    15: [(5, 1), (7, 2), (3, 3), (3, 5), (3, 7)],
    17: [(5, 1), (9, 2), (3, 4), (3, 5), (3, 7)],
}

Place = tuple[int, int, int, int, int, int, int | None]
"""c_in, c_out, kernel size, stride, groups, dilation, padding."""

DENSE = [(6, 6, 1, 1, None), (6, 9, 2, 1, None), (6, 6, 1, 3, None), (4, 8, 1, 2, 0), (4, 4, 1, 1, 4)]
DEPTHWISE = [(6, 6, 1, 6, None), (5, 5, 1, 5, 0), (5, 5, 1, 5, 4)]
STRIDED = [*DEPTHWISE, (6, 6, 2, 6, None), (5, 5, 3, 5, 1)]
"""c_in, c_out, stride, groups, padding."""


def cases(name: str, layouts: list[tuple], sizes: list[tuple[int, int]], *options: dict) -> list[tuple]:
    """Every layout at every size and dilation; options take turns."""
    places = [(i, o, k, s, g, d, p) for (i, o, s, g, p), (k, d) in product(layouts, sizes)]
    return [(name, place, options[n % len(options)] if options else {}) for n, place in enumerate(places)]


CASES = [
    *cases("mobileone", DENSE + STRIDED, [(1, 1), (3, 1), (5, 2)], {}, {"branches": 1, "se": True}),
    *cases("mobileone", [(4, 4, 1, 1, None)], [(1, 1), (3, 1)], {"branches": 8}),
    *cases("repmixer", DEPTHWISE, [(1, 1), (3, 1), (7, 1), (3, 3)], {}, {"layer_scale": False}, {}),
    *cases("repvgg_dw", DEPTHWISE, [(1, 1), (3, 1), (5, 2)]),
    *cases("qarepvgg", DENSE + STRIDED, [(1, 1), (3, 1), (5, 2)]),
    *cases("replk", DENSE + STRIDED, [(7, 1), (9, 2)], {}, {"small": 3}, {}),
    *cases("replk", [(4, 4, 1, 4, None)], [(31, 1)]),
    *cases("unirep", STRIDED, [(k, 1) for k in SPREAD]),
]


def at(name: str, place: Place, options: dict) -> FusableBlock:
    *rest, padding = place
    block = blocks.create(name, *rest, padding=padding, **options)
    assert isinstance(block, FusableBlock)
    return block


def normed(bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
    """The definition: by the batch's statistics in training, else by the running ones."""
    mean, variance = (
        (y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)) if bn.training else (bn.running_mean, bn.running_var)
    )
    c = (slice(None), None, None)
    return (y - mean[c]) / torch.sqrt(variance[c] + bn.eps) * bn.weight[c] + bn.bias[c]


class Paper:
    """The papers' equations in plain operations, with the numbers of one block and none of its methods."""

    def __init__(self, block: FusableBlock, name: str, place: Place, options: dict) -> None:
        self.block, self.name, self.options = block, name, options
        _, _, self.k, self.stride, self.groups, self.dilation, padding = place
        same = self.dilation * (self.k // 2)
        self.beyond = 0 if padding is None else padding - same

    def __call__(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)

    def conv(self, x: Tensor, of: nn.Module, dilation: int) -> Tensor:
        """One convolution whose centre is the block's: F.pad crops where the amount is negative."""
        weight = of.conv.weight
        side = dilation * (weight.shape[2] // 2) + self.beyond
        return F.conv2d(F.pad(x, [side] * 4), weight, of.conv.bias, self.stride, 0, dilation, self.groups)

    def conv_bn(self, x: Tensor, of: nn.Module, dilation: int | None = None) -> Tensor:
        return normed(of.bn, self.conv(x, of, dilation or self.dilation))

    def copy(self, x: Tensor) -> Tensor:
        return F.pad(x, [self.beyond] * 4)

    def named(self, branches: nn.Module) -> dict[str, nn.Module]:
        return {branch.branch_name: branch for branch in branches}

    def over_parameterized(self, x: Tensor, branches: nn.Module, count: int) -> Tensor:
        named = self.named(branches)
        keeps = x.shape[1] == self.block.spec.c_out and self.stride == 1
        expected = {f"k x k {i + 1}" for i in range(count)} | ({"1x1"} if self.k > 1 else set())
        assert set(named) == expected | ({"identity"} if keeps else set())
        parts = [self.conv_bn(x, named[name]) for name in expected]
        return reduce(add, parts + ([normed(named["identity"].bn, self.copy(x))] if keeps else []))

    def mobileone(self, x: Tensor) -> Tensor:
        y = self.over_parameterized(x, self.block.branches, self.options.get("branches", 4))
        if not self.options.get("se"):
            return y
        fc1, fc2 = self.block.after.fc1, self.block.after.fc2
        inside = torch.relu(y.mean((2, 3)) @ fc1.weight.flatten(1).T + fc1.bias)
        return y * torch.sigmoid(inside @ fc2.weight.flatten(1).T + fc2.bias)[:, :, None, None]

    def repmixer(self, x: Tensor) -> Tensor:
        change = self.over_parameterized(x, self.block.mixer, 1) - normed(self.block.norm.bn, self.copy(x))
        return self.copy(x) + (self.block.scale if self.options.get("layer_scale", True) else 1) * change

    def repvgg_dw(self, x: Tensor) -> Tensor:
        named = self.named(self.block.branches)
        assert named["1x1"].conv.bias is not None
        summed = self.conv_bn(x, named["k x k"]) + self.conv(x, named["1x1"], 1) + self.copy(x)
        return normed(self.block.bn, summed)

    def qarepvgg(self, x: Tensor) -> Tensor:
        named = self.named(self.block.branches)
        assert named["1x1"].conv.bias is None
        keeps = x.shape[1] == self.block.spec.c_out and self.stride == 1
        assert set(named) == {"k x k", "1x1", *(["identity"] if keeps else [])}
        summed = self.conv_bn(x, named["k x k"]) + self.conv(x, named["1x1"], 1)
        return normed(self.block.bn, summed + self.copy(x) if keeps else summed)

    def replk(self, x: Tensor) -> Tensor:
        large, small = self.block.branches
        assert (large.branch_name, small.branch_name) == ("large", "small")
        assert large.conv.kernel_size == (self.k, self.k)
        assert small.conv.kernel_size == (self.options.get("small", 5),) * 2
        return self.conv_bn(x, large) + self.conv_bn(x, small)

    def unirep(self, x: Tensor) -> Tensor:
        large, *small = self.block.branches
        assert large.conv.kernel_size == (self.k, self.k)
        parts = [self.conv_bn(x, large)]
        for branch, (size, apart) in zip(small, SPREAD[self.k], strict=True):
            assert branch.conv.kernel_size == (size, size)
            assert branch.branch_name == f"{size}x{size}, {apart} apart"
            parts.append(self.conv_bn(x, branch, apart))
        return reduce(add, parts)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def inputs(place: Place) -> list[Tensor]:
    """A map with an interior, and two no larger than half the kernel where that leaves any output."""
    c_in, _, k, _, _, dilation, padding = place
    reach = dilation * (k - 1) + 1
    sides = [(reach + 4, reach + 7), (1, 3), (max(reach // 2, 1), 2)]
    beyond = 0 if padding is None else padding - reach // 2
    fits = [s for s in sides if min(s) + min(2 * beyond, 0) >= 1]
    return [torch.randn(2, c_in, *side, dtype=torch.float64) for side in fits]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "place", "options"), CASES, ids=str)
def test_a_block_is_its_papers_equation(name, place, options, training, lived_in):
    block = lived_in(at(name, place, options)).double().train(training)
    paper = Paper(block, name, place, options)
    for x in inputs(place):
        wanted = paper(x)
        if training and wanted.numel() // wanted.shape[1] < 8:
            continue  # a variance of so few numbers magnifies rounding
        assert relative(block(x), wanted) <= 1e-12


@pytest.mark.parametrize(("name", "place", "options"), CASES, ids=str)
def test_fused_it_is_still_that_equation_at_the_rim_and_inside(name, place, options, lived_in):
    block = lived_in(at(name, place, options)).double().eval()
    fused, paper = block.fused(), Paper(block, name, place, options)
    conv = fused if isinstance(fused, nn.Conv2d) else fused.conv
    assert conv.kernel_size == (place[2], place[2])
    for number, x in enumerate(inputs(place)):
        with torch.no_grad():
            found, wanted = fused(x), paper(x)
        assert found.shape == wanted.shape
        assert relative(found, wanted) <= 1e-12
        if number == 0:
            rim = min(-(-conv.padding[0] // place[3]), (min(wanted.shape[2:]) - 1) // 2)
            inside = slice(rim, -rim or None)
            assert relative(found[:, :, inside, inside], wanted[:, :, inside, inside]) <= 1e-12
            for edge in (0, -1):
                assert relative(found[:, :, edge], wanted[:, :, edge]) <= 1e-12
                assert relative(found[..., edge], wanted[..., edge]) <= 1e-12


FEW = [
    ("mobileone", (4, 4, 3, 1, 1, 1, None), {"se": True}),
    ("repmixer", (4, 4, 3, 1, 4, 1, None), {}),
    ("repvgg_dw", (4, 4, 3, 1, 4, 1, None), {}),
    ("qarepvgg", (4, 4, 3, 1, 1, 1, None), {}),
    ("replk", (4, 4, 7, 2, 4, 1, None), {}),
    ("unirep", (4, 4, 7, 1, 4, 1, None), {}),
]


@pytest.mark.parametrize(("name", "place", "options"), FEW, ids=str)
def test_the_folded_kernel_has_the_branches_gradients(name, place, options, lived_in):
    block = lived_in(at(name, place, options)).double().eval()
    spec, x = block.spec, torch.randn(2, 4, 9, 8, dtype=torch.float64)
    weight, bias = block.kernel()
    folded = block.after(F.conv2d(x, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups))
    found, wanted = (torch.autograd.grad(y.square().sum(), list(block.parameters())) for y in (folded, block(x)))
    for (label, _), a, b in zip(block.named_parameters(), found, wanted, strict=True):
        assert b.abs().max() > 0, label
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item(), msg=label)


@pytest.mark.parametrize(("name", "place", "options"), FEW, ids=str)
def test_one_graph_and_any_batch(name, place, options, lived_in):
    torch.compiler.reset()
    block = lived_in(at(name, place, options)).train()
    x = torch.randn(2, 4, 6, 6)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
    exported = torch.export.export(block.eval(), (x,), dynamic_shapes={"x_NCHW": {0: torch.export.Dim("batch")}})
    x = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(exported.module()(x), block(x), rtol=1e-5, atol=1e-5)


def copied(pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    """Weights and statistics from ours to theirs."""
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())


def agree(ours: Callable[[Tensor], Tensor], theirs: nn.Module, x: Tensor) -> None:
    for training in (True, False):
        theirs.train(training)
        assert relative(ours(x, training), theirs(x)) <= 1e-12


def run(block: nn.Module, x: Tensor, training: bool) -> Tensor:
    return block.train(training)(x)


@pytest.mark.parametrize("se", [False, True])
@pytest.mark.parametrize(
    ("c_in", "c_out", "k", "stride", "groups"),
    [(32, 32, 3, 1, 32), (32, 48, 1, 1, 1), (32, 32, 3, 2, 32), (32, 32, 3, 1, 2)],
)
def test_mobileone_is_timms(c_in, c_out, k, stride, groups, se, lived_in):
    ours = lived_in(blocks.create("mobileone", c_in, c_out, k, stride, groups, se=se)).double()
    attention = partial(SqueezeExcite, rd_ratio=1 / 16, rd_divisor=1) if se else None
    layers = byobnet.LayerFn(attn=attention)
    theirs = byobnet.MobileOneBlock(
        c_in, c_out, k, stride, group_size=c_in // groups if groups > 1 else 0, num_conv_branches=4, layers=layers
    ).double()
    named = {branch.branch_name: branch for branch in ours.branches}
    pairs = [(named[f"k x k {i + 1}"], theirs.conv_kxk[i]) for i in range(4)]
    pairs += [(named["1x1"], theirs.conv_scale)] if k > 1 else []
    pairs += [(named["identity"].bn, theirs.identity)] if "identity" in named else []
    copied(pairs)
    if se:
        copied([(ours.after.fc1, theirs.attn.fc1), (ours.after.fc2, theirs.attn.fc2)])
    x = torch.randn(3, c_in, 9, 7, dtype=torch.float64)
    agree(lambda x, training: torch.relu(run(ours, x, training)), theirs, x)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("k", [3, 7])
@pytest.mark.parametrize("scaled", [True, False])
def test_repmixer_is_timms_before_and_after_its_own_folding(k, scaled, lived_in):
    ours = lived_in(blocks.create("repmixer", 6, 6, k, 1, 6, layer_scale=scaled)).double()
    theirs = fastvit.RepMixer(6, k, layer_scale_init_value=1e-5 if scaled else None).double()
    kxk, point, identity = ours.mixer
    pairs = [(kxk, theirs.mixer.conv_kxk[0]), (point, theirs.mixer.conv_scale), (identity.bn, theirs.mixer.identity)]
    copied([*pairs, (ours.norm.bn, theirs.norm.identity)])
    if scaled:
        assert ours.scale.shape == theirs.layer_scale.gamma.shape
        with torch.no_grad():
            theirs.layer_scale.gamma.copy_(ours.scale)
    x = torch.randn(3, 6, 9, 8, dtype=torch.float64)
    agree(partial(run, ours), theirs, x)
    wanted = theirs.eval()(x)
    theirs.reparameterize()
    assert relative(theirs.reparam_conv.weight, ours.fused().weight) <= 1e-12
    assert relative(ours.fused()(x), wanted) <= 1e-12


@pytest.mark.parametrize("scaled", [True, False])
def test_a_fresh_repmixer_starts_as_in_the_paper(scaled):
    """Its batch norms are alike at first, so all that is added to x is the two convolutions', times the layer scale."""
    block = blocks.create("repmixer", 6, 6, 3, 1, 6, layer_scale=scaled)
    x = torch.randn(2, 6, 8, 8)
    added = block(x) - x
    bare = block.mixer[0](x) + block.mixer[1](x)
    torch.testing.assert_close(added, bare * (1e-5 if scaled else 1), rtol=1e-3, atol=1e-6 if scaled else 1e-5)
    assert bare.abs().max() > 1


def test_repvgg_dw_is_timms_before_and_after_its_own_folding(lived_in):
    ours = lived_in(blocks.create("repvgg_dw", 6, 6, 3, 1, 6)).double()
    theirs = repvit.RepVggDw(6, 3).double()
    kxk, point, _ = ours.branches
    copied([(kxk.conv, theirs.conv.c), (kxk.bn, theirs.conv.bn), (point.conv, theirs.conv1), (ours.bn, theirs.bn)])
    x = torch.randn(3, 6, 9, 8, dtype=torch.float64)
    agree(partial(run, ours), theirs, x)
    folded = theirs.float().eval().fuse()  # theirs cannot fold in float64
    assert relative(folded.weight, ours.float().fused().weight) <= 1e-6
    assert relative(folded(x.float()), ours.eval()(x.float())) <= 5e-6


@pytest.mark.parametrize(("small", "stride", "groups"), [(5, 1, 8), (3, 2, 8), (5, 2, 2)])
def test_replk_is_timms(small, stride, groups, lived_in):
    ours = lived_in(blocks.create("replk", 8, 16, 13, stride, groups, small=small)).double()
    theirs = fastvit.ReparamLargeKernelConv(8, 16, 13, stride, 8 // groups, small).double()
    copied([(ours.branches[0], theirs.large_conv), (ours.branches[1], theirs.small_conv)])
    x = torch.randn(2, 8, 15, 14, dtype=torch.float64)
    agree(partial(run, ours), theirs, x)
    theirs.reparameterize()
    assert relative(theirs.reparam_conv.weight, ours.fused().weight) <= 1e-12


@pytest.mark.parametrize("dilation", [1, 2, 3, 7])
def test_spreading_taps_is_the_transposed_convolution_of_the_paper(dilation):
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    one = weight.new_ones(1, 1, 1, 1)
    wanted = F.conv_transpose2d(weight.flatten(0, 1)[:, None], one, stride=dilation).unflatten(0, (6, 2))[:, :, 0]
    found = algebra.dilate(weight, dilation)
    assert found.shape == (6, 2, 2 * dilation + 1, 2 * dilation + 1)
    assert torch.equal(found, wanted)
    x = torch.randn(1, 4, 17, 16, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(x, found, groups=2), F.conv2d(x, weight, dilation=dilation, groups=2))
    (gradient,) = torch.autograd.grad(found.square().sum(), weight)
    assert torch.equal(gradient, 2 * weight)


@pytest.mark.parametrize(
    ("name", "place", "remedy"),
    [
        ("repmixer", {"groups": 1}, "groups == c_in == c_out"),
        ("repmixer", {"groups": 4, "stride": 2}, "use 1"),
        ("repvgg_dw", {"groups": 2}, "groups == c_in == c_out"),
        ("repvgg_dw", {"groups": 4, "stride": 2}, "use 1"),
        ("repvgg_dw", {"groups": 4, "c_out": 8}, "groups == c_in == c_out"),
        ("unirep", {"groups": 4, "kernel_size": 3}, "use one of 5, 7"),
        ("unirep", {"groups": 4, "kernel_size": 19}, "use one of 5, 7"),
        ("unirep", {"groups": 4, "kernel_size": 7, "dilation": 2}, "use 1"),
        ("replk", {"kernel_size": 5}, "use one of 7, 9"),
        ("replk", {"kernel_size": 33}, "use one of 7, 9"),
        ("replk", {"kernel_size": 9, "small": 9}, "use 3 or 5"),
        ("mobileone", {"branches": 9}, "use 1 or 2 or 3"),
        ("mobileone", {"branches": True}, "use 1 or 2 or 3"),
    ],
    ids=str,
)
def test_what_a_block_cannot_do_is_refused(name, place, remedy):
    with pytest.raises(Unsupported) as refused:
        blocks.create(name, 4, **{"c_out": 4, **place})
    assert remedy in refused.value.remedy
