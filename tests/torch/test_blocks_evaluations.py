"""One linear function, two evaluations: on features and on kernels; and both are the paper's equation."""

from __future__ import annotations

import math

import pytest
import torch
from block_places import PLACES, make, places
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from harness import blocks
from harness.blocks import BLOCKS, algebra
from harness.blocks.parts.composition import lean, plain
from harness.blocks.parts.linear_branches import COMPONENTS, LinearBranches

BOTH = [name for name in BLOCKS if len(blocks.declaration(name)["evaluations"]) == 2]


BOTH_SOMEWHERE = [
    (name, place, scaling)
    for name in BOTH
    for place in places(name, PLACES)
    for scaling in (("vector", "scalar", "none") if "scaling" in BLOCKS[name].options() else (None,))
]
"""Every block at every place that it takes, with each of its scalings."""


def close(found: Tensor, wanted: Tensor, scale: float) -> bool:
    return (found - wanted).abs().max().item() <= 1e-10 * scale


def run(block: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, the input's gradient and every parameter's."""
    x = x.clone().requires_grad_()
    y = block(x)
    parameters = list(block.parameters())
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad((y * weights + y**2).sum(), [x, *parameters])]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "place", "scaling"), BOTH_SOMEWHERE)
def test_online_and_offline_agree_with_all_gradients(name, place, training, scaling, lived_in):
    options = {} if scaling is None else {"scaling": scaling}
    online = lived_in(blocks.create(name, *place, reparam="online", **options)).double().train(training)
    offline = blocks.create(name, *place, reparam="offline", **options).double().train(training)
    offline.load_state_dict(online.state_dict())
    x = torch.randn(3, place[0], 9, 8, dtype=torch.float64)
    found, wanted = run(online, x), run(offline, x)
    assert close(found[0], wanted[0], wanted[0].abs().max().item())
    # One scale for all gradients: behind a batch norm in training some are nothing but cancellation.
    largest = max(gradient.abs().max().item() for gradient in wanted[1:])
    names = ["x", *dict(online.named_parameters())]
    for label, a, b in zip(names, found[1:], wanted[1:], strict=True):
        assert close(a, b, largest), label
    for label, buffer in online.named_buffers():
        torch.testing.assert_close(buffer, offline.get_buffer(label), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("without", ["nothing", *COMPONENTS])
@pytest.mark.parametrize("place", PLACES)
def test_the_composition_by_hand_is_the_plain_sum(place, without, lived_in):
    used = set(COMPONENTS) - {without}
    branches = lived_in(LinearBranches(blocks.ConvSpec(*place), scaling="vector", used=used)).double()
    parameters = list(branches.parameters())
    fast, slow = branches.kernel("lean"), branches.kernel("plain")
    torch.testing.assert_close(fast, slow, rtol=1e-13, atol=1e-13)
    assert fast.is_contiguous()
    upstream = torch.randn_like(fast)
    kept = upstream.clone()
    found, wanted = (torch.autograd.grad(kernel, parameters, upstream) for kernel in (fast, slow))
    for (label, parameter), a, b in zip(branches.named_parameters(), found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, label=label: f"{label}: {m}")
        for size, gradient_stride, stride in zip(a.shape, a.stride(), parameter.stride(), strict=True):
            assert size == 1 or gradient_stride == stride, label  # accumulating it copies nothing
    assert torch.equal(upstream, kept)  # the gradient handed in is others' too


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_composition_takes_parameters_and_gradients_in_any_layout(layout, lived_in):
    branches = lived_in(LinearBranches(blocks.ConvSpec(4, 6), scaling="vector")).double().to(memory_format=layout)
    fast, slow = branches.kernel("lean"), branches.kernel("plain")
    upstream = torch.randn_like(fast).contiguous(memory_format=layout)
    for a, b in zip(
        torch.autograd.grad(fast, list(branches.parameters()), upstream),
        torch.autograd.grad(slow, list(branches.parameters()), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("without", ["nothing", *COMPONENTS])
def test_the_composition_differentiates_twice(without, lived_in):
    used = set(COMPONENTS) - {without}
    branches = lived_in(LinearBranches(blocks.ConvSpec(2, 2, groups=2), scaling="vector", used=used)).double()
    names = dict(branches.named_parameters())

    def function(*values: Tensor) -> Tensor:
        return functional_call(branches, dict(zip(names, values, strict=True)), ())

    branches.forward = lambda: branches.kernel("lean")
    tensors = tuple(parameter.detach().requires_grad_() for parameter in names.values())
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_frozen_parameters_of_the_composition_stay_without_gradient(lived_in):
    block = lived_in(blocks.create("orepa", 4, 4))
    block.branches.first.requires_grad_(False)
    block(torch.randn(2, 4, 5, 5)).square().sum().backward()
    assert block.branches.first.grad is None
    assert block.branches.second.grad.abs().max() > 0


def test_the_composition_repeats_to_the_bit(lived_in):
    block = lived_in(blocks.create("orepa", 16, 16, groups=2))
    x = torch.randn(2, 16, 8, 8)
    for a, b in zip(run(block.eval(), x), run(block.eval(), x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["orepa", "orepa_vgg", "orepa_stem"])
def test_the_kernel_is_composed_outside_autocast(name, lived_in):
    block = lived_in(make(name, 8, 8)).eval()
    branches = next(module for module in block.modules() if isinstance(module, LinearBranches))
    parameters = list(branches.parameters())
    exact = branches.kernel()
    upstream = torch.randn_like(exact)
    wanted = torch.autograd.grad(exact, parameters, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        kernel = branches.kernel()
        found = torch.autograd.grad(kernel, parameters, upstream)  # a backward inside autocast too
    assert torch.equal(kernel, exact)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", BLOCKS)
def test_autocast_stays_near_float32(name, lived_in):
    block = lived_in(make(name, 8, 8)).train()
    x = torch.randn(4, block.spec.c_in, 6, 6)
    wanted = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = block(x)
    assert (found.float() - wanted).abs().max() <= 0.1 * wanted.abs().max()
    found.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters() if p.grad is not None)


def test_the_averaging_kernel_is_made_in_the_dtype_of_the_weight():
    like = torch.zeros(1, dtype=torch.float64)
    assert algebra.average(2, 1, 3, like)[0, 0, 0, 0].item() == 1 / 9  # a float32 ninth is off by 1e-9
    block = blocks.create("orepa", 4, 4, kernel_size=5).double()
    assert (block.branches.basis[:, :, 0] == 1 / 25).all()


@pytest.mark.parametrize("k", [1, 3, 5, 7, 13])
@pytest.mark.parametrize("c_out", [4, 5])
def test_the_frequency_prior_is_right_for_every_kernel_size(k, c_out):
    found = blocks.create("orepa", 2, c_out, kernel_size=k).double().branches.basis[:, :, 1].reshape(c_out, k, k)
    for o in range(c_out):
        for h in range(k):
            for w in range(k):
                tap, channel = (h, o + 1) if o < c_out / 2 else (w, o + 1 - c_out / 2)
                assert found[o, h, w].item() == pytest.approx(math.cos(math.pi * (tap + 0.5) * channel / k), abs=1e-12)


def norm(bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
    c = (slice(None), None, None)
    return (y - bn.running_mean[c]) / torch.sqrt(bn.running_var[c] + bn.eps) * bn.weight[c] + bn.bias[c]


@pytest.mark.parametrize("place", PLACES)
def test_dbb_is_the_sum_of_its_papers_branches(place, lived_in):
    """Written from the reference: explicit identity, explicit rim, averaging by unfolding windows."""
    c_in, c_out, k, stride, groups, dilation = place
    block = lived_in(blocks.create("dbb", *place)).double().eval()
    p, depthwise = dilation * (k // 2), groups == c_in == c_out
    x = torch.randn(2, c_in, 7, 6, dtype=torch.float64)

    def rimmed(bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        out = norm(bn, torch.zeros(n, c, h + 2 * p, w + 2 * p, dtype=y.dtype))
        out[:, :, p : p + h, p : p + w] = norm(bn, y)
        return out

    def mean(y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        size = [(side - dilation * (k - 1) - 1) // stride + 1 for side in (h, w)]
        return F.unfold(y, k, dilation, 0, stride).view(n, c, k * k, *size).mean(2)

    branches = list(block.branches)
    origin, chain, average = branches[0], branches[-2], branches[-1]
    wanted = norm(origin.bn, F.conv2d(x, origin.conv.weight, None, stride, p, dilation, groups))
    first = chain.first.conv.weight.clone()
    assert first.shape[0] == (2 * c_in if depthwise else c_in)
    if depthwise:
        wanted = wanted + norm(average.bn, mean(F.pad(x, [p] * 4)))
    else:
        for t in range(c_in):
            first[t, t % (c_in // groups)] += 1
        wanted = wanted + norm(branches[1].bn, F.conv2d(x, branches[1].conv.weight, None, stride, 0, 1, groups))
        q = F.conv2d(x, average.first.conv.weight, groups=groups)
        wanted = wanted + norm(average.second.bn, mean(rimmed(average.rim.bn, q)))
    u = rimmed(chain.rim.bn, F.conv2d(x, first, groups=groups))
    wanted = wanted + norm(chain.second.bn, F.conv2d(u, chain.second.conv.weight, None, stride, 0, dilation, groups))
    torch.testing.assert_close(block(x), wanted, rtol=1e-12, atol=1e-12)


def test_plain_is_the_kernel_that_folding_uses(lived_in):
    block = lived_in(blocks.create("orepa", 4, 4)).double()
    weight = plain(block.branches.weights())
    torch.testing.assert_close(weight, lean(block.branches.weights()), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(block.kernel().weight, algebra.fold(weight, block.bn).weight, rtol=0, atol=0)
