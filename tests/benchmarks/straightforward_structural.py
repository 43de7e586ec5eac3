"""The structural blocks as one writes them down from their papers: see straightforward.py for what is asked of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def conv_bn(c_in: int, c_out: int, k: int, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, k, padding=k // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]


def depthwise_separable(c: int, k: int) -> nn.Module:
    return nn.Sequential(*conv_bn(c, c, k, groups=c), nn.ReLU(inplace=True), *conv_bn(c, c, 1))


def bottleneck(c: int, k: int) -> nn.Module:
    b = c // 4
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(*conv_bn(c, b, 1), relu, *conv_bn(b, b, k), relu, *conv_bn(b, c, 1))


class Added(nn.Module):
    """y = f(x) + x."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x


def inverted_residual(c: int, k: int) -> nn.Module:
    h = 6 * c
    relu6 = nn.ReLU6(inplace=True)
    return Added(*conv_bn(c, h, 1), relu6, *conv_bn(h, h, k, groups=h), relu6, *conv_bn(h, c, 1))


def residual(c: int, k: int) -> nn.Module:
    return Added(*conv_bn(c, c, k), nn.ReLU(inplace=True), *conv_bn(c, c, k))


def stacked_3x3(c: int, k: int) -> nn.Module:
    layers = conv_bn(c, c, 3)
    for _ in range(k // 2 - 1):
        layers += [nn.ReLU(inplace=True), *conv_bn(c, c, 3)]
    return nn.Sequential(*layers)


class Inception(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        to_square, to_large, eighth = 3 * c // 8, max(c // 16, 1), c // 8
        self.one = nn.Sequential(*conv_bn(c, c // 4, 1))
        self.square = nn.Sequential(*conv_bn(c, to_square, 1), relu, *conv_bn(to_square, c // 2, k))
        self.large = nn.Sequential(*conv_bn(c, to_large, 1), relu, *conv_bn(to_large, eighth, k + 2))
        self.pool = nn.Sequential(nn.MaxPool2d(k, 1, k // 2), *conv_bn(c, eighth, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.square(x), self.large(x), self.pool(x)], 1)


class Dense(nn.Module):
    """Two layers of growth 32, each given all maps in front of it, and the transition."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        relu = nn.ReLU(inplace=True)
        for width in (c, c + 32):
            square = nn.Conv2d(128, 32, k, padding=k // 2, bias=False)
            self.layers.append(nn.Sequential(nn.BatchNorm2d(width), relu, *conv_bn(width, 128, 1), relu, square))
        self.transition = nn.Sequential(nn.BatchNorm2d(c + 64), relu, *conv_bn(c + 64, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.transition(torch.cat(maps, 1))


FEATURES: dict[str, Callable[[int, int], nn.Module]] = {
    "bottleneck": bottleneck,
    "dense": Dense,
    "depthwise_separable": depthwise_separable,
    "inception": Inception,
    "inverted_residual": inverted_residual,
    "residual": residual,
    "stacked_3x3": stacked_3x3,
}
