"""Attention blocks against their equations written out by hand, in outputs and all gradients, and folded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import Block

D = torch.float64


class State:
    """A module's parameters and buffers by name, and how its norms behave."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = dict(module.state_dict(keep_vars=True))
        self.training = module.training

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def norm(self, x: Tensor, name: str) -> Tensor:
        """A batch norm of (N, C, ...), or none where the state has none of that name."""
        if f"{name}.weight" not in self.tensors:
            return x
        if f"{name}.running_mean" not in self.tensors:  # a layer norm of vectors
            deviation = x - x.mean(1, keepdim=True)
            return (
                deviation / (deviation.square().mean(1, keepdim=True) + 1e-5).sqrt() * self[f"{name}.weight"]
                + self[f"{name}.bias"]
            )
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        mean, variance = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        if self.training:
            mean = x.mean(axes)
            variance = (x - mean.reshape(shape)).square().mean(axes)
        weight = self[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return (x - mean.reshape(shape)) * weight.reshape(shape) + self[f"{name}.bias"].reshape(shape)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Vectors (N, C) through a linear layer or a 1x1 convolution."""
        y = x @ self[f"{name}.weight"].flatten(1).T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

    def conv(self, x: Tensor, name: str, **rest: int) -> Tensor:
        return F.conv2d(x, self[f"{name}.weight"], self.tensors.get(f"{name}.bias"), **rest)


def sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def mean(u: Tensor) -> Tensor:
    return u.sum((2, 3)) / (u.shape[2] * u.shape[3])


def wide(v: Tensor) -> Tensor:
    return v[:, :, None, None]


def se(u: Tensor, a: State) -> Tensor:
    return u * wide(sigmoid(a.linear(a.linear(mean(u), "fc1").clamp(min=0), "fc2")))


def ese(u: Tensor, a: State) -> Tensor:
    return u * wide((a.linear(mean(u), "fc") / 6 + 0.5).clamp(0, 1))


def along_channels(u: Tensor, a: State, circular: bool) -> Tensor:
    taps, m = a["conv.weight"].flatten(), mean(u)
    c = m.shape[1]
    sums = []
    for at in range(c):
        places = range(at - len(taps) // 2, at + len(taps) // 2 + 1)
        sums.append(sum(tap * m[:, i % c] for tap, i in zip(taps, places, strict=True) if circular or 0 <= i < c))
    return u * wide(sigmoid(torch.stack(sums, 1)))


def nearest(small: Tensor, height: int, width: int) -> Tensor:
    rows = [i * small.shape[2] // height for i in range(height)]
    columns = [j * small.shape[3] // width for j in range(width)]
    return small[:, :, rows][:, :, :, columns]


def ge(extent: int, learned: str) -> Callable[[Tensor, State], Tensor]:
    def attention(u: Tensor, a: State) -> Tensor:
        height, width = u.shape[2:]
        if learned == "none" or not extent:
            step = extent or max(height, width)
            reach = extent or max(height, width) + 1
            seen = torch.stack(
                [
                    torch.stack(
                        [
                            mean(u[:, :, max(0, i - reach + 1) : i + reach, max(0, j - reach + 1) : j + reach])
                            for j in range(0, width, step)
                        ],
                        2,
                    )
                    for i in range(0, height, step)
                ],
                2,
            )
        else:
            seen = u
            for layer in range(int(math.log2(extent))):
                position = 3 * layer
                seen = seen.clamp(min=0) if layer else seen
                seen = a.norm(
                    a.conv(seen, f"gather.{position}", stride=2, padding=1, groups=u.shape[1]), f"gather.{position + 1}"
                )
        if learned == "mlp":
            seen = a.conv(a.conv(seen, "excite.0").clamp(min=0), "excite.2")
        return u * sigmoid(nearest(seen, height, width))

    return attention


def gc(u: Tensor, a: State) -> Tensor:
    weights = torch.exp(torch.einsum("nchw,c->nhw", u, a["conv_attn.weight"].flatten()) + a["conv_attn.bias"])
    weights = weights / weights.sum((1, 2), keepdim=True)
    squeezed = a.linear(torch.einsum("nchw,nhw->nc", u, weights), "mlp_scale.fc1")
    deviation = squeezed - squeezed.mean(1, keepdim=True)
    normed = deviation / (deviation.square().mean(1, keepdim=True) + 1e-6).sqrt()
    normed = normed * a["mlp_scale.norm.weight"] + a["mlp_scale.norm.bias"]
    return u * wide(sigmoid(a.linear(normed.clamp(min=0), "mlp_scale.fc2")))


def cbam(u: Tensor, a: State) -> Tensor:
    def m(v: Tensor) -> Tensor:
        return a.linear(a.linear(v, "channel.fc1").clamp(min=0), "channel.fc2")

    c = u * wide(sigmoid(m(mean(u)) + m(u.flatten(2).sort(2).values[:, :, -1])))
    planes = torch.stack([c.sum(1) / c.shape[1], c.sort(1).values[:, -1]], 1)
    return c * sigmoid(a.norm(a.conv(planes, "spatial.conv.conv", padding=3), "spatial.conv.bn"))


def bam(combine: str) -> Callable[[Tensor, State], Tensor]:
    def attention(u: Tensor, a: State) -> Tensor:
        channel = wide(a.linear(a.norm(a.linear(mean(u), "channel.0"), "channel.1").clamp(min=0), "channel.3"))
        s = a.norm(a.conv(u, "spatial.0"), "spatial.1").clamp(min=0)
        s = a.norm(a.conv(s, "spatial.3", padding=4, dilation=4), "spatial.4").clamp(min=0)
        s = a.norm(a.conv(s, "spatial.6", padding=4, dilation=4), "spatial.7").clamp(min=0)
        s = a.conv(s, "spatial.9")
        return u * (1 + sigmoid(channel * s if combine == "product" else channel + s))

    return attention


def srm(u: Tensor, a: State) -> Tensor:
    deviation = (u.square().mean((2, 3)) - mean(u).square() + 1e-5).sqrt()
    z = a["weight"][:, 0] * mean(u) + a["weight"][:, 1] * deviation
    return u * wide(sigmoid(a.norm(z, "norm")))


def linear_interpolation(size: int, small: int) -> Tensor:
    """The matrix (size, small) that resamples a line, pixels being areas."""
    matrix = torch.zeros(size, small, dtype=D)
    for i in range(size):
        at = max(0.0, (i + 0.5) * small / size - 0.5)
        low = min(int(at), small - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, small - 1)] += at - low
    return matrix


def ran(u: Tensor, a: State) -> Tensor:
    height, width = u.shape[2:]
    low = F.pad(u, [1, 1, 1, 1], value=-math.inf).unfold(2, 3, 2).unfold(3, 3, 2).flatten(4).amax(4)
    low = a.norm(a.conv(low, "down.1", padding=1), "down.2").clamp(min=0)
    rows, columns = linear_interpolation(height, low.shape[2]), linear_interpolation(width, low.shape[3])
    up = torch.einsum("ih,nchw,jw->ncij", rows, low, columns)
    return (1 + sigmoid(a.conv(up, "out"))) * u


def coord(u: Tensor, a: State) -> Tensor:
    height = u.shape[2]
    lines = torch.cat([u.mean(3), u.mean(2)], 2)
    z = a.norm(torch.einsum("ncl,hc->nhl", lines, a["conv1.weight"].flatten(1)), "bn1")
    z = z * ((z + 3).clamp(0, 6) / 6)
    rows = sigmoid(torch.einsum("nhl,ch->ncl", z[:, :, :height], a["conv_h.weight"].flatten(1)))
    columns = sigmoid(torch.einsum("nhl,ch->ncl", z[:, :, height:], a["conv_w.weight"].flatten(1)))
    return u * rows[:, :, :, None] * columns[:, :, None, :]


CASES: list[tuple[str, dict[str, str | int | bool], Callable[[Tensor, State], Tensor]]] = [
    ("se", {}, se),
    ("se", {"divisor": 1, "bias": False}, se),
    ("ese", {}, ese),
    ("eca", {}, lambda u, a: along_channels(u, a, False)),
    ("ceca", {}, lambda u, a: along_channels(u, a, True)),
    *(("ge", {"extent": extent, "learned": "none"}, ge(extent, "none")) for extent in (0, 2, 4, 8)),
    *(("ge", {"extent": extent, "learned": "depthwise"}, ge(extent, "depthwise")) for extent in (2, 4, 8)),
    *(("ge", {"extent": extent, "learned": "mlp"}, ge(extent, "mlp")) for extent in (0, 2, 4)),
    ("gc", {}, gc),
    ("cbam", {}, cbam),
    ("cbam", {"bias": True}, cbam),
    *(
        ("bam", {"combine": combine, "attention_norm": norm}, bam(combine))
        for combine, norm in [("product", "batch"), ("sum", "batch"), ("sum", "layer"), ("product", "none")]
    ),
    *(("srm", {"attention_norm": norm}, srm) for norm in ("batch", "layer", "none")),
    ("ran", {}, ran),
    ("coord", {}, coord),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options, _ in CASES]
PLACES = [  # c_in, c_out, kernel size, stride, groups, dilation, padding
    (6, 8, 3, 1, 1, 1, None),
    (8, 8, 3, 2, 8, 1, None),
    (6, 12, 5, 1, 2, 2, 2),
]


def compare(block: Block, by_hand: Callable[[Tensor, State], Tensor], x: Tensor, tolerance: float = 1e-9) -> None:
    """Output and all gradients, x's among them."""
    x.requires_grad_()
    outputs, gradients = [], []
    for function in (block, lambda x: by_hand(x, State(block))):
        y = function(x)
        outputs.append(y)
        weight = torch.linspace(-1, 2, y.numel(), dtype=D).sin().reshape(y.shape)
        gradients.append(torch.autograd.grad((y * weight).sum(), [x, *block.parameters()]))
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    for mine, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance)


