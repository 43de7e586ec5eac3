"""KernelWarehouse as one writes it down, with the grouped-convolution trick: what the block is held against.

As straightforward.py: c channels in and out, stride 1, "same" padding, parameters in the block's order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KW(nn.Module):
    """One layer with a warehouse of its own and ratio 1: k * k cells of c x c, and a row for each tap. T = 0."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.k, n, h = k, k * k, max(c // 16, 16)
        self.bn = nn.BatchNorm2d(c)
        self.warehouse = nn.ParameterList([torch.randn(n, c, c)])  # a module, so that it comes behind the norm
        self.squeeze = nn.Sequential(nn.Linear(c, h, bias=False), nn.BatchNorm1d(h), nn.ReLU())
        self.head = nn.Linear(h, n * (n + 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, c, height, width = x.shape
        n = self.k * self.k
        z = self.head(self.squeeze(F.adaptive_avg_pool2d(x, 1).flatten(1))).reshape(batch * n, n + 1)
        attention = (z / (z.abs().sum(1, keepdim=True) + 1e-3))[:, :-1]
        kernels = (attention @ self.warehouse[0].flatten(1)).reshape(batch, self.k, self.k, c, c)
        kernels = kernels.permute(0, 3, 4, 1, 2).reshape(batch * c, c, self.k, self.k)
        y = F.conv2d(x.reshape(1, batch * c, height, width), kernels, padding=self.k // 2, groups=batch)
        return self.bn(y.reshape(batch, c, height, width))


FEATURES: dict[str, Callable[[int, int], nn.Module]] = {"kw": KW}
