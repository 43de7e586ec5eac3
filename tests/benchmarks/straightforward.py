"""Every block as one writes it down from its paper's equation: each branch a module of its own on the feature map.

Independent of `harness.blocks`: what these compute, and the time they take, is what the blocks are held against. One
place is enough for that: c channels in and out, stride 1, "same" padding, no groups, but depthwise where the block is.
Each maps x (N, c, H, W) to (N, c, H, W). Parameters are registered in the order in which the block registers its own,
so that they can be copied. The blocks that train as one composed kernel are in straightforward_composed.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Sum(nn.ModuleList):
    """The branches' sum."""

    def forward(self, x: Tensor) -> Tensor:
        return reduce(add, (branch(x) for branch in self))


def conv_bn(c_in: int, c_out: int, k: int | tuple[int, int], groups: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, k, padding="same", dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


def conv(c: int, k: int) -> nn.Module:
    return conv_bn(c, c, k)


def acb(c: int, k: int) -> nn.Module:
    return Sum([conv_bn(c, c, k), conv_bn(c, c, (k, 1)), conv_bn(c, c, (1, k))])


def repvgg(c: int, k: int) -> nn.Module:
    return Sum([conv_bn(c, c, k), conv_bn(c, c, 1), nn.BatchNorm2d(c)])


def mobileone(c: int, k: int) -> nn.Module:
    return Sum([*(conv_bn(c, c, k) for _ in range(4)), conv_bn(c, c, 1), nn.BatchNorm2d(c)])


def qarepvgg(c: int, k: int) -> nn.Module:
    branches = Sum([conv_bn(c, c, k), nn.Conv2d(c, c, 1, bias=False), nn.Identity()])
    return nn.Sequential(branches, nn.BatchNorm2d(c))


def repvgg_dw(c: int, k: int) -> nn.Module:
    branches = Sum([conv_bn(c, c, k, groups=c), nn.Conv2d(c, c, 1, groups=c), nn.Identity()])
    return nn.Sequential(branches, nn.BatchNorm2d(c))


def replk(c: int, k: int) -> nn.Module:
    return Sum([conv_bn(c, c, k, groups=c), conv_bn(c, c, 5, groups=c)])


def unirep(c: int, k: int) -> nn.Module:
    assert k == 7
    small = [conv_bn(c, c, size, groups=c, dilation=apart) for size, apart in ((5, 1), (3, 2), (3, 3))]
    return Sum([conv_bn(c, c, k, groups=c), *small])


class RepMixer(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((c, 1, 1), 1e-5))
        self.mixer = Sum([conv_bn(c, c, k, groups=c), conv_bn(c, c, 1, groups=c), nn.BatchNorm2d(c)])
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))


