"""Dilated convolution: the taps of the k x k kernel `rate` times as far apart, as many of them as before.

    y = bn(W * x),   dilation rate d        d the dilation of the convolution that it stands for

The kernel reaches over k + (k - 1) (rate d - 1) pixels, and the padding grows with it: shapes and parameters stay. A
1x1 has nothing to dilate.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Yu and Koltun, Dilated Convolutions, ICLR 2016, arXiv:1511.07122, section 2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from torch import Tensor

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN


@BLOCKS.register("dilated")
class Dilated(FusableBlock):
    paper = (
        "Yu and Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, ICLR 2016, arXiv:1511.07122, section 2"
    )
    kernel_sizes = tuple(range(3, 14, 2))

    def __init__(
        self,
        spec: ConvSpec,
        *,
        rate: Annotated[Literal[2, 3, 4], "how many times as far apart the taps are"] = 2,
    ) -> None:
        super().__init__(spec, rate=rate)
        self.rate = rate
        self.branch = ConvBN(self.deployed)

    @property
    def deployed(self) -> ConvSpec:
        return replace(self.spec, dilation=self.rate * self.spec.dilation)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branch(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branch.kernel()
