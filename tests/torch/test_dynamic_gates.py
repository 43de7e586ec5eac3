"""WeightNet and CGC against their equations, written out here sample by sample, and against the published networks."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import timm
import torch
from metric_cells import CELL, count
from per_sample_equations import check, normed, pool_by_hand, size
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.shufflenetv2 import InvertedResidual, ShuffleNetV2

from harness import blocks
from harness.blocks import Block
from harness.errors import Unsupported
from harness.records import Variant


def convolved(block: Block, x: Tensor, kernels: list[Tensor]) -> Tensor:
    s = block.spec
    rest = {"stride": s.stride, "padding": s.padding, "dilation": s.dilation, "groups": s.groups}
    return torch.cat([F.conv2d(sample[None], kernel, **rest) for sample, kernel in zip(x, kernels, strict=True)])


def weightnet_kernel(block: Block, x_CHW: Tensor, sigmoids: int, parts: int) -> Tensor:
    """As the paper has it: a grouped 1x1 of sigmoids(U (R mean + b) + c), in the depthwise rule one group a channel."""
    s = block.spec
    reduced = block.reduce.weight @ x_CHW.mean((1, 2)) + block.reduce.bias
    a = torch.sigmoid(block.activate.weight @ reduced + block.activate.bias)
    groups = s.c_out if (s.c_in // s.groups * s.kernel_size**2) % parts else parts * s.c_out
    assert len(a) == groups * sigmoids // parts
    weight = block.generate.weight.reshape(-1, sigmoids // parts, 1, 1)
    return F.conv2d(a[None, :, None, None], weight, groups=groups).reshape(
        s.c_out, s.c_in // s.groups, s.kernel_size, s.kernel_size
    )


def weightnet_by_hand(block: Block, x: Tensor, sigmoids: int = 2, parts: int = 2) -> Tensor:
    kernels = [weightnet_kernel(block, sample, sigmoids, parts) for sample in x]
    return normed(convolved(block, x, kernels), block.bn)


def linear_by_taps(weight_OI: Tensor, vectors_CI: Tensor) -> Tensor:
    return torch.stack([weight_OI @ vector for vector in vectors_CI])


def cgc_mixes(c_in: int, c_out: int) -> int:
    return max(n for n in range(1, max(1, c_in // 16) + 1) if c_in % n == 0 and c_out % n == 0)


def cgc_by_hand(block: Block, x: Tensor) -> Tensor:
    s, g, k = block.spec, block.gate, block.spec.kernel_size
    context = torch.stack([linear_by_taps(g.encode.weight, pool_by_hand(sample, k).reshape(-1, k * k)) for sample in x])
    first, second = (torch.relu(normed(context, bn)) for bn in (g.bn1, g.bn2))
    n = cgc_mixes(s.c_in, s.c_out)
    mix = g.mix.weight[:, :, 0]
    mixed = torch.stack([torch.cat([mix @ part for part in codes.chunk(n)]) for codes in second])
    third = torch.relu(normed(mixed, g.bn3))
    kernels = []
    for to_inputs, to_outputs in zip(first, third, strict=True):
        inputs = linear_by_taps(g.decode_inputs.weight, to_inputs).reshape(s.c_in, k, k)
        outputs = linear_by_taps(g.decode_outputs.weight, to_outputs).reshape(s.c_out, k, k)
        seen, made = s.c_in // s.groups, s.c_out // s.groups
        gate = torch.stack(
            [
                torch.stack([torch.sigmoid(inputs[o // made * seen + i] + outputs[o]) for i in range(seen)])
                for o in range(s.c_out)
            ]
        )
        kernels.append(gate * block.conv.weight)
    return normed(convolved(block, x, kernels), block.bn)


PLACES = [
    # c_in, c_out, k, stride, groups, dilation, padding
    (4, 6, 3, 1, 1, 1, None), (6, 4, 3, 2, 1, 2, None), (6, 4, 3, 1, 2, 1, None), (6, 6, 3, 2, 6, 1, None),
    (5, 7, 3, 1, 1, 1, None), (4, 8, 3, 1, 4, 2, None), (4, 6, 5, 3, 1, 1, 0), (4, 6, 3, 1, 1, 1, 3),
    (32, 6, 3, 2, 1, 1, None), (48, 9, 3, 2, 3, 1, None), (4, 6, 1, 1, 1, 1, None), (6, 6, 1, 2, 6, 1, None),
]  # fmt: skip
HANDS = {"weightnet": weightnet_by_hand, "cgc": cgc_by_hand}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name in HANDS for place in PLACES if (name, place[2]) != ("cgc", 1)], ids=str
)
def test_they_compute_their_equations(name, place, batch, training, lived_in):
    block = lived_in(blocks.create(name, *place)).double().train(training)
    x = torch.randn(batch, place[0], 7, 10, dtype=torch.float64, requires_grad=True)
    check(block(x), HANDS[name](block, x), x, block)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize(("sigmoids", "parts"), [(2, 1), (4, 2), (4, 1), (8, 2), (8, 1)])
def test_more_sigmoids_for_each_part_of_a_filter(sigmoids, parts, groups, lived_in):
    block = lived_in(blocks.create("weightnet", 8, 8, groups=groups, sigmoids=sigmoids, parts=parts)).double()
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    check(block(x), weightnet_by_hand(block, x, sigmoids, parts), x, block)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (2, 3)])
@pytest.mark.parametrize("name", HANDS)
def test_maps_smaller_than_the_kernel(name, shape, lived_in):
    block = lived_in(blocks.create(name, 4, 6, 5)).double()
    x = torch.randn(3, 4, *shape, dtype=torch.float64, requires_grad=True)
    check(block(x), HANDS[name](block, x), x, block)


@pytest.mark.parametrize("place", [(8, 6, 3, 1, 1, 1), (8, 8, 3, 2, 8, 2), (8, 12, 5, 1, 4, 1)], ids=str)
def test_cgc_with_decoders_of_zero_has_half_its_kernel(place, lived_in):
    block = lived_in(blocks.create("cgc", *place)).double().eval()
    x = torch.randn(3, 8, 9, 7, dtype=torch.float64)
    _, _, k, stride, groups, dilation = place
    half = F.conv2d(x, block.conv.weight / 2, None, stride, dilation * (k // 2), dilation, groups)
    assert not torch.allclose(block.convolved(x), half)
    for linear in (block.gate.decode_inputs, block.gate.decode_outputs):
        nn.init.zeros_(linear.weight)
    torch.testing.assert_close(block.convolved(x), half, rtol=1e-13, atol=1e-13)


def test_cgc_at_one_tap_is_a_plain_convolution(lived_in):
    block = lived_in(blocks.create("cgc", 8, 12, 1, 2, 4)).double().eval()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(block(x), block.bn(F.conv2d(x, block.conv.weight, stride=2, groups=4)))
    assert size(block) == 8 * 12 // 4 + 2 * 12


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize(("sigmoids", "parts"), [(2, 2), (8, 2), (4, 1)])
def test_weightnet_with_a_first_layer_of_zero_is_static(sigmoids, parts, groups, lived_in):
    """Every sigmoid is 1/2: a kernel's element is half the sum over the sigmoids that make it."""
    block = lived_in(blocks.create("weightnet", 8, 8, groups=groups, sigmoids=sigmoids, parts=parts)).double().eval()
    x = torch.randn(3, 8, 9, 7, dtype=torch.float64)
    kernel = 0.5 * block.generate.weight.reshape(-1, sigmoids // parts).sum(1).reshape(8, 8 // groups, 3, 3)
    static = F.conv2d(x, kernel, padding=1, groups=groups)
    assert not torch.allclose(block.convolved(x), static)
    nn.init.zeros_(block.activate.weight)
    nn.init.zeros_(block.activate.bias)
    torch.testing.assert_close(block.convolved(x), static, rtol=1e-13, atol=1e-13)


def test_parameters_of_weightnet_in_closed_form():
    draw = random.Random(1)
    for _ in range(60):
        groups, k = draw.choice([1, 1, 2, 5]), draw.choice([1, 3, 5])
        c_in, c_out, m, g = (
            groups * draw.randint(1, 60),
            groups * draw.randint(1, 60),
            draw.choice([2, 4, 8]),
            draw.choice([1, 2]),
        )
        elements, r = c_in // groups * k * k, max(16, c_in // 16)
        with torch.device("meta"):
            block = blocks.create("weightnet", c_in, c_out, k, groups=groups, sigmoids=m, parts=g)
        sigmoids = m * c_out if elements % g == 0 else m // g * c_out
        assert size(block) == c_in * r + r + (r + 1) * sigmoids + m // g * c_out * elements + 2 * c_out


@pytest.mark.parametrize(("m", "g"), [(2, 2), (8, 2), (4, 1)])
@pytest.mark.parametrize(("c", "k"), [(24, 3), (62, 5), (512, 3)])
def test_parameters_of_a_depthwise_weightnet(c, k, m, g):
    """The reference's own formula for a depthwise layer, beside the reduction and the norm."""
    block = blocks.create("weightnet", c, c, k, groups=c, sigmoids=m, parts=g)
    r, each = max(16, c // 16), m // g
    assert size(block) == c * r + r + r * each * c + each * c + each * c * k * k + 2 * c


def test_parameters_of_cgc_in_closed_form():
    draw = random.Random(2)
    for _ in range(60):
        groups, k = draw.choice([1, 1, 2, 5]), draw.choice([3, 5, 7])
        c_in, c_out = groups * draw.randint(1, 60), groups * draw.randint(1, 60)
        with torch.device("meta"):
            block = blocks.create("cgc", c_in, c_out, k, groups=groups)
        latent, n = int(k * k / 2 + 1), cgc_mixes(c_in, c_out)
        gate = 3 * k * k * latent + 4 * c_in + c_in // n * (c_out // n) + 2 * c_out
        assert size(block) == c_in // groups * c_out * k * k + gate + 2 * c_out


@pytest.mark.parametrize(
    ("c_in", "c_out", "k", "more"), [(64, 64, 3, 775), (128, 128, 3, 1159), (3, 64, 7, 4007), (32, 96, 3, None)]
)
def test_parameters_of_cgc_are_those_of_the_released_code(c_in, c_out, k, more):
    """Where that code works: 16 channels a group, or all of fewer."""
    latent, together = int(k * k / 2 + 1), 16 if c_in >= 16 else c_in
    formula = k * k * latent + 4 * c_in + together * (c_out // (c_in // together)) + 2 * c_out + 2 * latent * k * k
    assert more in (None, formula)
    assert size(blocks.create("cgc", c_in, c_out, k)) == c_in * c_out * k * k + formula + 2 * c_out


def test_cgcs_resnet50_has_the_references_parameters():
    with torch.device("meta"):
        net = timm.create_model("resnet50", num_classes=1000)
        for name, conv in [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]:
            block = blocks.create("cgc", conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0])
            block.bn = nn.Identity()
            net.set_submodule(name, block)
    assert size(net) == 25_589_951


SHUFFLENETS = {
    # channels of the stages: WeightNet's total, its authors' static network less torchvision's (the first unit)
    (48, 96, 192): (1_463_928, 0),
    (112, 224, 448): (2_435_832, 1_024),
    (176, 352, 704): (3_915_344, 4_096),
    (248, 496, 992): (6_198_068, 10_000),
}


def unit(c_in: int, c_out: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(c_in, c_out, k, groups) of a unit's convolutions; at stride 1, c_in is the half that it works on.

    The authors' shortcut keeps c_in channels and the other path makes the rest; torchvision's has half of the outputs.
    """
    middle = c_out // 2
    convs = [(c_in, middle, 1, 1), (middle, middle, 3, middle), (middle, c_out - c_in, 1, 1)]
    return convs + ([(c_in, c_in, 3, c_in), (c_in, c_in, 1, 1)] if stride == 2 else [])


@pytest.mark.parametrize("widths", SHUFFLENETS, ids=str)
def test_weightnets_shufflenets_have_the_references_parameters(widths):
    """One reduction for each unit; stem and last convolution static, with bias."""
    total, first_unit = SHUFFLENETS[widths]
    dynamic = static = 0
    with torch.device("meta"):
        for (c_in, c_out), units in zip(pairwise((24, *widths)), (4, 8, 4), strict=True):
            for i in range(units):
                convs = unit(c_out // 2, c_out, 1) if i else unit(c_in, c_out, 2)
                made = [blocks.create("weightnet", i, o, k, groups=groups) for i, o, k, groups in convs]
                assert len({block.activate.in_features for block in made}) == 1  # they can share what is reduced
                dynamic += sum(size(block) - size(block.reduce) for block in made) + size(made[0].reduce)
                static += sum(size(blocks.create("conv", i, o, k, groups=groups)) for i, o, k, groups in convs)
        plain = ShuffleNetV2([4, 8, 4], [24, *widths, 1024])
        ends = size(plain) - sum(size(m) for m in plain.modules() if isinstance(m, InvertedResidual))
        assert ends + static == size(plain) + first_unit
    assert dynamic + ends + 24 + 1024 == total


def test_initialisation_of_weightnet():
    block = blocks.create("weightnet", 512, 96, 3)
    for weight, std in [
        (block.reduce.weight, 1 / 512),
        (block.activate.weight, 1 / 32),
        (block.generate.weight, 2 / (512 * 9)),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert block.reduce.bias.eq(0).all()
    assert block.activate.bias.eq(0).all()
    assert blocks.create("weightnet", 512, 512, 3, groups=512).generate.weight.std().item() == pytest.approx(
        1 / 9, rel=0.05
    )


def test_initialisation_of_cgc():
    block = blocks.create("cgc", 64, 96, 3)
    assert block.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 96)), rel=0.05)
    for linear, inputs in [(block.gate.encode, 9), (block.gate.mix, 16), (block.gate.decode_inputs, 5)]:
        assert linear.weight.abs().max().item() == pytest.approx(1 / math.sqrt(inputs), rel=0.1)


@pytest.mark.parametrize("name", HANDS)
def test_they_train_on_a_batch_of_one(name):
    block = blocks.create(name, 8, 8)
    y = block(torch.randn(1, 8, 5, 5))
    y.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.parametrize("option", [{"sigmoids": 1}, {"sigmoids": 16}, {"parts": 4}], ids=str)
def test_sizes_that_weightnet_does_not_have_are_refused(option):
    with pytest.raises(Unsupported) as refused:
        blocks.create("weightnet", 8, 8, **option)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("block", "beside", "mixing"),
    [
        (Variant("weightnet"), 64 * 16 + 16 * 2 * 32, 9 * 64 * 32),
        (Variant("weightnet", {"sigmoids": 8, "parts": 1}), 64 * 16 + 16 * 8 * 32, 8 * 9 * 64 * 32),
        # encoder and decoders, 4 groups of channels mixed at 5 positions, the gated kernel
        (Variant("cgc"), 0, 9 * 5 * (64 + 64 + 32) + 16 * 32 * 5 + 9 * 64 * 32),
    ],
    ids=str,
)
def test_what_makes_kernels_is_counted_apart(block, beside, mixing):
    cell = replace(CELL, block=block, backbone=Variant("layer", {"c_in": 64, "c_out": 32}), image_size=10)
    macs = count("macs", cell, "train")
    assert (macs["macs"], macs["macs_mixing"]) == (9 * 64 * 32 * 100 + beside, mixing)
