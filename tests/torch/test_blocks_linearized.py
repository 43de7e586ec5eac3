"""The linearized block: the scaled sum of another block's branches, written again from plain convolutions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gradients import agree, named_gradients, switches
from saved_graph import saved_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import ConvSpec, Kernel
from harness.blocks.parts.branches import Parallel

OF = ["dbb", "acb", "repvgg", "mobileone"]
SCALINGS = ["vector", "scalar", "none"]

PLACES = [
    ConvSpec(4, 4),
    ConvSpec(4, 6, stride=2),
    ConvSpec(4, 4, 1),
    ConvSpec(6, 6, 5, groups=2, dilation=2),
    ConvSpec(4, 4, groups=4),
    ConvSpec(2, 4, groups=2, stride=2),
    ConvSpec(4, 4, margin=1),
    ConvSpec(4, 4, 5, margin=-1),
]
"""Same, strided and wider, 1x1, grouped and dilated, depthwise, channel multiplier, more padding than "same" and less."""


def linearized(spec: ConvSpec, **options: str) -> nn.Module:
    return blocks.BLOCKS["linearized"](spec, **options)


def moved(x: Tensor, by: int) -> Tensor:
    """So many zeros more on each side, or pixels fewer."""
    return F.pad(x, [by] * 4)


def terms(block: nn.Module, x: Tensor, of: str) -> Iterator[Tensor]:
    """What each branch makes of x, not scaled; from the parameters in their order and the equations of the papers."""
    s = block.spec
    k, d, padding = s.kernel_size, s.dilation, s.padding
    weights = iter(p for name, p in block.branches.named_parameters() if not name.endswith("scale"))

    def conv(x: Tensor, weight: Tensor, stride: int = s.stride, dilation: int = d) -> Tensor:
        return F.conv2d(x, weight, None, stride, 0, dilation, s.groups)

    def mean(y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        size = [(side - d * (k - 1) - 1) // s.stride + 1 for side in (h, w)]
        return F.unfold(y, k, d, 0, s.stride).view(n, c, k * k, *size).mean(2)

    wide, point = moved(x, padding), moved(x, s.margin)
    count = 4 if of == "mobileone" else 1
    for _ in range(count):
        yield conv(wide, next(weights))
    if of == "acb":
        yield conv(F.pad(x, [s.margin, s.margin, padding, padding]), next(weights))
        yield conv(F.pad(x, [padding, padding, s.margin, s.margin]), next(weights))
    elif of == "dbb":
        depthwise = s.groups == s.c_in == s.c_out
        if not depthwise:
            yield conv(point, next(weights))
        first, second = next(weights), next(weights)
        if not depthwise:
            first = first + torch.eye(s.c_in // s.groups, dtype=x.dtype).repeat(s.groups, 1)[:, :, None, None]
        yield conv(moved(conv(x, first, 1, 1), padding), second)
        yield mean(moved(x if depthwise else conv(x, next(weights), 1, 1), padding))
    else:
        if k > 1 or of == "repvgg":
            yield conv(point, next(weights))
        if s.c_in == s.c_out and s.stride == 1:
            yield point
    assert next(weights, None) is None


def by_the_paper(block: nn.Module, x: Tensor, of: str, training: bool) -> Tensor:
    """Step 1: a scale behind each branch; step 2: one batch norm behind the sum."""
    scales = [p for name, p in block.branches.named_parameters() if name.endswith("scale")]
    found = list(terms(block, x, of))
    scales = scales or [torch.ones(1, dtype=x.dtype)] * len(found)
    y = sum(v[None, :, None, None] * term for v, term in zip(scales, found, strict=True))
    bn, (n, _, h, w) = block.bn, y.shape
    assert n * h * w > 1
    mean = y.mean((0, 2, 3)) if training else bn.running_mean
    var = y.var((0, 2, 3), unbiased=False) if training else bn.running_var
    c = (slice(None), None, None)
    return (y - mean[c]) / torch.sqrt(var[c] + bn.eps) * bn.weight[c] + bn.bias[c]


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_both_evaluations_and_the_fused_form_are_the_scaled_sum_with_one_norm(place, of, lived_in):
    x = torch.randn(2, place.c_in, 8, 9, dtype=torch.float64, requires_grad=True)
    for scaling in SCALINGS:
        for training in (True, False):
            block = lived_in(linearized(place, of=of, scaling=scaling)).double().train(training)
            offline = linearized(place, of=of, scaling=scaling, reparam="offline").double().train(training)
            offline.load_state_dict(block.state_dict())
            wanted = named_gradients(by_the_paper(block, x, of, training), x, block)
            agree(named_gradients(block(x), x, block), wanted, 1e-12)
            agree(named_gradients(offline(x), x, offline), wanted, 1e-12)
            torch.testing.assert_close(
                dict(offline.named_buffers()), dict(block.named_buffers()), rtol=1e-12, atol=1e-12
            )
        torch.testing.assert_close(block.fused()(x), wanted["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", [place for place in PLACES if not place.depthwise and place.groups <= 4], ids=str)
def test_dbb_linearized_is_orepa_with_four_of_its_components(place, lived_in):
    """Two independent implementations of one function: OREPA's branches are DBB's, the prior and the separable apart."""
    used = ("origin", "average", "point", "chain")
    orepa = lived_in(blocks.BLOCKS["orepa"](place, **switches(used))).double().train()
    block = linearized(place, of="dbb").double().train()
    origin, point, chain, average = block.branches
    theirs = orepa.branches
    with torch.no_grad():
        origin.branch.conv.weight.copy_(theirs.origin)
        average.branch.first.conv.weight.copy_(theirs.points[0])
        point.branch.conv.weight.copy_(theirs.points[1])
        chain.branch.first.conv.weight.copy_(theirs.first)
        chain.branch.second.conv.weight.copy_(theirs.second)
        for branch, scale in zip((origin, average, point, chain), theirs.scales, strict=True):
            branch.scale.copy_(scale)
    block.bn.load_state_dict(orepa.bn.state_dict())
    x = torch.randn(2, place.c_in, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(block(x), orepa(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.fused().weight, orepa.fused().weight, rtol=1e-12, atol=1e-12)


PARAMETERS = {
    # the block's own, without its norms' weights and biases, with a scale a branch and one norm
    "dbb": 86_784 - 6 * 128 + 4 * 64 + 128,
    "acb": 61_824 - 3 * 128 + 3 * 64 + 128,
    "repvgg": 41_344 - 3 * 128 + 3 * 64 + 128,
    "mobileone": 4 * 64 * 64 * 9 + 64 * 64 + 6 * 64 + 128,
}


@pytest.mark.parametrize("of", OF)
def test_nothing_is_left_of_the_norms(of):
    block = blocks.create("linearized", 64, 64, of=of)
    assert sum(parameter.numel() for parameter in block.parameters()) == PARAMETERS[of]
    assert [name for name, module in block.named_modules() if isinstance(module, nn.BatchNorm2d)] == ["bn"]
    kinds = {name.rsplit(".", 1)[-1] for name in block.branches.state_dict()}
    assert kinds == {"weight", "scale"}
    block(torch.randn(2, 64, 5, 5)).square().mul(torch.randn(2, 64, 5, 5)).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in block.parameters())


@pytest.mark.parametrize("of", OF)
def test_scales_start_at_one(of):
    for scaling, shape in (("vector", (6,)), ("scalar", (1,))):
        block = blocks.create("linearized", 4, 6, of=of, scaling=scaling)
        scales = [branch.scale for branch in block.branches]
        assert all(torch.equal(scale, torch.ones(shape)) for scale in scales)
    bare = blocks.create("linearized", 4, 6, of=of, scaling="none")
    assert not [name for name in bare.state_dict() if "scale" in name]
    names = [branch.branch_name for branch in blocks.create(of, 4, 6).branches]
    assert (
        [branch.branch_name for branch in block.branches] == [branch.branch_name for branch in bare.branches] == names
    )


ONLINE = {"dbb": 2.12, "acb": 2.03, "repvgg": 2.03, "mobileone": 2.03}
"""Saved for backward, in input maps, 64 -> 64 on 8x64x56x56: two maps, then kernels, at most 5.2 for dbb and 1.2."""
OFFLINE = {"dbb": 8.15, "acb": 5.00, "repvgg": 4.00, "mobileone": 7.00}
"""A map for each scale's gradient; dbb's chains keep theirs, with rims."""


@pytest.mark.parametrize("of", OF)
def test_bytes_saved_for_backward_by_both_evaluations(of):
    x = torch.randn(8, 64, 56, 56)
    online, offline = (
        saved_bytes(blocks.create("linearized", 64, 64, of=of, reparam=reparam).train(), x) / x.nbytes
        for reparam in ("online", "offline")
    )
    assert 2.0 < online <= ONLINE[of]
    assert round(offline, 2) == OFFLINE[of]


def test_the_kernel_is_composed_outside_autocast_and_once_in_eval(lived_in, monkeypatch):
    block = lived_in(blocks.create("linearized", 8, 8)).eval()
    made: list[Tensor] = []
    compose = Parallel.kernel

    def watched(branches: Parallel) -> Kernel:
        kernel = compose(branches)
        made.append(kernel.weight)
        return kernel

    monkeypatch.setattr(Parallel, "kernel", watched)
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        first = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            block(x)
        assert len(made) == 1
        block.bn.bias.add_(1)  # not part of the kernel
        torch.testing.assert_close(block(x), first + 1)
        assert len(made) == 1
        block.branches[0].scale.mul_(2)
        assert (block(x) - first - 1).abs().max() > 0.1
    assert len(made) == 2
    with torch.autocast("cpu", torch.bfloat16):
        block(x)
    assert len(made) == 3
    assert torch.equal(made[2], made[1])
