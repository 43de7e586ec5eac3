"""RM-RepVGG: some inputs go through untouched, RepVGG's branches make the other outputs; one convolution once fused.

    train   y = [x_0, bn_k(W_k * x) + bn_1(W_1 * x) + bn_0(x_1)]      x = [x_0, x_1]: the first `ratio` %, the others
    fused   y = W * x + b,   W = [I_0, fold(W_k) + embed(fold(W_1)) + embed(fold(I_1))],   b = [0, ...]

I_0 and I_1 are the rows of the identity that copy x_0 and x_1. The bn_0 branch exists only at stride 1. What a deep
plain network would lose is handed on, and the branches cost less than RepVGG's while training; the fused form costs
the same. Dilation belongs to the k x k branch alone. Ours: a stride takes every stride-th pixel of x_0, as the 1x1
does, and a share that is no whole number of channels is rounded down.
Shapes: x (N, C, H, W) -> y (N, C, ceil(H / stride), ceil(W / stride)).
Paper: Meng et al., RMNet, 2021, arXiv:2111.00687; as in the authors' code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, IdentityBN, Parallel, widen


class LastBN(IdentityBN):
    """y = bn(x_1), x_1 (N, c_out, H, W) the last of x's channels."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(replace(spec, c_in=spec.c_out))
        self.skipped = spec.c_in - spec.c_out

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(x_NCHW[:, self.skipped :])

    def kernel(self) -> Kernel:
        weight, bias = super().kernel()
        return Kernel(F.pad(weight, (0, 0, 0, 0, self.skipped, 0)), bias)


@BLOCKS.register("rm_repvgg")
class RMRepVGG(FusableBlock):
    paper = "Meng et al., RMNet: Equivalently Removing Residual Connection from Networks, 2021, arXiv:2111.00687"
    sister = "orepa_vgg"
    groups = "dense"
    same_channels = True

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
        ratio: Annotated[
            Literal[25, 50, 75],
            "untouched channels in percent: 25 in networks of depth 21 and 37, 50 in depth 69, 75 in depth 133",
        ] = 50,
    ) -> None:
        super().__init__(spec, reparam=reparam, ratio=ratio)
        self.untouched = spec.c_in * ratio // 100
        made = replace(spec, c_out=spec.c_out - self.untouched)
        branches: dict[str, nn.Module] = {"k x k": ConvBN(made), "1x1": ConvBN(made.resized(1))}
        if spec.keeps_shape:
            branches["identity"] = LastBN(made)
        self.branches = Parallel(spec.kernel_size, branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        margin, stride = self.spec.margin, self.spec.stride
        handed_on = widen(x_NCHW[:, : self.untouched], margin, margin)[:, :, ::stride, ::stride]
        return torch.cat([handed_on, self.branches(x_NCHW)], 1)

    def kernel(self) -> Kernel:
        weight, bias = self.branches.kernel()
        copies = algebra.embed(algebra.identity(self.spec.c_in, 1, weight)[: self.untouched], self.spec.kernel_size)
        return Kernel(torch.cat([copies, weight]), torch.cat([bias.new_zeros(self.untouched), bias]))
