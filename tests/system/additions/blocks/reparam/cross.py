"""A cross: the middle column and the middle row of a k x k kernel, a branch each, and the pixel where they meet.

    train   y = bn(V * x) + bn(H * x) + bn(P * x)      V k x 1, H 1 x k, P 1 x 1 where `point` is on
            y = the mean of these                      with `combine: mean`
    fused   y = W * x + b,   W = the embedded V, H and P, folded and summed; its corners are zero

Nobody has published it: it stands here as an example of a block in one file.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.declared import KERNEL_SIZES
from harness.blocks.parts.branches import ConvBN, Parallel


@BLOCKS.register("cross")
class Cross(FusableBlock):
    paper = "none: an example of a block in one file"
    sister = "orepa"
    kernel_sizes = KERNEL_SIZES[1:]

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
        point: Annotated[bool, "a 1x1 at the centre"] = True,
        combine: Annotated[Literal["sum", "mean"], "what is made of the branches"] = "sum",
    ) -> None:
        super().__init__(spec, reparam=reparam, point=point, combine=combine)
        k = spec.kernel_size
        branches: dict[str, nn.Module] = {"k x 1": ConvBN(spec, (k, 1)), "1 x k": ConvBN(spec, (1, k))}
        if point:
            branches["1x1"] = ConvBN(spec.resized(1))
        self.branches = Parallel(k, branches)
        self.factor = 1 / len(branches) if combine == "mean" else 1.0

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branches(x_NCHW)
        return self.factor * y_NCHW

    def kernel(self) -> Kernel:
        weight_OIHW, bias_O = self.branches.kernel()
        return Kernel(self.factor * weight_OIHW, self.factor * bias_O)
