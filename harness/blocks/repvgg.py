"""RepVGG: three branches while training, one convolution once fused.

    train   y = bn_k(W_k * x) + bn_1(W_1 * x) + bn_0(x)
    fused   y = W * x + b,   W = fold(W_k) + embed(fold(W_1)) + embed(fold(I))

The bn_0 branch exists only when c_in == c_out and stride == 1. Dilation belongs to the k x k branch alone.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Ding et al., RepVGG, CVPR 2021, arXiv:2101.03697, section 3.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.branches import ConvBN, IdentityBN, Parallel


@BLOCKS.register("repvgg")
class RepVGG(FusableBlock):
    family = "re-parameterized"
    paper = "Ding et al., RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, arXiv:2101.03697, section 3"
    sister = "orepa_vgg"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
    ) -> None:
        super().__init__(spec, reparam=reparam)
        branches: dict[str, nn.Module] = {"k x k": ConvBN(spec), "1x1": ConvBN(spec.resized(1))}
        if spec.keeps_shape:
            branches["identity"] = IdentityBN(spec)
        self.branches = Parallel(spec.kernel_size, branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.branches(x_NCHW)  # type: ignore[no-any-return]

    def kernel(self) -> Kernel:
        return self.branches.kernel()
