"""Adaptive filters and structural convolutions as one writes them down: see straightforward.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from straightforward import conv_bn
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d


def filtered(x: Tensor, weights: Tensor, k: int) -> Tensor:
    """The unfolded map (N, G, C / G, k k, H, W) times weights (N, G, k k, H, W), summed over the taps."""
    n, groups, taps, height, width = weights.shape
    windows = F.unfold(x, k, padding=k // 2).reshape(n, groups, -1, taps, height, width)
    return (windows * weights[:, :, None]).sum(3).reshape(x.shape)


class Involution(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.k, self.groups = k, max(1, c // 16)
        reduce = nn.Conv2d(c, c // 4, 1, bias=False)
        self.kernels = nn.Sequential(
            reduce, nn.BatchNorm2d(c // 4), nn.ReLU(), nn.Conv2d(c // 4, self.groups * k * k, 1)
        )
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels(x).unflatten(1, (self.groups, self.k**2))
        return self.norm(filtered(x, kernels, self.k))


class Carafe(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.weights = nn.Sequential(nn.Conv2d(c, 64, 1), nn.Conv2d(64, k * k, 3, padding=1), nn.Softmax(1))
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(filtered(x, self.weights(x)[:, None], self.k))


class Deformable(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.weight = nn.Conv2d(c, c, k, bias=False).weight
        self.head = nn.Conv2d(c, 3 * k * k, k, padding=k // 2)
        self.norm = nn.BatchNorm2d(c)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        offsets, mask = self.head(x).split((2 * self.k**2, self.k**2), 1)
        return self.norm(deform_conv2d(x, offsets, self.weight, padding=self.k // 2, mask=2 * torch.sigmoid(mask)))


def dilated(c: int, k: int) -> nn.Module:
    return conv_bn(c, c, k, dilation=2)


def grouped(c: int, k: int) -> nn.Module:
    return conv_bn(c, c, k, groups=8)


class Shuffle(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.conv = conv_bn(c, c, k, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        return self.conv(x).reshape(n, 8, c // 8, height, width).transpose(1, 2).reshape(x.shape)


FEATURES: dict[str, Callable[[int, int], nn.Module]] = {
    "carafe": Carafe,
    "deformable": Deformable,
    "dilated": dilated,
    "grouped": grouped,
    "involution": Involution,
    "shuffle": Shuffle,
}
