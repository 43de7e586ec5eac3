"""ResNet's basic unit: two k x k convolutions and a shortcut around them.

    y = bn(W2 * relu(bn(W1 * x))) + S(x)      S(x) = x, or bn(W0 * x), W0 1x1, where x and y differ in shape

With `zero_init` the last batch norm's weight starts at 0, so that the unit starts as S. Both convolutions are dilated;
the stride and any margin are W1's, and so the shortcut's. The ReLU behind the sum is left to the network.
Block `rm` trains as the same unit and becomes two plain convolutions without a shortcut; this one stays what it is.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: He et al., Deep Residual Learning, CVPR 2016, arXiv:1512.03385, section 3.2 (option B); `zero_init`: Goyal et
al., Accurate, Large Minibatch SGD, 2017, arXiv:1706.02677, section 5.1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import Tensor, nn

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.parts.branches import ConvBN
from harness.blocks.parts.stages import in_a_row, shortcut


@BLOCKS.register("residual")
class Residual(Block):
    paper = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385, section 3.2"
    groups = "dense"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        zero_init: Annotated[bool, "the last batch norm's weight starts at 0: the unit starts as its shortcut"] = False,
    ) -> None:
        super().__init__(spec, zero_init=zero_init)
        last = ConvBN(replace(spec, c_in=spec.c_out, stride=1, margin=0))
        self.stages = in_a_row([ConvBN(spec), last])
        self.projection = None if spec.keeps_shape else ConvBN(spec.resized(1))
        if zero_init:
            nn.init.zeros_(last.bn.weight)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.stages(x_NCHW)
        added = shortcut(x_NCHW, self.spec) if self.projection is None else self.projection(x_NCHW)
        return y_NCHW + added