def samples(block: Block) -> Iterator[int]:
    """How many a batch can have in each mode: one only in eval where a vector's batch norm is in the way."""
    yield from (1, 2, 5) if not block.training else (2, 5)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize(("name", "options", "attention"), CASES, ids=IDS)
def test_convolution_and_attention_are_those_of_the_equation(name, options, attention, place, lived_in):
    c_in, _, kernel_size, stride, groups, dilation, padding = place
    block = lived_in(blocks.create(name, *place, **options)).double()
    padding = dilation * (kernel_size // 2) if padding is None else padding

    def by_hand(x: Tensor, state: State) -> Tensor:
        u = state.conv(x, "branch.conv", stride=stride, padding=padding, dilation=dilation, groups=groups)
        inner = State(block.after)
        return attention(state.norm(u, "branch.bn"), inner)

    for training in (True, False):
        for batch in samples(block.train(training)):
            # torch's hard sigmoid has a sixth of float32 in its backward, in float64 too: off by 3e-8
            compare(block, by_hand, torch.randn(batch, c_in, 9, 14, dtype=D), 1e-7 if name == "ese" else 1e-9)


SK_CASES = [
    (place, options)
    for place in [(6, 8, 3, 1, 1, 1, None), (8, 4, 3, 2, 2, 1, None), (8, 8, 3, 3, 8, 2, 0), (4, 6, 3, 1, 1, 2, 3)]
    for options in [{}, {"split_input": True, "divisor": 8, "attention_norm": "layer"}, {"attention_norm": "none"}]
    if not (place[4] == 8 and "split_input" in options)
]


@pytest.mark.parametrize(("place", "options"), SK_CASES, ids=str)
def test_selective_kernel_is_that_of_the_equation(place, options, lived_in):
    c_in, _, _, stride, groups, dilation, padding = place
    block = lived_in(blocks.create("sk", *place, **options)).double()

    def by_hand(x: Tensor, s: State) -> Tensor:
        maps = []
        for path, part in enumerate(x.split(c_in // 2, 1) if "split_input" in options else (x, x)):
            apart = dilation * (path + 1)
            rim = apart if padding is None else padding + apart - dilation  # what it reads stays where it was
            u = s.conv(part, f"paths.{path}.0.conv", stride=stride, padding=rim, dilation=apart, groups=groups)
            maps.append(s.norm(u, f"paths.{path}.0.bn").clamp(min=0))
        z = s.norm(s.linear(mean(maps[0] + maps[1]), "attention.reduce"), "attention.norm").clamp(min=0)
        z_first, z_second = s.linear(z, "attention.select").chunk(2, 1)
        share = wide(sigmoid(z_first - z_second))
        return maps[0] * share + maps[1] * (1 - share)

    for training in (True, False):
        for batch in samples(block.train(training)):
            compare(block, by_hand, torch.randn(batch, c_in, 9, 14, dtype=D))


@pytest.mark.parametrize("place", [(8, 6, 3, 1, 1, 1, None), (8, 4, 5, 2, 1, 2, 3), (4, 8, 1, 3, 1, 1, None)], ids=str)
@pytest.mark.parametrize(("radix", "norm"), [(1, "batch"), (2, "batch"), (2, "layer"), (4, "none")])
def test_split_attention_is_that_of_the_equation(radix, norm, place, lived_in):
    c_in, c_out, kernel_size, stride, _, dilation, padding = place
    if c_out % radix:
        c_out = 2 * c_out
    block = lived_in(blocks.create("splat", c_in, c_out, *place[2:], radix=radix, attention_norm=norm)).double()
    padding = dilation * (kernel_size // 2) if padding is None else padding

    def by_hand(x: Tensor, s: State) -> Tensor:
        weights = s["conv.conv.weight"].chunk(radix)
        parts = zip(x.chunk(radix, 1), weights, strict=True)
        u = torch.cat([F.conv2d(part, w, None, stride, padding, dilation) for part, w in parts], 1)
        maps = s.norm(u, "conv.bn").clamp(min=0).chunk(radix, 1)
        z = s.linear(s.norm(s.linear(sum(map(mean, maps)), "reduce"), "norm").clamp(min=0), "select")
        logits = z.chunk(radix, 1)
        whole = sum(torch.exp(each) for each in logits) if radix > 1 else torch.exp(z) + 1
        return sum(part * wide(torch.exp(each) / whole) for part, each in zip(maps, logits, strict=True))

    for training in (True, False):
        for batch in samples(block.train(training)):
            compare(block, by_hand, torch.randn(batch, c_in, 9, 14, dtype=D))


@pytest.mark.parametrize(("name", "options"), [case[:2] for case in CASES], ids=IDS)
def test_the_attention_stays_behind_the_fused_convolution_as_it_is(name, options, lived_in):
    for place in PLACES:
        block = lived_in(blocks.create(name, *place, **options)).double().eval()
        x = torch.randn(3, place[0], 9, 14, dtype=D)
        fused = block.fused()
        assert isinstance(fused, nn.Sequential)
        conv, after = fused
        torch.testing.assert_close(fused(x), block(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(conv(x), block.branch(x), rtol=1e-12, atol=1e-12)
        assert [*after.state_dict()] == [*block.after.state_dict()]
        assert not {id(p) for p in fused.parameters()} & {id(p) for p in block.parameters()}
        assert conv.weight.numel() + conv.bias.numel() == block.branch.conv.weight.numel() + place[1]
