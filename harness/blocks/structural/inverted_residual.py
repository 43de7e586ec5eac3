"""MobileNetV2's inverted residual: a 1x1 widens, a depthwise k x k filters, a 1x1 narrows and stays linear.

    y = bn(P * relu6(bn(D * relu6(bn(E * x)))))      E c_in -> h, D h -> h depthwise, P h -> c_out;   h = expand c_in
    y = y + x                                        with `residual`, where c_in == c_out and stride == 1

c_in h + h k^2 + h c_out weights. With expand 1 there is no E and D reads x. Stride, dilation and padding are D's; a
margin is around the x that is added too. Nothing follows P in the paper either: its output is not activated.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Sandler et al., MobileNetV2, CVPR 2018, arXiv:1801.04381, section 3.3 and table 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from torch import Tensor

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.declared import KERNEL_SIZES
from harness.blocks.parts.branches import ConvBN
from harness.blocks.parts.stages import RELU6, in_a_row, point, shortcut


@BLOCKS.register("inverted_residual")
class InvertedResidual(Block):
    paper = "Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv:1801.04381"
    kernel_sizes = KERNEL_SIZES[1:]  # a depthwise 1x1 is a scale, which the batch norm behind it has already
    groups = "dense"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        expand: Annotated[Literal[1, 2, 4, 6], "the channels that the depthwise filter works on, over c_in"] = 6,
        residual: Annotated[bool, "the input added to the output, where it has the output's channels and size"] = True,
    ) -> None:
        super().__init__(spec, expand=expand, residual=residual)
        hidden = expand * spec.c_in
        widening = [] if expand == 1 else [point(spec.c_in, hidden)]
        depthwise = ConvBN(replace(spec, c_in=hidden, c_out=hidden, groups=hidden))
        self.stages = in_a_row([*widening, depthwise, point(hidden, spec.c_out)], RELU6)
        self.adds = residual and spec.keeps_shape

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.stages(x_NCHW)
        return y_NCHW + shortcut(x_NCHW, self.spec) if self.adds else y_NCHW
