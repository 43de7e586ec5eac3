"""Dynamic convolutions with whole kernels as experts, as one writes them down: see straightforward.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Every sample with its own kernel (N, c_out, c_in, k, k): the batch as groups of one sample."""
    n, c, height, width = x.shape
    k = weight.shape[-1]
    y = F.conv2d(x.reshape(1, n * c, height, width), weight.reshape(-1, c, k, k), padding=k // 2, groups=n)
    return y.reshape(n, -1, height, width)


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


class CondConv(nn.Module):
    def __init__(self, c: int, k: int, experts: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, c, c, k, k))
        self.bn = nn.BatchNorm2d(c)
        self.routing = nn.Linear(c, experts)

    def forward(self, x: Tensor) -> Tensor:
        routing = torch.sigmoid(self.routing(pooled(x).flatten(1)))
        weight = (routing @ self.weight.flatten(1)).reshape(len(x), *self.weight.shape[1:])
        return self.bn(convolve(x, weight))


class DYConv(nn.Module):
    temperature = 1.0

    def __init__(self, c: int, k: int, kernels: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kernels, c, c, k, k))
        self.bn = nn.BatchNorm2d(c)
        hidden = c // 4 + 1
        self.attention = nn.Sequential(nn.Conv2d(c, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, kernels, 1))

    def forward(self, x: Tensor) -> Tensor:
        attention = torch.softmax(self.attention(pooled(x)).flatten(1) / self.temperature, 1)
        weight = (attention @ self.weight.flatten(1)).reshape(len(x), *self.weight.shape[1:])
        return self.bn(convolve(x, weight))


class ODConv(nn.Module):
    temperature = 1.0

    def __init__(self, c: int, k: int, kernels: int = 1) -> None:
        super().__init__()
        assert k > 1
        self.weight = nn.Parameter(torch.randn(kernels, c, c, k, k))
        self.bn = nn.BatchNorm2d(c)
        h = max(c // 16, 16)
        self.squeeze = nn.Sequential(nn.Conv2d(c, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU())
        self.channel, self.filter, self.spatial = nn.Conv2d(h, c, 1), nn.Conv2d(h, c, 1), nn.Conv2d(h, k * k, 1)
        self.kernel = nn.Conv2d(h, kernels, 1) if kernels > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        n, k = len(x), self.weight.shape[-1]
        h = self.squeeze(pooled(x))
        channel, filters, spatial = (
            torch.sigmoid(head(h) / self.temperature) for head in (self.channel, self.filter, self.spatial)
        )
        weight = spatial.reshape(n, 1, 1, 1, k, k) * self.weight
        if self.kernel is not None:
            weight = torch.softmax(self.kernel(h) / self.temperature, 1).reshape(n, -1, 1, 1, 1, 1) * weight
        return self.bn(convolve(x * channel, weight.sum(1)) * filters)


FEATURES = {"condconv": CondConv, "dyconv": DYConv, "odconv": ODConv}
