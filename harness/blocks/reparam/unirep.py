"""UniRepLKNet's dilated re-parameterization: a large depthwise kernel, and small ones with their taps apart.

    train   y = bn(W * x) + sum_j bn(W_j *_(r_j) x),   W_j k_j x k_j with taps r_j apart, r_j (k_j - 1) + 1 <= k
    fused   y = W' * x + b,   W' = fold(W) + sum_j embed(dilate(fold(W_j), r_j))

`BRANCHES` has the (k_j, r_j) of each k. All have the block's stride and share their centre.
Shapes: x (N, C, H, W) -> y (N, C, ceil(H / stride), ceil(W / stride)).
Paper: Ding et al., UniRepLKNet, CVPR 2024, arXiv:2311.15599; the branches as in the authors' code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, Parallel

BRANCHES = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""The size and dilation of each small kernel, by the size of the large one."""


class DilatedConvBN(ConvBN):
    """y = bn(W * x) with the spec's dilation, as a kernel that has none."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        self.dilation = spec.dilation

    def kernel(self) -> Kernel:
        weight, bias = super().kernel()
        return Kernel(algebra.dilate(weight, self.dilation), bias)


@BLOCKS.register("unirep")
class UniRep(FusableBlock):
    paper = (
        "Ding et al., UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud, "
        "Time-Series and Image Recognition, CVPR 2024, arXiv:2311.15599"
    )
    sister = "orepa"
    kernel_sizes = tuple(BRANCHES)
    dilations = (1,)
    groups = "depthwise"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
    ) -> None:
        super().__init__(spec, reparam=reparam)
        branches: dict[str, nn.Module] = {"large": ConvBN(spec)}
        for size, dilation in BRANCHES[spec.kernel_size]:
            place = replace(spec, kernel_size=size, dilation=dilation)
            branches[f"{size}x{size}, {dilation} apart"] = DilatedConvBN(place)
        self.branches = Parallel(spec.kernel_size, branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branches(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branches.kernel()
