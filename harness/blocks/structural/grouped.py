"""Grouped convolution: the channels in `count` groups, each convolved for itself.

    y = bn(W * x),   groups count g         g the groups of the convolution that it stands for

A `count`-th of the parameters and multiplications, c_out c_in k k / (count g); no group knows of another.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)); W (c_out, c_in / (count g), k, k).
Paper: Xie et al., ResNeXt, CVPR 2017, arXiv:1611.05431, section 3; first in Krizhevsky et al., NIPS 2012.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from torch import Tensor

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN

Count = Annotated[Literal[2, 4, 8, 16, 32], "groups, in each group of the convolution that it stands for"]


@BLOCKS.register("grouped")
class Grouped(FusableBlock):
    paper = (
        "Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017, arXiv:1611.05431, "
        "section 3"
    )
    channel_multiple = 8

    def __init__(self, spec: ConvSpec, *, count: Count = 8) -> None:
        super().__init__(spec, count=count)
        self._refuse_remainder(count * spec.groups, "the groups it would have (option count, times those of the place)")
        self.count = count
        self.branch = ConvBN(self.deployed)

    @property
    def deployed(self) -> ConvSpec:
        return replace(self.spec, groups=self.count * self.spec.groups)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.after(self.branch(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branch.kernel()
