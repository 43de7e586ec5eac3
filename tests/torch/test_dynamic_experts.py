"""CondConv, DY-Conv and ODConv against their equations, sample by sample, and against what must be so exactly."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from expert_blocks import NAMES, VARIANTS, make, maps, temper
from timm.layers import CondConv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harness import blocks
from harness.blocks import Block, ConvSpec
from harness.errors import Unsupported

PLACES = [
    ConvSpec(4, 6),
    ConvSpec(3, 6, stride=2),
    ConvSpec(4, 6, stride=2, groups=2),
    ConvSpec(6, 6, groups=6, dilation=2),
    ConvSpec(4, 8, 5, stride=3, groups=4, dilation=2, margin=-2),
    ConvSpec(4, 8, 1),
    ConvSpec(4, 8, 1, stride=2),
    ConvSpec(4, 4, 1, groups=4),
    ConvSpec(4, 6, 1, margin=1),
]


def convolved(x: Tensor, weight: Tensor, s: ConvSpec) -> Tensor:
    return F.conv2d(x, weight, None, s.stride, s.padding, s.dilation, s.groups)


def kernels_of(block: Block) -> Tensor:
    s = block.spec
    return block.experts.reshape(-1, s.c_out, s.c_in // s.groups, s.kernel_size, s.kernel_size)


def linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


# The equations, for one sample after another. Nothing of harness.blocks but the parameters.


def condconv(block: Block, x: Tensor) -> Tensor:
    p, outputs = dict(block.named_parameters()), []
    for sample in x:
        r = 1 / (1 + torch.exp(-linear(sample.mean((1, 2)), p, "routing")))
        weight = sum(r[n] * expert for n, expert in enumerate(kernels_of(block)))
        outputs.append(convolved(sample[None], weight, block.spec))
    return torch.cat(outputs)


def dyconv(block: Block, x: Tensor) -> Tensor:
    p, outputs = dict(block.named_parameters()), []
    for sample in x:
        z = linear(F.relu(linear(sample.mean((1, 2)), p, "attention.squeeze")), p, "attention.kernels")
        powers = torch.exp(z / block.attention.temperature.item())
        weight = sum(powers[n] / powers.sum() * kernel for n, kernel in enumerate(kernels_of(block)))
        outputs.append(convolved(sample[None], weight, block.spec))
    return torch.cat(outputs)


def odconv(block: Block, x: Tensor) -> Tensor:
    """Products in the order of the original: on the map, and on every kernel before the sum."""
    s, p, t = block.spec, dict(block.named_parameters()), block.attention.temperature.item()
    norm = block.attention.squeeze[1]
    hidden = F.relu(norm(linear(x.mean((2, 3)), p, "attention.squeeze.0")))
    outputs = []
    for sample, h in zip(x, hidden, strict=True):
        z = {name: linear(h, p, f"attention.heads.{name}") / t for name in block.attention.heads}
        gate = {name: 1 / (1 + torch.exp(-z[name])) for name in z}
        taps = gate["spatial"].reshape(s.kernel_size, -1) if "spatial" in gate else 1.0
        share = torch.exp(z["kernel"]) / torch.exp(z["kernel"]).sum() if "kernel" in z else [1.0]
        weight = sum(share[n] * taps * kernel for n, kernel in enumerate(kernels_of(block)))
        y = convolved(sample[None] * gate["channel"][:, None, None], weight, s)
        outputs.append(y * gate["filter"][:, None, None] if "filter" in gate else y)
    return torch.cat(outputs)


EQUATIONS = {"condconv": condconv, "dyconv": dyconv, "odconv": odconv}


@pytest.mark.parametrize("spec", PLACES, ids=lambda s: f"{s.c_in}-{s.c_out}k{s.kernel_size}s{s.stride}g{s.groups}")
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_outputs_and_gradients_are_the_equations_of_each_sample(name, options, spec, lived_in):
    """In training; a batch of one in eval mode where its batch norm cannot be trained on it."""
    block = lived_in(make(name, spec, **options))
    if name != "condconv":
        temper(block, 2.5)
    for n in (1, 2, 5):
        block.train(n > 1 or options.get("attention_norm", "batch" if name == "odconv" else "") != "batch")
        x = maps(n, spec).requires_grad_()
        y, expected = block(x), block.bn(EQUATIONS[name](block, x))
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
        inputs, g = [x, *block.parameters()], torch.randn_like(y)
        for ours, theirs in zip(*(torch.autograd.grad(each, inputs, g) for each in (y, expected)), strict=True):
            assert torch.isfinite(ours).all()
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_channels_last_model_computes_the_same(lived_in):
    for name, options in VARIANTS:
        block = lived_in(make(name, ConvSpec(4, 6), **options)).eval()
        x = maps(2, block.spec)
        expected = block(x)
        other = block.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(other, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", PLACES[:3])
def test_dyconv_so_hot_that_it_cannot_choose_is_the_mean_kernel(spec, lived_in):
    block = lived_in(make("dyconv", spec))
    x = maps(3, spec)
    mean = convolved(x, kernels_of(block).mean(0), spec)
    assert (block.convolved(x) - mean).abs().max() > 0.01  # not so at T = 1
    temper(block, 1e12)
    torch.testing.assert_close(block.convolved(x), mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernels", [1, 4])
@pytest.mark.parametrize(
    ("spec", "factor"),
    [
        (ConvSpec(4, 6), 0.125),
        (ConvSpec(4, 6, groups=2), 0.125),
        (ConvSpec(4, 8, groups=4), 0.125),  # a channel multiplier is not depthwise: it has its filter attention
        (ConvSpec(4, 6, 1), 0.25),
        (ConvSpec(4, 4, groups=4), 0.25),
        (ConvSpec(4, 4, 1, groups=4), 0.5),
    ],
)
def test_odconv_with_zero_heads_halves_along_each_axis_that_it_has(spec, factor, kernels, lived_in):
    block = lived_in(make("odconv", spec, kernels=kernels))
    for parameter in block.attention.heads.parameters():
        nn.init.zeros_(parameter)
    x = maps(3, spec)
    expected = factor * convolved(x, kernels_of(block).mean(0), spec)
    torch.testing.assert_close(block.convolved(x), expected, rtol=1e-12, atol=1e-12)


def test_odconv_has_the_attentions_that_do_something():
    def heads(spec: ConvSpec, kernels: int = 1) -> set[str]:
        return set(make("odconv", spec, kernels=kernels).attention.heads)

    assert heads(ConvSpec(4, 6), kernels=4) == {"channel", "filter", "spatial", "kernel"}
    assert heads(ConvSpec(4, 6)) == {"channel", "filter", "spatial"}
    assert heads(ConvSpec(4, 6, 1)) == {"channel", "filter"}
    assert heads(ConvSpec(4, 4, groups=4)) == {"channel", "spatial"}
    assert heads(ConvSpec(4, 4, 1, groups=4)) == {"channel"}


class Convolutions(TorchDispatchMode):
    """The (weight shape, groups) of every convolution, and the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], int]] = []
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.add(func.overloadpacket.__name__)
        if func.overloadpacket is torch.ops.aten.convolution:
            self.seen.append((tuple(args[1].shape), args[8]))
        return func(*args, **(kwargs or {}))