class RM(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(conv_bn(c, c, k), nn.ReLU(), conv_bn(c, c, k))

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + x


class RMRepVGG(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.made = c - c // 2
        self.square, self.point, self.norm = (
            conv_bn(c, self.made, k),
            conv_bn(c, self.made, 1),
            nn.BatchNorm2d(self.made),
        )

    def forward(self, x: Tensor) -> Tensor:
        handed_on, last = x[:, : -self.made], x[:, -self.made :]
        return torch.cat([handed_on, self.square(x) + self.point(x) + self.norm(last)], 1)


class PaddedBN(nn.BatchNorm2d):
    """A batch norm that then pads with what it makes of a zero, as the DBB authors write it."""

    def __init__(self, c: int, padding: int) -> None:
        super().__init__(c)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        p, deviation = self.padding, torch.sqrt(self.running_var + self.eps)
        zero = (self.bias.detach() - self.running_mean * self.weight.detach() / deviation)[:, None, None]
        y = F.pad(y, [p] * 4)
        y[:, :, :p], y[:, :, -p:], y[:, :, :, :p], y[:, :, :, -p:] = zero, zero, zero, zero
        return y


class IdentityBased(nn.Module):
    """A 1x1 whose weight is the identity and a parameter."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(c, c, 1, 1))
        self.register_buffer("identity", torch.eye(c)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + self.identity)


def dbb(c: int, k: int) -> nn.Module:
    second = nn.Conv2d(c, c, k, bias=False)
    chain = nn.Sequential(IdentityBased(c), PaddedBN(c, k // 2), second, nn.BatchNorm2d(c))
    point = nn.Conv2d(c, c, 1, bias=False)
    average = nn.Sequential(point, PaddedBN(c, k // 2), nn.AvgPool2d(k, 1), nn.BatchNorm2d(c))
    return Sum([conv_bn(c, c, k), conv_bn(c, c, 1), chain, average])


def dyrep(c: int, k: int) -> nn.Module:
    """As it starts: with no branches yet."""
    return conv_bn(c, c, k)


def grown_dyrep(c: int, k: int) -> nn.Module:
    """With all seven branches."""
    origin = nn.Sequential(nn.Conv2d(c, c, k, padding=k // 2), nn.BatchNorm2d(c))
    first, second = nn.Conv2d(c, c, 1, bias=False), nn.Conv2d(c, c, k, bias=False)
    chain = nn.Sequential(first, PaddedBN(c, k // 2), second, nn.BatchNorm2d(c))
    point = nn.Conv2d(c, c, 1, bias=False)
    average = nn.Sequential(point, PaddedBN(c, k // 2), nn.AvgPool2d(k, 1), nn.BatchNorm2d(c))
    lines = conv_bn(c, c, (1, k)), conv_bn(c, c, (k, 1))
    branches = Sum([origin, conv_bn(c, c, 1), chain, average, *lines, nn.BatchNorm2d(c)])
    return nn.Sequential(branches, nn.BatchNorm2d(c))


def expand_cl(c: int, k: int) -> nn.Module:
    """All the padding is the first factor's."""
    widen, middle = nn.Conv2d(c, 4 * c, 1, padding=k // 2, bias=False), nn.Conv2d(4 * c, 4 * c, k, bias=False)
    return nn.Sequential(widen, middle, nn.Conv2d(4 * c, c, 1, bias=False), nn.BatchNorm2d(c))


def expand_ck(c: int, k: int) -> nn.Module:
    assert k == 5
    first, second = nn.Conv2d(c, 4 * c, 3, padding=2, bias=False), nn.Conv2d(4 * c, c, 3, bias=False)
    return nn.Sequential(first, second, nn.BatchNorm2d(c))


def expand_fc(c: int, k: int) -> nn.Module:
    assert k == 1
    return nn.Sequential(nn.Conv2d(c, 4 * c, 1), nn.Conv2d(4 * c, 4 * c, 1), nn.Conv2d(4 * c, c, 1))


class Edge(nn.Module):
    """scale * (mask, depthwise, * 1x1(x)) + bias; the 1x1 is padded, so its bias is around the map too."""

    def __init__(self, c: int, mask: list[list[int]]) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(1e-3 * torch.randn(c, 1, 1, 1)), nn.Parameter(1e-3 * torch.randn(c))
        self.point = nn.Conv2d(c, c, 1, padding=1)
        self.register_buffer("mask", torch.tensor(mask, dtype=torch.float32).repeat(c, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.point(x), self.scale * self.mask, self.bias, groups=len(self.mask))


def ecb(c: int, k: int) -> nn.Module:
    assert k == 3
    chain = nn.Sequential(nn.Conv2d(c, 2 * c, 1, padding=1), nn.Conv2d(2 * c, c, 3))
    sobel, laplacian = [[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
    across = [list(row) for row in zip(*sobel, strict=True)]
    return Sum([nn.Conv2d(c, c, 3, padding=1), chain, Edge(c, sobel), Edge(c, across), Edge(c, laplacian)])


FEATURES: dict[str, Callable[[int, int], nn.Module]] = {
    "acb": acb,
    "conv": conv,
    "dbb": dbb,
    "dyrep": dyrep,
    "ecb": ecb,
    "expand_ck": expand_ck,
    "expand_cl": expand_cl,
    "expand_fc": expand_fc,
    "mobileone": mobileone,
    "qarepvgg": qarepvgg,
    "replk": replk,
    "repmixer": RepMixer,
    "repvgg": repvgg,
    "repvgg_dw": repvgg_dw,
    "rm": RM,
    "rm_repvgg": RMRepVGG,
    "unirep": unirep,
}
