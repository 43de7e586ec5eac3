"""RepViT's depthwise RepVGG: a k x k, a 1x1 and x itself summed in front of one more batch norm.

    train   y = bn'( bn(W_k * x) + (W_1 * x + c) + x )
    fused   y = W * x + b,   fold'( fold(W_k) + embed(W_1) + embed(I) ),   c in b

The 1x1 has a bias and no batch norm. All is depthwise, so W_1 is one number a channel. Dilation belongs to W_k alone.
Shapes: x (N, C, H, W) -> y (N, C, H, W).
Paper: Wang et al., RepViT, CVPR 2024, arXiv:2307.09283; as in the authors' code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, Parallel, Point, Skip


@BLOCKS.register("repvgg_dw")
class RepVGGDW(FusableBlock):
    paper = "Wang et al., RepViT: Revisiting Mobile CNN From ViT Perspective, CVPR 2024, arXiv:2307.09283"
    sister = "orepa"
    strides = (1,)
    groups = "depthwise"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: one has a batch norm of its own"] = "offline",
    ) -> None:
        super().__init__(spec, reparam=reparam)
        branches = {"k x k": ConvBN(spec), "1x1": Point(spec.resized(1), bias=True), "identity": Skip(spec)}
        self.branches = Parallel(spec.kernel_size, branches)
        self.bn = nn.BatchNorm2d(spec.c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self.branches(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold_biased(self.branches.kernel(), self.bn)
