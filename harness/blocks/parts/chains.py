"""Branches of two stages, each with a batch norm: a 1x1, then a k x k or an average; between them a rim that folds.

Paper: Ding et al., Diverse Branch Block, CVPR 2021, arXiv:2103.13425, section 3.2.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import ConvSpec
from harness.blocks.parts.branches import ConvBN, PaddedBN


class Pointwise(nn.Module):
    """A 1x1 at stride 1 without padding or bias; `residual` adds the identity to a weight that starts at zero."""

    def __init__(self, c_in: int, width: int, groups: int, residual: bool = False) -> None:
        super().__init__()
        self.groups = groups
        self.c_in = c_in
        self.residual = residual
        self.conv = nn.Conv2d(c_in, width, 1, groups=groups, bias=False)
        if residual:
            nn.init.zeros_(self.conv.weight)

    def weight(self) -> Tensor:
        weight = self.conv.weight
        return weight + algebra.identity(self.c_in, self.groups, weight) if self.residual else weight

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.conv2d(x_NCHW, self.weight(), groups=self.groups)


class Chain(nn.Module):
    """y = bn(V * rim(bn(U * x))): a pointwise stage, then a k x k with the block's stride and dilation."""

    def __init__(self, spec: ConvSpec, width: int, residual: bool) -> None:
        super().__init__()
        self.groups = spec.groups
        self.first = Pointwise(spec.c_in, width, spec.groups, residual)
        self.rim = PaddedBN(width, spec.padding)
        self.second = ConvBN(replace(spec, c_in=width))
        self.second.conv.padding = (0, 0)  # the rim is the padding

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.second(self.rim(self.first(x_NCHW)))
        return y_NCHW

    def kernel(self) -> Kernel:
        first = algebra.fold(self.first.weight(), self.rim.bn)
        return algebra.chain_folded(first, self.second.kernel(), self.groups)


class AverageBN(nn.Module):
    """y = bn(avg(x)) over k x k taps, zeros counted; `padding` 0 where the input brings its own rim."""

    def __init__(self, spec: ConvSpec, padding: int) -> None:
        super().__init__()
        self.spec = spec
        self.padding = padding
        self.bn = nn.BatchNorm2d(spec.c_out)
        self.like: Tensor
        self.register_buffer("like", torch.zeros(0), persistent=False)  # the dtype, whatever becomes of the norm

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self.pool(x_NCHW))
        return y_NCHW

    def pool(self, x_NCHW: Tensor) -> Tensor:
        k, stride, dilation, channels = (
            self.spec.kernel_size,
            self.spec.stride,
            self.spec.dilation,
            self.spec.c_out,
        )
        if dilation == 1 and self.padding <= k // 2:  # more than that the pooling operation refuses
            return F.avg_pool2d(x_NCHW, k, stride, self.padding)
        taps = algebra.average(channels, channels, k, x_NCHW)  # nor does it dilate
        return F.conv2d(x_NCHW, taps, None, stride, self.padding, dilation, channels)

    def kernel(self) -> Kernel:
        taps = algebra.average(self.spec.c_out, self.spec.groups, self.spec.kernel_size, self.like)
        return algebra.fold(taps, self.bn)


class PointwiseAverage(nn.Module):
    """y = bn(avg(rim(bn(Q * x))))."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.first = Pointwise(spec.c_in, spec.c_out, spec.groups)
        self.rim = PaddedBN(spec.c_out, spec.padding)
        self.second = AverageBN(spec, padding=0)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.second(self.rim(self.first(x_NCHW)))
        return y_NCHW

    def kernel(self) -> Kernel:
        """An average reads one channel for each output: Q / k^2 at every tap, its bias as it is; nothing to chain."""
        (weight, bias), k = algebra.fold(self.first.weight(), self.rim.bn), self.second.spec.kernel_size
        return algebra.fold_biased(Kernel((weight / k**2).expand(-1, -1, k, k), bias), self.second.bn)


def last_norm(branch: nn.Module) -> nn.BatchNorm2d:
    """The batch norm that ends a branch: each branch registers its own in the order in which they run."""
    return [module for module in branch.modules() if isinstance(module, nn.BatchNorm2d)][-1]
