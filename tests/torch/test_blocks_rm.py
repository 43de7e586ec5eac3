"""RMNet's two blocks: against torchvision's residual unit and plain convolutions, exact at every border; the nets."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

from harness import blocks
from harness.blocks import BLOCKS, ConvSpec
from harness.errors import Unsupported

PLACES = [
    ConvSpec(8, 8),
    ConvSpec(6, 9, stride=2),
    ConvSpec(9, 6, groups=3),
    ConvSpec(4, 4, 5, groups=2, dilation=2),
    ConvSpec(6, 6, groups=6),
    ConvSpec(3, 6, 7, stride=2, groups=3),
    ConvSpec(8, 8, margin=1),
    ConvSpec(4, 6, 5, stride=2, margin=-1),
    ConvSpec(4, 4, 5, margin=-2),
]


def rm(spec: ConvSpec, **options: str) -> nn.Module:
    return BLOCKS["rm"](spec, **options)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def norm(bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
    """In eval; in training by the batch's own statistics."""
    mean, var = (
        (y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)) if bn.training else (bn.running_mean, bn.running_var)
    )
    c = (slice(None), None, None)
    return (y - mean[c]) / torch.sqrt(var[c] + bn.eps) * bn.weight[c] + bn.bias[c]


def residual_unit(block: nn.Module, x: Tensor) -> Tensor:
    """Section 6 of the reference, one convolution after the other; a margin moves the shortcut's edges too."""
    s = block.spec
    same = s.dilation * (s.kernel_size // 2)
    y = norm(block.first.bn, F.conv2d(x, block.first.conv.weight, None, s.stride, s.padding, s.dilation, s.groups))
    y = F.conv2d(y.clamp(min=0), block.second.conv.weight, None, 1, same, s.dilation, s.groups)
    x = F.pad(x, [s.margin] * 4)
    if s.c_in != s.c_out or s.stride != 1:
        x = norm(block.shortcut.bn, F.conv2d(x, block.shortcut.conv.weight, None, s.stride, 0, 1, s.groups))
    return norm(block.second.bn, y) + x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_rm_is_a_residual_unit_without_its_last_relu(place, training, lived_in):
    block = lived_in(rm(place)).double().train(training)
    x = torch.randn(2, place.c_in, 9, 10, dtype=torch.float64, requires_grad=True)
    parameters = list(block.parameters())
    wanted, found = residual_unit(block, x), block(x)
    weights = torch.randn_like(wanted)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), [x, *parameters]),
        torch.autograd.grad((wanted * weights).sum(), [x, *parameters]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert relative(found, wanted) <= 1e-12


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_rm_fuses_into_two_convolutions_that_are_exact_for_what_they_ask(place, lived_in):
    block = lived_in(rm(place)).double().eval()
    signed = torch.randn(2, place.c_in, 9, 10, dtype=torch.float64)
    for x, carry in ((signed.abs(), "relu"), (signed.relu(), "relu"), (signed, "prelu"), (signed.abs(), "prelu")):
        unit = rm(place, carry=carry).double().eval()
        unit.load_state_dict(block.state_dict())
        with torch.no_grad():
            wanted, found = block(x), unit.fused()(x)
        assert found.shape == wanted.shape
        for rows, columns in ((slice(None), slice(None)), (0, slice(None)), (-1, slice(None)), (slice(None), 0)):
            assert wanted[:, :, rows, columns].abs().max() > 0.01
            assert relative(found[:, :, rows, columns], wanted[:, :, rows, columns]) <= 1e-12
    unguarded = nn.Sequential(*list(block.fused())[1:])  # and without what is asked it is another function
    assert relative(unguarded(signed), block(signed)) > 0.1


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_window_of_rm_is_what_one_output_sees(place, lived_in):
    block = lived_in(rm(place)).double().eval()
    window, middle = block.window, 8
    x = torch.randn(1, place.c_in, 40, 40, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[:, :, middle, middle].abs().sum(), x)
    seen = gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    first = middle * window.stride - window.padding
    taps = range(first, first + window.dilation * (window.kernel_size - 1) + 1)
    assert (seen[0], seen[-1]) == (max(taps[0], 0), min(taps[-1], 39))
    assert taps[0] >= 0  # nothing was cut off
    assert taps[-1] <= 39


@pytest.mark.parametrize(("c_in", "c_out", "stride"), [(8, 8, 1), (8, 16, 2), (8, 16, 1)])
def test_rm_removes_the_residuals_of_torchvisions_basic_blocks(c_in, c_out, stride, lived_in):
    """Two in a row, each with its last ReLU: what comes out of one is non-negative, as the next one asks."""
    nets: dict[str, list[nn.Module]] = {"torchvision": [], "plain": []}
    for i, o, s in ((c_in, c_out, stride), (c_out, c_out, 1)):
        project = nn.Sequential(nn.Conv2d(i, o, 1, s, bias=False), nn.BatchNorm2d(o)) if (i, s) != (o, 1) else None
        theirs = lived_in(BasicBlock(i, o, s, project)).double().eval()
        ours = blocks.create("rm", i, o, stride=s).double().eval()
        places = {"first.conv": "conv1", "first.bn": "bn1", "second.conv": "conv2", "second.bn": "bn2"}
        places |= {"shortcut.conv": "downsample.0", "shortcut.bn": "downsample.1"} if project else {}
        for here, there in places.items():
            ours.get_submodule(here).load_state_dict(theirs.get_submodule(there).state_dict())
        nets["torchvision"].append(theirs)
        nets["plain"] += [ours.fused(), nn.ReLU()]
    theirs, plain = (nn.Sequential(*layers) for layers in nets.values())
    kinds = {type(module) for module in plain.modules() if not list(module.children())}
    assert {kind.__name__ for kind in kinds} == {"NonNegative", "Conv2d", "ReLU"}
    x = torch.randn(2, c_in, 11, 8, dtype=torch.float64).relu()
    assert relative(plain(x), theirs(x)) <= 1e-12


def test_rm_has_the_parameters_of_the_references_example():
    block = blocks.create("rm", 8, 8)
    assert sum(parameter.numel() for parameter in block.parameters()) == 1_184
    fused = block.fused()
    assert sum(parameter.numel() for parameter in fused.parameters()) == 2_328
    copies = fused.reserve.weight[:8]
    assert torch.equal(copies, F.pad(torch.eye(8)[:, :, None, None], [1] * 4))
    assert not fused.reserve.bias[:8].any()
    slopes = blocks.create("rm", 8, 8, groups=2, carry="prelu").fused().act.weight
    assert slopes.tolist() == ([1.0] * 4 + [0.0] * 4) * 2


def test_rm_refuses_a_first_batch_below_zero_and_looks_no_more_after_it():
    fused = blocks.create("rm", 4, 4).fused()
    good, bad = torch.rand(1, 4, 5, 5), torch.rand(1, 4, 5, 5)
    bad[0, 3, 4, 4] = -1e-3
    for _ in range(2):
        with pytest.raises(Unsupported, match="negative values") as refused:
            fused(bad)
    assert "carry: prelu" in refused.value.remedy
    fused(good)
    fused(bad)
    assert BLOCKS["rm"].needs == "non-negative input"
    signed = blocks.create("rm", 4, 4, carry="prelu").fused()
    signed(bad)
    assert [name for name, _ in signed.named_children()] == ["reserve", "act", "merge"]


def test_rm_looks_only_at_what_has_values():
    torch.compiler.reset()
    fused, signed = blocks.create("rm", 4, 4).fused(), torch.randn(2, 4, 5, 5)
    torch.compile(fused, backend="aot_eager", fullgraph=True)(signed)
    torch.export.export(fused, (signed,))
    with torch.device("meta"):
        assert blocks.create("rm", 4, 4).fused()(signed.to("meta")).shape == (2, 4, 5, 5)
    with FakeTensorMode():
        fake = blocks.create("rm", 4, 6, stride=2).fused()
        assert fake(torch.randn(2, 4, 5, 5)).shape == (2, 6, 3, 3)
    assert not fused.input.looked
    with pytest.raises(Unsupported):
        fused(signed)


@pytest.mark.parametrize("carry", ["relu", "prelu"])
def test_fusing_rm_makes_something_new_and_leaves_the_unit_alone(carry, lived_in):
    block = lived_in(blocks.create("rm", 4, 6, carry=carry)).train().requires_grad_(False)
    before, stream = copy.deepcopy(block.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        fused = block.fused()
    assert torch.equal(torch.get_rng_state(), stream)
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)
    assert fused.training
    assert not any(parameter.requires_grad for parameter in block.parameters())
    kept = {tensor.untyped_storage().data_ptr() for tensor in block.state_dict().values()}
    assert not kept & {tensor.untyped_storage().data_ptr() for tensor in fused.state_dict().values()}
    x = torch.rand(2, 4, 5, 5)
    fused(x).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in (fused.reserve.weight, fused.merge.weight))
    fresh = blocks.create("rm", 4, 6, carry=carry).fused()
    fresh.load_state_dict(fused.state_dict())
    assert torch.equal(fresh(x), fused(x))
    half = lived_in(blocks.create("rm", 4, 6, carry=carry)).to(torch.bfloat16).fused()
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    half(x.bfloat16())


