"""ResNet's bottleneck: a 1x1 narrows, a k x k works on few channels, a 1x1 widens.

    y = bn(U * relu(bn(W * relu(bn(R * x)))))      R c_in -> b, W b -> b, k x k, U b -> c_out;   b = c_out / reduction
    y = y + x                                      with `residual`, where c_in == c_out and stride == 1

c_in b + b^2 k^2 + b c_out weights; b is rounded up where reduction does not divide c_out. Stride (ResNet's of 2015 is
in R, torchvision's and later ones' here), dilation and padding are W's; a margin is around the x that is added too.
The ReLU behind the sum is left to the network.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: He et al., Deep Residual Learning, CVPR 2016, arXiv:1512.03385, section 4.1 and figure 5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from torch import Tensor

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.parts.branches import ConvBN
from harness.blocks.parts.stages import in_a_row, point, shortcut


@BLOCKS.register("bottleneck")
class Bottleneck(Block):
    paper = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385, section 4.1"
    groups = "dense"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reduction: Annotated[Literal[2, 4, 8], "c_out over the channels that the k x k works on"] = 4,
        residual: Annotated[bool, "the input added to the output, where it has the output's channels and size"] = False,
    ) -> None:
        super().__init__(spec, reduction=reduction, residual=residual)
        width = -(-spec.c_out // reduction)
        square = ConvBN(replace(spec, c_in=width, c_out=width))
        self.stages = in_a_row([point(spec.c_in, width), square, point(width, spec.c_out)])
        self.adds = residual and spec.keeps_shape

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.stages(x_NCHW)
        return y_NCHW + shortcut(x_NCHW, self.spec) if self.adds else y_NCHW
