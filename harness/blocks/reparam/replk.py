"""RepLKNet's large kernel with a small one beside it, which learns what is near.

    train   y = bn(W_k * x) + bn(W_s * x),   s = 5 or 3
    fused   y = W * x + b,   W = fold(W_k) + embed(fold(W_s))

Both have the block's stride, groups and dilation and share their centre. RepLKNet has it depthwise, k 13 to 31.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Ding et al., RepLKNet, CVPR 2022, arXiv:2203.06717.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, Parallel


@BLOCKS.register("replk")
class RepLK(FusableBlock):
    paper = (
        "Ding et al., Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs, CVPR 2022, "
        "arXiv:2203.06717"
    )
    sister = "orepa"
    kernel_sizes = tuple(range(7, 32, 2))
    """Larger than either small kernel, up to the paper's largest."""

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
        small: Annotated[Literal[3, 5], "size of the small kernel"] = 5,
    ) -> None:
        super().__init__(spec, reparam=reparam, small=small)
        branches = {"large": ConvBN(spec), "small": ConvBN(spec.resized(small))}
        self.branches = Parallel(spec.kernel_size, branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branches(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branches.kernel()