def test_rm_has_no_1x1():
    with pytest.raises(Unsupported, match="kernel size 1"):
        blocks.create("rm", 4, 4, kernel_size=1)


RM_REPVGG = [
    ConvSpec(8, 8),
    ConvSpec(8, 8, stride=2),
    ConvSpec(8, 8, 5, dilation=2),
    ConvSpec(7, 7),  # no whole number of channels
    ConvSpec(4, 4, 1),
    ConvSpec(1, 1),  # nothing to hand on
    ConvSpec(8, 8, margin=1, stride=2),
    ConvSpec(8, 8, 5, margin=-1),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ratio", [25, 50, 75])
@pytest.mark.parametrize("place", RM_REPVGG, ids=str)
def test_rm_repvgg_hands_some_inputs_on_and_makes_the_others(place, ratio, training, lived_in):
    """Signed inputs too: there is no ReLU for them to pass."""
    block = lived_in(BLOCKS["rm_repvgg"](place, ratio=ratio)).double().train(training)
    c, s = place.c_in, place.stride
    handed_on = {25: {8: 2, 7: 1, 4: 1, 1: 0}, 50: {8: 4, 7: 3, 4: 2, 1: 0}, 75: {8: 6, 7: 5, 4: 3, 1: 0}}[ratio][c]
    x = torch.randn(3, c, 9, 10, dtype=torch.float64)
    moved = F.pad(x, [place.margin] * 4)
    square, point, *identity = block.branches
    made = norm(square.bn, F.conv2d(x, square.conv.weight, None, s, place.padding, place.dilation))
    made = made + norm(point.bn, F.conv2d(moved, point.conv.weight, None, s))
    assert len(identity) == (s == 1)
    for branch in identity:
        made = made + norm(branch.bn, moved[:, handed_on:])
    wanted = torch.cat([moved[:, :handed_on, ::s, ::s], made], 1)
    assert relative(block(x), wanted) <= 1e-12
    if training:
        return
    fused = block.fused()
    assert relative(fused(x), wanted) <= 1e-12
    dirac = torch.zeros(handed_on, c, place.kernel_size, place.kernel_size, dtype=x.dtype)
    for o in range(handed_on):
        dirac[o, o, place.kernel_size // 2, place.kernel_size // 2] = 1
    assert torch.equal(fused.weight[:handed_on], dirac)
    assert not fused.bias[:handed_on].any()


def net(pairs: int, ratio: int) -> nn.Sequential:
    """RM-RepVGG of section 6: an RM block before each RepVGG block of a stage; a ReLU behind every one."""
    layers: list[nn.Module] = []

    def add(name: str, c_in: int, c_out: int, stride: int, **options: int) -> None:
        layers.extend([blocks.create(name, c_in, c_out, stride=stride, **options), nn.ReLU()])

    add("repvgg", 3, 64, 2)
    width = 64
    for wider in (64, 128, 256, 512):
        add("repvgg", width, wider, 2)
        width = wider
        for _ in range(pairs):
            add("rm_repvgg", width, width, 1, ratio=ratio)
            add("repvgg", width, width, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def fused(model: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(layer.fused() if isinstance(layer, blocks.Block) else layer for layer in model))


@pytest.mark.parametrize(
    ("depth", "pairs", "ratio", "train", "deploy"),
    [
        (21, 2, 25, 14_486_056, 14_638_504),
        (37, 4, 25, 26_691_816, 27_176_104),
        (69, 8, 50, 44_128_616, 52_251_304),
        (133, 16, 75, 72_027_496, 102_401_704),
    ],
)
def test_networks_of_rm_repvgg_have_the_parameters_of_the_reference(depth, pairs, ratio, train, deploy):
    with torch.device("meta"):
        model = net(pairs, ratio)
        plain = fused(model)
    assert sum(isinstance(layer, blocks.Block) for layer in model) == depth
    assert sum(parameter.numel() for parameter in model.parameters()) == train
    assert sum(parameter.numel() for parameter in plain.parameters()) == deploy


def gmacs(model: nn.Module) -> float:
    """Cut off after one decimal, as printed: 2.16 stands as 2.1."""
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    return math.floor(counter.get_total_flops() / 2e8) / 10


@pytest.mark.parametrize(
    ("pairs", "ratio", "train", "deploy"), [(2, 25, 2.1, 2.1), (4, 25, 3.9, 4.0), (8, 50, 6.5, 7.7)]
)
def test_networks_of_rm_repvgg_have_the_published_macs(pairs, ratio, train, deploy):
    """As the authors' README has them for depths 21 to 69; those of depth 133, 10.6 and 15.1, agreed when tried."""
    with torch.device("meta"):
        model = net(pairs, ratio)
        assert (gmacs(model), gmacs(fused(model))) == (train, deploy)


def test_a_network_of_rm_repvgg_fuses_exactly(lived_in):
    model = lived_in(net(2, 25)).double().eval()
    x = torch.randn(2, 3, 33, 32, dtype=torch.float64)
    with torch.no_grad():
        assert relative(fused(model)(x), model(x)) <= 1e-12
