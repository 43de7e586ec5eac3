"""ACNet's asymmetric convolution block: a square kernel strengthened along its central cross.

    train   y = bn(W * x) + bn(V * x) + bn(H * x),   W k x k, V k x 1, H 1 x k
    fused   y = W' * x + b,   W' = fold(W) + embed(fold(V)) + embed(fold(H))

All three have the block's stride, groups and dilation and share their centre: with "same" padding each pads along its
own long axis only, with less V reads a crop of x in width and H one in height. Zeros are all there is around the map:
the authors' `padding_mode` has no counterpart here.

`gamma_init` as in the authors' code: `third` is their reduce_gamma, `square` their single_init.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Ding et al., ACNet, ICCV 2019, arXiv:1908.03930, section 3.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, Parallel

GAMMAS = {"one": (1.0, 1.0), "third": (1 / 3, 1 / 3), "square": (1.0, 0.0)}
"""First batch-norm weights of the square branch, and of the other two."""


@BLOCKS.register("acb")
class ACB(FusableBlock):
    paper = (
        "Ding et al., ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks, "
        "ICCV 2019, arXiv:1908.03930, section 3"
    )
    sister = "orepa"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
        gamma_init: Annotated[
            Literal["one", "third", "square"],
            "first batch-norm weights: 1 in all branches, 1/3 in all (the authors' reduce_gamma), or 1 in the square "
            "branch and 0 in the others (their single_init)",
        ] = "one",
    ) -> None:
        super().__init__(spec, reparam=reparam, gamma_init=gamma_init)
        k = spec.kernel_size
        square, vertical, horizontal = ConvBN(spec), ConvBN(spec, (k, 1)), ConvBN(spec, (1, k))
        gamma_square, gamma_cross = GAMMAS[gamma_init]
        nn.init.constant_(square.bn.weight, gamma_square)
        nn.init.constant_(vertical.bn.weight, gamma_cross)
        nn.init.constant_(horizontal.bn.weight, gamma_cross)
        self.branches = Parallel(k, {"k x k": square, "k x 1": vertical, "1 x k": horizontal})

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branches(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branches.kernel()
