"""MobileNetV1's depthwise separable convolution: each channel filtered alone, then a 1x1 mixes them.

    y = bn(P * relu(bn(D * x)))      D (c_in, 1, k, k) depthwise, P (c_out, c_in, 1, 1)

c_in k^2 + c_in c_out weights, 1 / c_out + 1 / k^2 of the convolution's. Stride, dilation and padding are D's. The ReLU
behind the 1x1 is left to the network. Initialised as torch does, as in all blocks of this family.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Howard et al., MobileNets, 2017, arXiv:1704.04861, section 3.1 and figure 3.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.declared import KERNEL_SIZES
from harness.blocks.parts.branches import ConvBN
from harness.blocks.parts.stages import in_a_row, point


@BLOCKS.register("depthwise_separable")
class DepthwiseSeparable(Block):
    paper = (
        "Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision, 2017, arXiv:1704.04861"
    )
    kernel_sizes = KERNEL_SIZES[1:]  # a depthwise 1x1 is a scale, which the batch norm behind it has already
    groups = "dense"

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        depthwise = ConvBN(replace(spec, c_out=spec.c_in, groups=spec.c_in))
        self.stages = in_a_row([depthwise, point(spec.c_in, spec.c_out)])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.stages(x_NCHW)
        return y_NCHW
