"""The plain convolution with its batch norm: what every other block is compared with.

    train   y = bn(W * x)                          y = W * x + b where `norm` is off
    fused   y = W' * x + b,   W' = fold(W)

Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Ioffe and Szegedy, Batch Normalization, ICML 2015, arXiv:1502.03167, section 3.2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN
from harness.blocks.parts.composed import Chain


@BLOCKS.register("conv")
class Conv(FusableBlock):
    paper = "Ioffe and Szegedy, Batch Normalization, ICML 2015, arXiv:1502.03167, section 3.2"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[
            Literal["offline", "online"], "the two are the same for a single branch: there is nothing to compose"
        ] = "offline",
        norm: Annotated[bool, "the batch norm; without it a bias, as beside blocks that have no norm"] = True,
    ) -> None:
        super().__init__(spec, reparam=reparam, norm=norm)
        self.branch = ConvBN(spec) if norm else Chain(spec, (spec.c_in, spec.c_out), (spec.kernel_size,), bias=True)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branch(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branch.kernel()
