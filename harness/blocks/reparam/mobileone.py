"""MobileOne: n k x k branches, a 1x1 and the identity while training, one convolution once fused.

    train   y = sum_n bn(W_n * x) + bn(W_1 * x) + bn(x)
    fused   y = W * x + b,   W = sum_n fold(W_n) + embed(fold(W_1)) + embed(fold(I))

A 1x1 block (k = 1) has no W_1 beside its n branches; bn(x) exists only when c_in == c_out and stride == 1. Dilation
belongs to the k x k branches, in training too, where the authors' code drops it. `se` as in repvgg.py.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Vasu et al., MobileOne, CVPR 2023, arXiv:2206.04040.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import over_parameterized
from harness.blocks.parts.squeeze_excitation import SE, squeeze_excitation


@BLOCKS.register("mobileone")
class MobileOne(FusableBlock):
    paper = "Vasu et al., MobileOne: An Improved One millisecond Mobile Backbone, CVPR 2023, arXiv:2206.04040"
    sister = "orepa_vgg"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
        branches: Annotated[Literal[1, 2, 3, 4, 5, 6, 7, 8], "k x k branches: 4 in MobileOne-S0, 1 in the others"] = 4,
        se: SE = False,
    ) -> None:
        super().__init__(spec, reparam=reparam, branches=branches, se=se)
        self.branches = over_parameterized(spec, branches)
        if se:
            self.after = squeeze_excitation(spec.c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.after(self.branches(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branches.kernel()
