"""DBB, the diverse branch block: four branches of different shape, each with batch norms of its own.

    train   y = bn(W * x)                            origin
              + bn(P * x)                            1x1
              + bn(V * rim(bn(U * x)))               1x1-kxk, U (T, C/g, 1, 1), V (O, T/g, k, k)
              + bn(avg(rim(bn(Q * x))))              1x1-avg, Q (O, C/g, 1, 1)
    fused   y = W' * x + b,   the four folded, chained (T3) and summed

`rim` pads with what its batch norm makes of a zero, so that the chains fold exactly at the border. U is the identity
plus a weight that starts at zero, T = C. A depthwise block has no 1x1, the plain avg(x) for the last branch, and
T = 2C with an ordinary U. Dilation belongs to W, V and avg.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Ding et al., Diverse Branch Block, CVPR 2021, arXiv:2103.13425, section 3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.branches import ConvBN, PaddedBN, Parallel


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
        return self.second(self.rim(self.first(x_NCHW)))  # type: ignore[no-any-return]

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
        return self.bn(self.pool(x_NCHW))  # type: ignore[no-any-return]

    def pool(self, x_NCHW: Tensor) -> Tensor:
        k, stride, dilation, channels = (
            self.spec.kernel_size,
            self.spec.stride,
            self.spec.dilation,
            self.spec.c_out,
        )
        if dilation == 1:
            return F.avg_pool2d(x_NCHW, k, stride, self.padding)
        taps = algebra.average(channels, channels, k, x_NCHW)  # no pooling operation dilates
        return F.conv2d(x_NCHW, taps, None, stride, self.padding, dilation, channels)

    def kernel(self) -> Kernel:
        taps = algebra.average(self.spec.c_out, self.spec.groups, self.spec.kernel_size, self.like)
        return algebra.fold(taps, self.bn)


class PointwiseAverage(nn.Module):
    """y = bn(avg(rim(bn(Q * x))))."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.groups = spec.groups
        self.first = Pointwise(spec.c_in, spec.c_out, spec.groups)
        self.rim = PaddedBN(spec.c_out, spec.padding)
        self.second = AverageBN(spec, padding=0)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.second(self.rim(self.first(x_NCHW)))  # type: ignore[no-any-return]

    def kernel(self) -> Kernel:
        first = algebra.fold(self.first.weight(), self.rim.bn)
        return algebra.chain_folded(first, self.second.kernel(), self.groups)


@BLOCKS.register("dbb")
class DBB(FusableBlock):
    family = "re-parameterized"
    paper = (
        "Ding et al., Diverse Branch Block: Building a Convolution as an Inception-like Unit, CVPR 2021, "
        "arXiv:2103.13425, section 3"
    )
    sister = "orepa"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has batch norms of its own"] = "offline",
        gamma_init: Annotated[
            Literal["one", "origin"],
            "first weights of the batch norms that end the branches: 1 in all, or 1 in the origin and 0 in the others",
        ] = "one",
    ) -> None:
        super().__init__(spec, reparam=reparam, gamma_init=gamma_init)
        last: list[nn.BatchNorm2d] = []
        branches: dict[str, nn.Module] = {"origin": ConvBN(spec)}
        if spec.depthwise:
            chain, average = Chain(spec, 2 * spec.c_in, residual=False), AverageBN(spec, spec.padding)
            branches |= {"1x1-kxk": chain, "average": average}
            last += [chain.second.bn, average.bn]
        else:
            point = ConvBN(spec.resized(1))
            chain, pooled = Chain(spec, spec.c_in, residual=True), PointwiseAverage(spec)
            branches |= {"1x1": point, "1x1-kxk": chain, "1x1-average": pooled}
            last += [point.bn, chain.second.bn, pooled.second.bn]
        for bn in last:
            nn.init.constant_(bn.weight, 1.0 if gamma_init == "one" else 0.0)
        self.branches = Parallel(spec.kernel_size, branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.branches(x_NCHW)  # type: ignore[no-any-return]

    def kernel(self) -> Kernel:
        return self.branches.kernel()
