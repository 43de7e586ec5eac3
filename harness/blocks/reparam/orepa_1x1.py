"""OREPA for a 1x1 convolution: itself and two 1x1 layers in a row, one batch norm behind them.

    train   y = bn(W * x),   W = v_0 W0 + v_1 (W2 W1)       online: composed as kernels, one convolution
            y = bn(v_0 (W0 * x) + v_1 (W2 * (W1 * x)))      offline: each branch on the feature map
    fused   y = W' * x + b,   W' = fold(W)

W0 (O, C/g); of the two layers one is square, learned and starts as the identity, on the side with fewer channels:
O > C: W1 (C, C/g) starts as the identity, W2 (O, C/g); else W1 (O, C/g), W2 (O, O/g) starts as the identity. v is
(2, O), at first 1 and 0.5. Groups (not in the paper) do the same each for itself. A 1x1 has nothing to dilate.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826; as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.cached import CachedKernel
from harness.blocks.parts.composition import no_autocast
from harness.blocks.parts.linear_branches import NORM, PAPER, REPARAM, SCALING, first_scales, kaiming

FIRST_SCALES = (1.0, 0.5)


@BLOCKS.register("orepa_1x1")
class OREPA1x1(FusableBlock):
    paper = PAPER
    kernel_sizes = (1,)

    def __init__(
        self, spec: ConvSpec, *, reparam: REPARAM = "online", scaling: SCALING = "vector", norm: NORM = True
    ) -> None:
        super().__init__(spec, reparam=reparam, scaling=scaling, norm=norm)
        c_in, c_out, groups = spec.c_in, spec.c_out, spec.groups
        inputs = c_in // groups
        self.origin = kaiming(c_out, inputs, 1, slope=1.0)
        if c_out > c_in:
            self.first = nn.Parameter(algebra.identity(c_in, groups, self.origin))
            self.second = kaiming(c_out, inputs, 1, slope=1.0)
        else:
            self.first = kaiming(c_out, inputs, 1, slope=1.0)
            self.second = nn.Parameter(algebra.identity(c_out, groups, self.origin))
        self.scales = first_scales(scaling, c_out, FIRST_SCALES)
        self.bn = nn.BatchNorm2d(c_out) if norm else nn.Identity()
        self.reparam = reparam
        self._cache = CachedKernel()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        summed = self._online if self.reparam == "online" else self._offline
        y_NCHW: Tensor = self.bn(summed(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold(self._weight(), self.bn)

    def _weight(self) -> Tensor:
        """W (O, C/g, 1, 1), composed outside autocast."""
        groups = self.spec.groups
        with no_autocast(self.origin.device):
            first_GTI = self.first.reshape(groups, -1, self.first.shape[1])
            second_GOT = self.second.reshape(groups, -1, self.second.shape[1])
            chained = torch.bmm(second_GOT, first_GTI).reshape(self.origin.shape)
            v = self._v(axes=3)
            return v[0] * self.origin + v[1] * chained

    def _online(self, x_NCHW: Tensor) -> Tensor:
        s = self.spec
        return F.conv2d(x_NCHW, self._cache.get(self, self._weight), None, s.stride, s.padding, groups=s.groups)

    def _offline(self, x_NCHW: Tensor) -> Tensor:
        s, groups, v = self.spec, self.spec.groups, self._v(axes=2)
        y_NCHW = v[0] * F.conv2d(x_NCHW, self.origin, None, s.stride, s.padding, groups=groups)
        mixed = F.conv2d(x_NCHW, self.first, None, s.stride, s.padding, groups=groups)  # strided: fewer pixels to mix
        return y_NCHW + v[1] * F.conv2d(mixed, self.second, groups=groups)

    def _v(self, axes: int) -> Tensor:
        """The scales (2, O or 1) with `axes` more behind them."""
        scales = self.origin.new_ones(2, 1) if self.scales is None else self.scales
        return scales.reshape(*scales.shape, *[1] * axes)
