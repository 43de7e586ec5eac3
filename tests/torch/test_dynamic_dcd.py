"""DCD against its equations, written out here sample by sample, and against the sizes of the published networks."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import timm
import torch
from metric_cells import CELL, count
from per_sample_equations import check, normed, pool_by_hand, size
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import Block
from harness.blocks.dynamic.dcd import DCDLinear
from harness.errors import Unsupported
from harness.records import Variant

RULES = "basic", "bottleneck", "mobile"


def hs(t: Tensor) -> Tensor:
    return (t + 3).clamp(0, 6) / 3


def path(phis: list[Tensor], z_NDL: Tensor, bn: nn.Module) -> Tensor:
    return normed(torch.stack([phi @ z for phi, z in zip(phis, z_NDL, strict=True)]), bn) + z_NDL


def attended(vector: Tensor, attention: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    v = attention.squeeze.weight @ vector
    v = v * hs(attention.gate.weight @ v)
    return (attention.phi.linear.weight @ v).reshape(width, width), hs(attention.scale.weight @ v)


def by_hand(block: Block, x: Tensor, side: int) -> Tensor:
    """One sample at a time, but for the norms."""
    s, width = block.spec, block.p.in_channels
    made = [attended(pool_by_hand(sample, side), block.attention, width) for sample in x]
    margin = s.padding - s.dilation * (s.kernel_size // 2)
    around = F.pad(x, [margin] * 4)  # a negative margin crops
    z = normed(F.conv2d(around, block.q.conv.weight, stride=s.stride), block.bn1)
    mixed = path([phi for phi, _ in made], z.flatten(2), block.bn2).reshape(z.shape)
    outputs = []
    for sample, inner, (_, scale) in zip(x, mixed, made, strict=True):
        # W_0's rows scaled: the sample has a kernel of its own
        kernel = scale[:, None, None, None] * block.conv.weight
        y = F.conv2d(sample[None], kernel, stride=s.stride, padding=s.padding, dilation=s.dilation)[0]
        outputs.append(y + torch.einsum("od,dhw->ohw", block.p.weight[:, :, 0, 0], inner))
    return normed(torch.stack(outputs), block.bn)


PLACES = [
    # rule, c_in, c_out, k, stride, dilation, padding
    ("basic", 6, 9, 3, 1, 1, None), ("basic", 6, 9, 3, 2, 2, None), ("basic", 5, 4, 1, 3, 1, None),
    ("basic", 4, 4, 5, 1, 1, 0), ("basic", 4, 6, 3, 2, 1, 3), ("bottleneck", 9, 6, 3, 2, 1, None),
    ("bottleneck", 16, 8, 1, 1, 1, None), ("mobile", 6, 36, 1, 1, 1, None), ("mobile", 36, 6, 1, 1, 1, None),
    ("mobile", 8, 16, 3, 2, 2, None),
]  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_it_computes_its_equation(place, batch, training, lived_in):
    rule, c_in, c_out, k, stride, dilation, padding = place
    block = blocks.create("dcd", c_in, c_out, k, stride, 1, dilation, padding, rule=rule)
    block = lived_in(block).double().train(training)
    side = 2 if rule == "basic" or (rule == "mobile" and c_in < c_out) else 1
    x = torch.randn(batch, c_in, 7, 10, dtype=torch.float64, requires_grad=True)
    check(block(x), by_hand(block, x, side), x, block)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (2, 3)])
def test_maps_smaller_than_the_pool(shape, lived_in):
    block = lived_in(blocks.create("dcd", 4, 6)).double().eval()
    x = torch.randn(3, 4, *shape, dtype=torch.float64, requires_grad=True)
    check(block(x), by_hand(block, x, 2), x, block)


@pytest.mark.parametrize("rule", RULES)
def test_without_its_path_and_with_scales_of_one_it_is_the_static_convolution(rule, lived_in):
    block = lived_in(blocks.create("dcd", 8, 12, 3, 2, rule=rule)).double().eval()
    x = torch.randn(3, 8, 9, 7, dtype=torch.float64)
    static = F.conv2d(x, block.conv.weight, stride=2, padding=1)
    assert not torch.allclose(block.convolved(x), static)
    nn.init.zeros_(block.attention.scale.weight)
    nn.init.zeros_(block.p.weight)
    torch.testing.assert_close(block.convolved(x), static, rtol=1e-13, atol=1e-13)


def test_without_phi_it_is_the_static_convolution_with_a_static_path(lived_in):
    """Phi = 0 leaves P (beta_2 and mean_2's constant + z): the identity beside it is there."""
    block = lived_in(blocks.create("dcd", 8, 12)).double().eval()
    nn.init.zeros_(block.attention.phi.linear.weight)
    nn.init.zeros_(block.attention.scale.weight)
    block.bn2.running_mean.zero_()
    nn.init.zeros_(block.bn2.bias)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    static = F.conv2d(x, block.conv.weight, padding=1) + block.p(block.bn1(block.q.conv(x)))
    torch.testing.assert_close(block.convolved(x), static, rtol=1e-12, atol=1e-12)


def test_scales_reach_from_0_to_2(lived_in):
    block = lived_in(blocks.create("dcd", 4, 4)).double()
    nn.init.constant_(block.attention.scale.weight, 100.0)
    _, scale = block.attention(torch.randn(50, 16, dtype=torch.float64))
    assert (scale.min(), scale.max()) == (0, 2)


WIDTHS = [
    # rule, squeeze, c_in, c_out -> pixels a side, d, q: worked out by hand
    ("basic", 16, 64, 64, 2, 16, 16), ("basic", 16, 128, 256, 2, 22, 32), ("basic", 16, 512, 512, 2, 45, 128),
    ("basic", 16, 4, 4, 2, 4, 4), ("basic", 8, 64, 64, 2, 16, 32), ("bottleneck", 16, 64, 64, 1, 8, 4),
    ("bottleneck", 16, 1024, 2048, 1, 32, 64), ("bottleneck", 16, 2048, 512, 1, 45, 128),
    ("mobile", 16, 16, 96, 2, 8, 4), ("mobile", 8, 16, 96, 2, 8, 8), ("mobile", 16, 160, 960, 2, 20, 40),
    # 320 of 960: 960 // 2 > sqrt(2 * 960) = 43.8; 320 // 2, // 4 as well; // 8 = 40 fits
    ("mobile", 16, 960, 320, 1, 40, 100), ("mobile", 16, 96, 24, 1, 12, 9), ("mobile", 16, 4, 4, 1, 4, 4),
    ("mobile", 16, 32, 32, 1, 8, 4), ("mobile", 16, 8, 64, 2, 4, 4),
]  # fmt: skip


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_widths(widths):
    rule, squeeze, c_in, c_out, side, width, narrow = widths
    with torch.device("meta"):
        block = blocks.create("dcd", c_in, c_out, 1, rule=rule, squeeze=squeeze)
    found = block.attention.squeeze.in_features, block.p.in_channels, block.attention.squeeze.out_features
    assert found == (side**2 * c_in, width, narrow)


def mobile_widths(c_in: int, c_out: int) -> tuple[int, int]:
    u, reduction = (4, 8) if c_in < c_out else (1, 2)
    d = min(u * c_in // reduction, c_out // reduction)
    while d * d > 2 * u * c_in:
        reduction *= 2
        d = min(u * c_in // reduction, c_out // reduction)
    return u, max(d, 4)


def test_parameters_in_closed_form():
    draw = random.Random(3)
    for _ in range(60):
        c_in, c_out, k = draw.randint(1, 300), draw.randint(1, 300), draw.choice([1, 3, 5])
        rule, squeeze = draw.choice(RULES), draw.choice([8, 16])
        u, d = {
            "basic": (4, int(math.sqrt(4 * c_in))),
            "bottleneck": (1, int(math.sqrt(c_in))),
            "mobile": mobile_widths(c_in, c_out),
        }[rule]
        q = max(max(u * c_in, d * d) // squeeze, 4)
        with torch.device("meta"):
            block = blocks.create("dcd", c_in, c_out, k, rule=rule, squeeze=squeeze)
        path_and_attention = c_in * d + d * c_out + 4 * d + u * c_in * q + q * q + q * d * d + q * c_out
        assert size(block) == k * k * c_in * c_out + path_and_attention + 2 * c_out


def dynamic_in_timm(name: str) -> bool:
    """The ResNets' convolutions but stem and shortcuts; MobileNetV2's 1x1 in units that expand."""
    if name.startswith("layer"):
        return "downsample" not in name
    return name.startswith("blocks") and name.endswith(("conv_pw", "conv_pwl")) and not name.startswith("blocks.0.")


NETWORKS = [
    ("resnet18", "basic", 16, 11_689_512, 14_703_332), ("resnet50", "bottleneck", 16, 25_557_032, 29_835_056),
    ("mobilenetv2_100", "mobile", 16, 3_504_872, 5_720_028), ("mobilenetv2_100", "mobile", 8, 3_504_872, 7_452_088),
    ("mobilenetv2_075", "mobile", 16, 2_636_424, 4_081_621), ("mobilenetv2_075", "mobile", 8, 2_636_424, 5_122_650),
    ("mobilenetv2_050", "mobile", 16, 1_968_680, 2_664_300), ("mobilenetv2_050", "mobile", 8, 1_968_680, 3_056_616),
    ("mobilenetv2_035", "mobile", 16, 1_677_128, 2_099_323), ("mobilenetv2_035", "mobile", 8, 1_677_128, 2_267_932),
]  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_networks_have_the_references_parameters(network):
    """timm's widths are the authors': the static networks' sizes are the well-known ones too."""
    name, rule, squeeze, static, total = network
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=1000)
        assert size(net) == static
        convs = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and dynamic_in_timm(name)}
        for name, conv in convs.items():
            ends = conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0]
            block = blocks.create("dcd", *ends, rule=rule, squeeze=squeeze)
            block.bn = nn.Identity()  # timm's own stands behind
            net.set_submodule(name, block)
        classifier = net.get_classifier()
        assert size(net) - size(classifier) + size(DCDLinear(classifier.in_features, 1000)) == total


def linear_by_hand(layer: DCDLinear, x: Tensor) -> Tensor:
    made = [attended(vector, layer.attention, 32) for vector in x]
    z = normed(x @ layer.q.weight.T, layer.bn1)
    inner = path([phi for phi, _ in made], z[:, :, None], layer.bn2)[:, :, 0]
    static = torch.stack(
        [scale * (layer.linear.weight @ v + layer.linear.bias) for v, (_, scale) in zip(x, made, strict=True)]
    )
    return inner @ layer.p.weight.T + static


@pytest.mark.parametrize(("batch", "training"), [(1, False), (2, False), (5, False), (2, True), (5, True)])
def test_the_classifier_computes_its_equation(batch, training, lived_in):
    layer = lived_in(DCDLinear(20, 7)).double().train(training)
    x = torch.randn(batch, 20, dtype=torch.float64, requires_grad=True)
    check(layer(x), linear_by_hand(layer, x), x, layer)


def test_the_classifier_without_its_path_and_with_scales_of_one_is_linear(lived_in):
    layer = lived_in(DCDLinear(20, 7)).double().eval()
    x = torch.randn(3, 20, dtype=torch.float64)
    assert not torch.allclose(layer(x), layer.linear(x))
    nn.init.zeros_(layer.attention.scale.weight)
    nn.init.zeros_(layer.p.weight)
    torch.testing.assert_close(layer(x), layer.linear(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("c_in", "c_out"), [(512, 1000), (2048, 1000), (7, 3)])
def test_parameters_of_the_classifier(c_in, c_out):
    layer = DCDLinear(c_in, c_out)
    assert size(layer) == c_in * c_out + c_out + 64 * c_in + 64 * c_out + 128 + 1_024 + 32_768


def test_the_classifier_is_not_trained_on_a_batch_of_one():
    layer = DCDLinear(8, 4)
    with pytest.raises(Unsupported, match="batch of 1") as refused:
        layer(torch.randn(1, 8))
    assert "batch of 2" in refused.value.remedy
    assert layer.eval()(torch.randn(1, 8)).shape == (1, 4)


def test_groups_are_refused():
    with pytest.raises(Unsupported, match="no groups") as refused:
        blocks.create("dcd", 8, 8, groups=8)
    assert refused.value.remedy == "use groups 1"


def deviation(tensor: Tensor) -> float:
    return tensor.std().item()


@pytest.mark.parametrize("rule", RULES)
def test_initialisation(rule):
    block = blocks.create("dcd", 256, 192, 3, rule=rule)
    width = block.p.in_channels
    assert deviation(block.conv.weight) == pytest.approx(math.sqrt(2 / (9 * 192)), rel=0.02)
    assert deviation(block.q.conv.weight) == pytest.approx(math.sqrt(2 / width), rel=0.05)
    assert deviation(block.p.weight) == pytest.approx(math.sqrt(2 / 192), rel=0.05)
    for linear in block.attention.linears():
        uniform = 1 / math.sqrt(3 * linear.in_features)
        assert deviation(linear.weight) == pytest.approx(0.01 if rule == "mobile" else uniform, rel=0.1)
        assert linear.bias is None


@pytest.mark.parametrize("rule", RULES)
def test_a_fresh_block_is_finite_in_eval(rule):
    block = blocks.create("dcd", 64, 64, rule=rule).eval()
    x = torch.randn(4, 64, 14, 14)
    unit, large = block(x).std(), block(100 * x).std()
    assert 0.5 < unit < 10
    assert large < 100**2 * unit  # of degree two at most


def test_a_fresh_chain_overflows_in_eval_until_it_has_collected_statistics():
    """As the module's docstring says: the degree doubles with every layer."""
    net = nn.Sequential(*(blocks.create("dcd", 32, 32) for _ in range(10)))
    x = torch.randn(8, 32, 8, 8)
    with torch.no_grad():
        assert not net.eval()(x).isfinite().all()
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        assert net.train()(x).isfinite().all()
        assert net.eval()(x).std() < 2


def test_what_makes_phi_is_counted_apart():
    cell = replace(CELL, block=Variant("dcd"), backbone=Variant("layer", {"c_in": 64, "c_out": 32}), image_size=10)
    macs = count("macs", cell, "train")
    d, q, pixels = 16, 16, 100
    attention = 4 * 64 * q + q * q + q * 32
    assert macs["macs"] == (9 * 64 * 32 + 64 * d + d * d + d * 32) * pixels + attention
    assert macs["macs_mixing"] == q * d * d
