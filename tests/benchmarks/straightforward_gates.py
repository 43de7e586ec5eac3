"""DCD, WeightNet and CGC as one writes them down from their equations, independent of `harness.blocks`.

As in straightforward.py: c channels in and out, stride 1, "same" padding, no groups, parameters in the block's order.
Kernels of the samples' own are applied as the originals do it: the batch as one sample with a group for each of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """Weight (N, c, c, k, k)."""
    n, c, height, width = x.shape
    y = F.conv2d(
        x.reshape(1, n * c, height, width), weight.reshape(n * c, c, *weight.shape[3:]), padding="same", groups=n
    )
    return y.reshape(n, c, height, width)


class DCD(nn.Module):
    """ResNet18's, with an attention over the map pooled to 2x2."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(c)
        self.width = d = isqrt(4 * c)
        q = max(max(4 * c, d * d) // 16, 4)
        self.conv = nn.Conv2d(c, c, k, padding="same", bias=False)
        self.q, self.p = nn.Conv2d(c, d, 1, bias=False), nn.Conv2d(d, c, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(d), nn.BatchNorm1d(d)
        self.squeeze, self.gate = nn.Linear(4 * c, q, bias=False), nn.Linear(q, q, bias=False)
        self.phi, self.scale = nn.Linear(q, d * d, bias=False), nn.Linear(q, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        v = self.squeeze(F.adaptive_avg_pool2d(x, 2).flatten(1))
        v = v * F.relu6(self.gate(v) + 3) / 3
        scale = F.relu6(self.scale(v) + 3) / 3
        z = self.bn1(self.q(x)).reshape(n, self.width, -1)
        z = self.bn2(torch.matmul(self.phi(v).reshape(n, self.width, self.width), z)) + z
        path = self.p(z.reshape(n, self.width, height, width))
        return self.bn(path + scale[:, :, None, None] * self.conv(x))


class WeightNet(nn.Module):
    """M = G = 2."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(c)
        r = max(16, c // 16)
        self.shape = c, c, k, k
        self.reduce, self.first = nn.Conv2d(c, r, 1), nn.Conv2d(r, 2 * c, 1)
        self.second = nn.Conv2d(2 * c, c * c * k * k, 1, groups=2 * c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.second(torch.sigmoid(self.first(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.bn(grouped(x, weight.reshape(-1, *self.shape)))


class CGC(nn.Module):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(c)
        self.k, self.mixes = k, max(1, c // 16)
        latent, each = k * k // 2 + 1, c // self.mixes
        self.conv = nn.Conv2d(c, c, k, padding="same", bias=False)
        self.encode = nn.Linear(k * k, latent, bias=False)
        self.bn1, self.decode1 = nn.BatchNorm1d(c), nn.Linear(latent, k * k, bias=False)
        self.bn2, self.mix = nn.BatchNorm1d(c), nn.Linear(each, each, bias=False)
        self.bn3, self.decode2 = nn.BatchNorm1d(c), nn.Linear(latent, k * k, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c, k = x.shape[0], x.shape[1], self.k
        context = self.encode(F.adaptive_avg_pool2d(x, k).reshape(n, c, k * k))
        inputs = self.decode1(F.relu(self.bn1(context)))
        mixed = F.relu(self.bn2(context)).reshape(n, self.mixes, c // self.mixes, -1).transpose(2, 3)
        outputs = self.decode2(F.relu(self.bn3(self.mix(mixed).transpose(2, 3).reshape(n, c, -1))))
        gate = torch.sigmoid(inputs.reshape(n, 1, c, k, k) + outputs.reshape(n, c, 1, k, k))
        return self.bn(grouped(x, gate * self.conv.weight))


FEATURES: dict[str, Callable[[int, int], nn.Module]] = {"cgc": CGC, "dcd": DCD, "weightnet": WeightNet}
