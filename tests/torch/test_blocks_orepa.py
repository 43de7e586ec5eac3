"""OREPA's blocks: what each branch is, written again from the reference; what is kept; what can be switched off."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from block_places import PLACES, make
from gradients import agree, named_gradients, switches
from saved_graph import saved_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import BLOCKS, algebra
from harness.blocks.parts.linear_branches import COMPONENTS, POINTS, LinearBranches

SUBSETS = [names for size in range(1, 7) for names in combinations(COMPONENTS, size)]

KERNEL = 64 * 64 * 3 * 3 * 4
"""Bytes of a 64 -> 64 3x3 kernel in float32."""


def prior(o: int, c_out: int, k: int) -> Tensor:
    """P[o] (k, k) of the reference."""
    taps = torch.arange(k, dtype=torch.float64) + 0.5
    if o < c_out / 2:
        return torch.cos(math.pi * taps * (o + 1) / k)[:, None].expand(k, k)
    return torch.cos(math.pi * taps * (o + 1 - c_out / 2) / k)[None, :].expand(k, k)


def kernel_of_the_paper(b: LinearBranches) -> Tensor:
    """Written from the reference, one output channel and one input channel at a time."""
    spec, used = b.spec, [name for name in COMPONENTS if name in b.used]
    k, c_out, inputs = spec.kernel_size, spec.c_out, spec.c_in // spec.groups
    v = dict(zip(used, b.scales, strict=True))
    w = dict(zip([name for name in POINTS if name in used], b.points, strict=True))
    centre = torch.zeros(k, k, dtype=torch.float64)
    centre[k // 2, k // 2] = 1
    rows = []
    for o in range(c_out):
        c = o // (c_out // spec.groups)  # its group
        for i in range(inputs):
            term = torch.zeros(k, k, dtype=torch.float64)
            if "origin" in used:
                term = term + v["origin"][o] * b.origin[o, i]
            if "average" in used:
                term = term + v["average"][o] * w["average"][o, i] / k**2
            if "prior" in used:
                term = term + v["prior"][o] * w["prior"][o, i] * prior(o, c_out, k)
            if "point" in used:
                term = term + v["point"][o] * w["point"][o, i] * centre
            if "chain" in used:
                width = b.first.shape[0] // spec.groups
                for t in range(width):
                    factor = b.first[c * width + t, i, 0, 0] + (1.0 if t % inputs == i else 0.0)
                    term = term + v["chain"][o] * factor * b.second[o, t]
            if "separable" in used:
                for t in range(8):
                    depthwise = b.depthwise[8 * (c * inputs + i) + t, 0]
                    term = term + v["separable"][o] * b.pointwise[o, 8 * i + t, 0, 0] * depthwise
            rows.append(term)
    return torch.stack(rows).reshape(c_out, inputs, k, k)


def conv(x: Tensor, weight: Tensor, spec: blocks.ConvSpec) -> Tensor:
    k, d = spec.kernel_size, spec.dilation
    return F.conv2d(x, weight, None, spec.stride, d * (k // 2), d, spec.groups)


@pytest.mark.parametrize("place", PLACES)
def test_orepa_is_the_sum_of_its_papers_branches(place, lived_in):
    block = lived_in(blocks.create("orepa", *place)).double().eval()
    width = place[0] if place[4] <= 4 else 2 * place[0]
    assert block.branches.first.shape[0] == width
    x = torch.randn(2, place[0], 7, 7, dtype=torch.float64)
    wanted = block.bn(conv(x, kernel_of_the_paper(block.branches), block.spec))
    torch.testing.assert_close(block(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("used", SUBSETS, ids="-".join)
def test_any_components_of_orepa_are_the_sum_of_theirs_alone(used, lived_in):
    """Online, lean and plain, and offline, with all gradients; fused too."""
    place = (4, 6, 3, 2, 2, 2)
    block = lived_in(blocks.create("orepa", *place, **switches(used))).double().eval()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    wanted = named_gradients(block.bn(conv(x, kernel_of_the_paper(block.branches), block.spec)), x, block)
    for ways in ({}, {"composition": "plain"}, {"reparam": "offline"}):
        other = blocks.create("orepa", *place, **switches(used), **ways).double().eval()
        other.load_state_dict(block.state_dict())
        agree(named_gradients(other(x), x, other), wanted, 1e-12)
        torch.testing.assert_close(other.fused()(x), wanted["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("used", SUBSETS, ids="-".join)
def test_a_component_that_is_off_leaves_nothing_behind(used):
    whole, block = blocks.create("orepa", 4, 6), blocks.create("orepa", 4, 6, **switches(used))
    assert block.branches.scales.shape == (len(used), 6)
    assert block.branches.scales[:, 0].tolist() == [COMPONENTS[name] for name in used]
    assert block.branches.basis.shape == (6, 9, len([name for name in POINTS if name in used]))
    assert set(block.state_dict()) <= set(whole.state_dict())
    sizes = {
        "origin": 6 * 4 * 9,
        **dict.fromkeys(POINTS, 6 * 4),
        "chain": 4 * 4 + 6 * 4 * 9,
        "separable": 8 * 4 * 9 + 6 * 8 * 4,
    }
    counted = sum(parameter.numel() for parameter in block.parameters())
    assert counted == sum(sizes[name] + 6 for name in used) + 2 * 6  # each its weights and scale; the batch norm


@pytest.mark.parametrize("scaling", ["vector", "scalar", "none"])
@pytest.mark.parametrize("component", BLOCKS["orepa_vgg"].at_least_one)
@pytest.mark.parametrize("alone", [True, False])
def test_components_of_orepa_vgg(component, alone, scaling, lived_in):
    names = BLOCKS["orepa_vgg"].at_least_one
    used = (component,) if alone else tuple(name for name in names if name != component)
    options = {**switches(used, names), "scaling": scaling}
    online = lived_in(blocks.create("orepa_vgg", 4, 4, **options)).double().eval()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    wanted = named_gradients(online(x), x, online)
    for ways in ({"composition": "plain"}, {"reparam": "offline"}):
        other = blocks.create("orepa_vgg", 4, 4, **options, **ways).double().eval()
        other.load_state_dict(online.state_dict())
        agree(named_gradients(other(x), x, other), wanted, 1e-12)
    torch.testing.assert_close(online.fused()(x), wanted["y"], rtol=1e-12, atol=1e-12)


def test_the_state_of_orepa_is_called_as_ever():
    """Checkpoints depend on these names, and on what is at their places."""
    shapes = {name: tuple(tensor.shape) for name, tensor in blocks.create("orepa", 4, 6).branches.state_dict().items()}
    assert shapes == {
        "origin": (6, 4, 3, 3),
        "first": (4, 4, 1, 1),
        "second": (6, 4, 3, 3),
        "depthwise": (32, 1, 3, 3),
        "pointwise": (6, 32, 1, 1),
        "scales": (6, 6),
        "points.0": (6, 4, 1, 1),
        "points.1": (6, 4, 1, 1),
        "points.2": (6, 4, 1, 1),
    }


@pytest.mark.parametrize(
    ("name", "options", "kernels"),
    [
        ("orepa", {}, 5),  # average, prior, 1x1, chain, separable
        ("orepa", {"scaling": "scalar"}, 5),
        ("orepa_vgg", {}, 4),  # no 1x1
        ("orepa", {"origin": False}, 5),  # the origin is a parameter: nothing of it is kept either way
        ("orepa", {"prior": False, "separable": False}, 3),
    ],
)
def test_the_plain_composition_keeps_a_kernel_for_each_scaled_term(name, options, kernels):
    """A product keeps both factors: the gradient of v_j is the whole term j's, so autograd keeps that term.

    On 64 -> 64 that is 9 * 64 * 64 floats for each of the five terms that are not a parameter already; and the chain's
    product keeps its factor I + W1, 64 * 64 more, as it is not a parameter: 5 * 147,456 + 16,384 = 753,664 bytes.
    Both ways keep the input, the norm's input, its mean and deviation, and the kernel: 2 maps, 2 * 64 floats, 147,456.
    """
    x = torch.randn(8, 64, 56, 56)
    lean, plain = (saved_bytes(make(name, 64, 64, **options, composition=way), x) for way in ("lean", "plain"))
    assert plain - lean == kernels * KERNEL + 64 * 64 * 4
    if name == "orepa":
        assert lean == 2 * x.nbytes + KERNEL + 2 * 64 * 4 == 12_993_024
    if (name, options) == ("orepa", {}):
        assert plain == 13_746_688


def test_without_scales_there_is_nothing_to_keep_for_them():
    x = torch.randn(2, 64, 8, 8)
    lean, plain = (
        saved_bytes(blocks.create("orepa", 64, 64, scaling="none", composition=way), x) for way in ("lean", "plain")
    )
    assert plain - lean == 64 * 64 * 4  # I + W1


@pytest.mark.parametrize("name", ["orepa", "orepa_vgg", "orepa_stem"])
def test_plain_and_lean_differ_in_rounding_only(name, lived_in):
    lean = lived_in(make(name, 8, 8)).eval()
    plain = make(name, 8, 8, composition="plain").eval()
    plain.load_state_dict(lean.state_dict())
    x = torch.randn(2, 8, 9, 9)
    y = plain(x)
    torch.testing.assert_close(y, lean(x), rtol=1e-5, atol=1e-5)
    assert y.is_contiguous()
    with torch.autocast("cpu", torch.bfloat16):
        assert (plain(x).float() - y).abs().max() <= 0.1 * y.abs().max()


@pytest.mark.parametrize(
    "options", [{"composition": "plain"}, {"reparam": "offline"}, {"chain": False}, {"origin": False, "prior": False}]
)
def test_other_ways_compile_into_one_graph_and_export(options, lived_in):
    torch.compiler.reset()
    block = lived_in(blocks.create("orepa", 4, 4, **options)).eval()
    x = torch.randn(2, 4, 6, 6)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
    compiled(x).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())
    torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), block(x), rtol=1e-5, atol=1e-5)


LAYOUTS_1X1 = [(6, 6, 1), (6, 8, 1), (8, 6, 1), (8, 8, 4), (4, 8, 2), (8, 4, 2), (6, 6, 6), (6, 12, 6), (3, 5, 1)]


@pytest.mark.parametrize("reparam", ["online", "offline"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("c_in", "c_out", "groups"), LAYOUTS_1X1)
def test_orepa_1x1_is_a_1x1_and_two_in_a_row(c_in, c_out, groups, stride, reparam, lived_in):
    block = lived_in(blocks.create("orepa_1x1", c_in, c_out, 1, stride, groups, reparam=reparam)).double().eval()
    inputs, outputs = c_in // groups, c_out // groups
    x = torch.randn(2, c_in, 5, 4, dtype=torch.float64, requires_grad=True)
    parts = []
    for c in range(groups):  # a group at a time, as matrices
        width = block.first.shape[0] // groups
        assert width == min(inputs, outputs) if c_out <= c_in else width == inputs
        rows = slice(c * outputs, (c + 1) * outputs)
        first = block.first[c * width : (c + 1) * width, :, 0, 0]
        whole = block.origin[rows, :, 0, 0] * block.scales[0, rows, None]
        whole = whole + block.scales[1, rows, None] * (block.second[rows, :, 0, 0] @ first)
        parts.append(torch.einsum("oi,nihw->nohw", whole, x[:, c * inputs : (c + 1) * inputs, ::stride, ::stride]))
    wanted = named_gradients(block.bn(torch.cat(parts, 1)), x, block)
    agree(named_gradients(block(x), x, block), wanted, 1e-12)
    torch.testing.assert_close(block.fused()(x), wanted["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("c_in", "c_out", "groups"), LAYOUTS_1X1)
def test_orepa_1x1_starts_with_an_identity_on_the_smaller_side(c_in, c_out, groups):
    block = blocks.create("orepa_1x1", c_in, c_out, 1, groups=groups)
    square, other = (block.first, block.second) if c_out > c_in else (block.second, block.first)
    side = min(c_in, c_out) // groups
    assert torch.equal(square.flatten(1), torch.eye(side).repeat(groups, 1))
    assert other.shape == (c_out, c_in // groups, 1, 1)
    bound = math.sqrt(6 / (2 * (c_in // groups)))  # Kaiming-uniform, slope 1
    for weight in (block.origin, other):
        assert 0.5 * bound < weight.abs().max() <= bound
    assert block.scales.tolist() == [[1.0] * c_out, [0.5] * c_out]
    assert square.requires_grad


def test_a_1x1_has_nothing_to_dilate(lived_in):
    near, far = (lived_in(blocks.create("orepa_1x1", 4, 4, dilation=d, kernel_size=1)).eval() for d in (1, 3))
    far.load_state_dict(near.state_dict())
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(near(x), far(x))


STEMS = [
    # c_in, c_out, k, stride, groups, dilation
    (3, 8, 7, 2, 1, 1),
    (3, 5, 5, 1, 1, 1),
    (4, 4, 9, 1, 2, 2),
    (4, 8, 5, 2, 4, 3),
    (6, 6, 5, 1, 6, 1),
    (4, 2, 13, 2, 2, 1),
    (4, 6, 11, 1, 1, 2),
]


def stack_of_convolutions(block: nn.Module, x: Tensor) -> Tensor:
    """The stages one after the other on features, each by its kernel; all the padding first."""
    s = block.spec
    y = F.pad(x, [s.dilation * (s.kernel_size // 2)] * 4)
    kernels = [stage.kernel("plain") for stage in block.stages]
    assert [tuple(kernel.shape) for kernel in kernels] == [
        (s.c_out, c_in // s.groups, 3, 3) for c_in in [s.c_in] + [s.c_out] * (s.kernel_size // 2 - 1)
    ]
    for i, kernel in enumerate(kernels):
        y = F.conv2d(y, kernel, None, s.stride if i == len(kernels) - 1 else 1, 0, s.dilation, s.groups)
    return y


@pytest.mark.parametrize("options", [{}, {"composition": "plain"}, {"reparam": "offline"}], ids=str)
@pytest.mark.parametrize("place", STEMS)
def test_orepa_stem_is_a_stack_of_convolutions(place, options, lived_in):
    block = lived_in(blocks.create("orepa_stem", *place, **options)).double().eval()
    c_out, k = place[1], place[2]
    for shape in [(17, 18), (6, 5), (1, 1)]:
        x = torch.randn(2, place[0], *shape, dtype=torch.float64, requires_grad=True)
        wanted = named_gradients(block.bn(stack_of_convolutions(block, x)), x, block)
        found = block(x)
        assert found.shape == (2, c_out, *(-(-side // place[3]) for side in shape))
        agree(named_gradients(found, x, block), wanted, 1e-12)
        torch.testing.assert_close(block.fused()(x), wanted["y"], rtol=1e-12, atol=1e-12)
    assert block.kernel().weight.shape == (c_out, place[0] // place[4], k, k)
    for stage in block.stages:  # and each stage's kernel is the paper's
        torch.testing.assert_close(stage.kernel(), kernel_of_the_paper(stage), rtol=1e-12, atol=1e-12)


def test_squeezing_without_the_flip_is_another_function(lived_in):
    """The authors' code; fine as a generator of kernels, but not the stack of convolutions: wrong everywhere."""
    block = lived_in(blocks.create("orepa_stem", 4, 4, 7)).double().eval()
    x = torch.randn(1, 4, 12, 12, dtype=torch.float64)
    wanted = stack_of_convolutions(block, x)
    first, *later = (stage.kernel("plain") for stage in block.stages)
    squeezed = unflipped = first
    for kernel in later:
        squeezed = algebra.stack(squeezed, kernel, 1)
        unflipped = F.conv2d(unflipped.transpose(0, 1), kernel, padding=2).transpose(0, 1)
    torch.testing.assert_close(F.conv2d(x, squeezed, padding=3), wanted, rtol=1e-12, atol=1e-12)
    off = (F.conv2d(x, unflipped, padding=3) - wanted).abs()
    assert off[:, :, 3:-3, 3:-3].max() > 0.1 * wanted.abs().max()


def test_padding_every_stage_would_be_wrong_at_the_rim_only(lived_in):
    block = lived_in(blocks.create("orepa_stem", 4, 4, 5)).double().eval()
    x = torch.randn(1, 4, 12, 12, dtype=torch.float64)
    wanted, y = stack_of_convolutions(block, x), x
    for stage in block.stages:
        y = F.conv2d(y, stage.kernel(), padding=1)
    torch.testing.assert_close(y[:, :, 2:-2, 2:-2], wanted[:, :, 2:-2, 2:-2], rtol=1e-12, atol=1e-12)
    assert (y - wanted).abs().max() > 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("groups", [1, 2])
def test_stacked_kernels_of_different_sizes(groups):
    first, second = torch.randn(4, 4 // groups, 1, 5).double(), torch.randn(6, 4 // groups, 3, 2).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    wanted = F.conv2d(F.conv2d(x, first, groups=groups), second, groups=groups)
    found = F.conv2d(x, algebra.stack(first, second, groups), groups=groups)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