def test_odconv_1x1_with_one_kernel_is_one_plain_convolution():
    block, x = make("odconv", ConvSpec(4, 6, 1)), maps(5, ConvSpec(4, 6, 1))
    with Convolutions() as plain:
        block(x)
    assert plain.seen == [((6, 4, 1, 1), 1)]
    assert "bmm" not in plain.operations
    with Convolutions() as dynamic:
        make("odconv", ConvSpec(4, 6))(x)
    assert dynamic.seen == [((30, 4, 3, 3), 5)]


@pytest.mark.parametrize("spec", PLACES[:4])
def test_condconv_routed_to_one_expert_is_that_expert(spec, lived_in):
    block = lived_in(make("condconv", spec))
    x = maps(2, spec)
    for expert in range(4):
        nn.init.zeros_(block.routing.weight)
        with torch.no_grad():
            block.routing.bias.fill_(-1e3)[expert] = 1e3
        expected = convolved(x, kernels_of(block)[expert], spec)
        torch.testing.assert_close(block.convolved(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("spec", "experts"), list(product(PLACES, (4, 8))))
def test_condconv_computes_what_timms_layer_computes(spec, experts, lived_in):
    block, s = lived_in(make("condconv", spec, experts=experts)), spec
    layer = CondConv2d(
        s.c_in, s.c_out, s.kernel_size, s.stride, s.padding, s.dilation, s.groups, num_experts=experts
    ).double()
    routing = nn.Linear(s.c_in, experts).double()
    layer.load_state_dict({"weight": block.experts.detach()})
    routing.load_state_dict(block.routing.state_dict())
    x = maps(3, s).requires_grad_()
    expected = layer(x, torch.sigmoid(routing(F.adaptive_avg_pool2d(x, 1).flatten(1))))
    y, g = block.convolved(x), torch.randn_like(expected)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(y, [x, block.experts, *block.routing.parameters()], g)
    theirs = torch.autograd.grad(expected, [x, layer.weight, *routing.parameters()], g)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", PLACES)
def test_a_block_started_from_a_static_weight_is_its_convolution_times_the_attention(spec, lived_in):
    weight = nn.Conv2d(spec.c_in, spec.c_out, spec.kernel_size, groups=spec.groups).double().weight.detach()
    x = maps(3, spec)
    static = convolved(x, weight, spec)

    dynamic = lived_in(make("dyconv", spec)).from_static(weight)
    torch.testing.assert_close(dynamic.convolved(x), static, rtol=1e-11, atol=1e-11)

    conditional = lived_in(make("condconv", spec)).from_static(weight)
    routed = torch.sigmoid(conditional.routing(x.mean((2, 3)))).sum(1)
    torch.testing.assert_close(conditional.convolved(x), routed[:, None, None, None] * static, rtol=1e-11, atol=1e-11)

    for kernels in (1, 4):
        omni = lived_in(make("odconv", spec, kernels=kernels)).from_static(weight)
        for name, head in omni.attention.heads.items():
            if name != "kernel":
                nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
        factor = 0.5 ** len(set(omni.attention.heads) - {"kernel"})
        torch.testing.assert_close(omni.convolved(x), factor * static, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_starting_from_a_static_weight_touches_the_experts_alone(name, lived_in):
    block = lived_in(blocks.create(name, 4, 6, groups=2))
    before = {key: value.clone() for key, value in block.state_dict().items()}
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert block.from_static(weight) is block
    assert block.experts.is_leaf
    assert block.experts.requires_grad
    for key, value in block.state_dict().items():
        if key == "experts":
            assert torch.equal(value, weight.detach().float().reshape(1, -1).expand_as(value))
        else:
            assert torch.equal(value, before[key])
    with pytest.raises(Unsupported, match=r"a weight \(6, 4, 3, 3\) is not one(.|\n)*try: .*= \(6, 2, 3, 3\)"):
        block.from_static(torch.randn(6, 4, 3, 3))


@pytest.mark.parametrize("name", NAMES)
def test_equal_experts_part_in_training(name, lived_in):
    block = lived_in(make(name, ConvSpec(4, 6), **({"kernels": 4} if name == "odconv" else {})))
    block.from_static(torch.randn(6, 4, 3, 3))
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    block(maps(4, block.spec)).square().mul(torch.randn(6, 11, 9)).sum().backward()
    optimizer.step()
    assert min((a - b).abs().max() for i, a in enumerate(block.experts) for b in block.experts[:i]) > 1e-6
