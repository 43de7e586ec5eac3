"""Attentions as one writes them down from their papers' equations, like straightforward.py and as independent.

A convolution's attention is registered before the convolution, as the blocks have it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from straightforward import conv_bn
from torch import Tensor, nn
from torch.nn import functional as F


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


class Gate(nn.Module):
    """x * sigmoid(of(x))."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.of(x))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mean(x)


class Attended(nn.Module):
    """after(bn(conv(x)))."""

    def __init__(self, after: nn.Module, c: int, k: int) -> None:
        super().__init__()
        self.after, self.conv = after, conv_bn(c, c, k)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(x))


def hidden(c: int, reduction: float, multiple: int) -> int:
    return max(multiple, int(c / reduction + multiple / 2) // multiple * multiple)


def se(c: int, k: int) -> nn.Module:
    h = hidden(c, 16, 8)
    return Attended(Gate(nn.Sequential(Mean(), nn.Conv2d(c, h, 1), nn.ReLU(), nn.Conv2d(h, c, 1))), c, k)


class ESE(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.linear(mean(x)))


def ese(c: int, k: int) -> nn.Module:
    return Attended(ESE(c), c, k)


class AlongChannels(nn.Module):
    def __init__(self, c: int, mode: str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False, padding_mode=mode)  # 3 taps below 128 channels

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(mean(x)[:, None, :, 0, 0])[:, 0, :, None, None]


def eca(c: int, k: int) -> nn.Module:
    return Attended(Gate(AlongChannels(c, "zeros")), c, k)


def ceca(c: int, k: int) -> nn.Module:
    return Attended(Gate(AlongChannels(c, "circular")), c, k)


class GE(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        seen = F.avg_pool2d(x, 15, 8, 7, count_include_pad=False)
        return x * torch.sigmoid(F.interpolate(seen, x.shape[2:]))


def ge(c: int, k: int) -> nn.Module:
    return Attended(GE(), c, k)


class GC(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = max(4, hidden(c, 8, 1))
        self.query = nn.Conv2d(c, 1, 1)
        self.first, self.norm = nn.Conv2d(c, h, 1), nn.LayerNorm(h, eps=1e-6)
        self.second = nn.Conv2d(h, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.query(x).flatten(2).softmax(2)
        context = (x.flatten(2) @ weights.mT)[..., None]
        squeezed = self.norm(self.first(context).flatten(1)).relu()
        return x * torch.sigmoid(self.second(squeezed[:, :, None, None]))


def gc(c: int, k: int) -> nn.Module:
    return Attended(GC(c), c, k)


class CBAM(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = hidden(c, 16, 1)
        self.mlp = nn.Sequential(nn.Conv2d(c, h, 1, bias=False), nn.ReLU(), nn.Conv2d(h, c, 1, bias=False))
        self.spatial = conv_bn(2, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.mlp(mean(x)) + self.mlp(x.amax((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


def cbam(c: int, k: int) -> nn.Module:
    return Attended(CBAM(c), c, k)


class BAM(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = max(4, c // 16)
        self.channel = nn.Sequential(nn.Linear(c, h), nn.BatchNorm1d(h), nn.ReLU(), nn.Linear(h, c))
        self.spatial = nn.Sequential(
            *(nn.Conv2d(c, h, 1), nn.BatchNorm2d(h), nn.ReLU()),
            *(nn.Conv2d(h, h, 3, padding=4, dilation=4), nn.BatchNorm2d(h), nn.ReLU()),
            *(nn.Conv2d(h, h, 3, padding=4, dilation=4), nn.BatchNorm2d(h), nn.ReLU()),
            nn.Conv2d(h, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel(x.mean((2, 3)))[:, :, None, None]
        return x * (1 + torch.sigmoid(channel * self.spatial(x)))


def bam(c: int, k: int) -> nn.Module:
    return Attended(BAM(c), c, k)


class SRM(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.zeros(c, 2)), nn.BatchNorm1d(c)

    def forward(self, x: Tensor) -> Tensor:
        style = torch.stack([x.mean((2, 3)), torch.sqrt(x.var((2, 3), correction=0) + 1e-5)], 2)
        return x * torch.sigmoid(self.norm((style * self.weight).sum(2)))[:, :, None, None]


def srm(c: int, k: int) -> nn.Module:
    return Attended(SRM(c), c, k)


class RAN(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = max(4, c // 16)
        self.down = nn.Sequential(nn.MaxPool2d(3, 2, 1), conv_bn(c, h, 3), nn.ReLU())
        self.out = nn.Conv2d(h, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.sigmoid(self.out(F.interpolate(self.down(x), x.shape[2:], mode="bilinear")))
        return (1 + mask) * x


def ran(c: int, k: int) -> nn.Module:
    return Attended(RAN(c), c, k)


class Coord(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        h = hidden(c, 24, 8)
        self.shared = nn.Sequential(nn.Conv2d(c, h, 1, bias=False), nn.BatchNorm2d(h), nn.Hardswish())
        self.rows, self.columns = nn.Conv2d(h, c, 1, bias=False), nn.Conv2d(h, c, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        both = self.shared(torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT], 2))
        rows, columns = both.split([height, width], 2)
        return x * torch.sigmoid(self.rows(rows)) * torch.sigmoid(self.columns(columns.mT))


def coord(c: int, k: int) -> nn.Module:
    return Attended(Coord(c), c, k)


class Vector(nn.Sequential):
    """norm and ReLU of a 1x1 map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))[:, :, None, None]


class SK(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        assert k == 3
        self.first, self.second = conv_bn(c, c, 3), conv_bn(c, c, 3, dilation=2)
        h = hidden(c, 16, 32)
        vector = Vector(nn.BatchNorm1d(h), nn.ReLU())
        self.attention = nn.Sequential(nn.Conv2d(c, h, 1, bias=False), vector, nn.Conv2d(h, 2 * c, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x).relu(), self.second(x).relu()
        a = self.attention(mean(first + second)).reshape(len(x), 2, -1, 1, 1).softmax(1)
        return a[:, 0] * first + a[:, 1] * second


class Splat(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.conv = conv_bn(c, 2 * c, k, groups=2)
        h = max(32, hidden(c, 2, 8))
        vector = Vector(nn.BatchNorm1d(h), nn.ReLU())
        self.attention = nn.Sequential(nn.Conv2d(c, h, 1), vector, nn.Conv2d(h, 2 * c, 1))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.conv(x).relu().chunk(2, 1)
        a = self.attention(mean(first + second)).reshape(len(x), 2, -1, 1, 1).softmax(1)
        return a[:, 0] * first + a[:, 1] * second


FEATURES: dict[str, Callable[[int, int], nn.Module]] = {
    "bam": bam,
    "cbam": cbam,
    "ceca": ceca,
    "coord": coord,
    "eca": eca,
    "ese": ese,
    "gc": gc,
    "ge": ge,
    "ran": ran,
    "se": se,
    "sk": SK,
    "splat": Splat,
    "srm": srm,
}
