"""CondConv: the kernel is a sum of experts, each weighed by a sigmoid of its own.

    y = bn((sum_n r_n W_n) * x),   r = sigmoid(R mean(x) + b)

Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)), experts W_n (c_out, c_in / groups, k, k),
R (n, c_in), one r (N, n) for each sample. The weights r need not sum to 1: experts are switched on and off, not chosen
among.

Every layer routes for itself, as in the paper's equation; timm's EfficientNets route once per inverted residual and
share r among its three convolutions. timm's experts may have a bias, mixed like the kernel: left out, the batch norm
takes its mean over the batch away, and has one itself.

Initialisation as timm's layer: kaiming uniform with a = sqrt(5) for each expert, the linear layer's default for R.
TensorFlow's layer: glorot uniform.
Paper: Yang et al., CondConv, NeurIPS 2019, arXiv:1904.04971; timm's CondConv2d and CondConvResidual.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.experts import ExpertBlock
from harness.blocks.parts.per_sample import convolve_each, pooled


@BLOCKS.register("condconv")
class CondConv(ExpertBlock):
    paper = (
        "Yang et al., CondConv: Conditionally Parameterized Convolutions for Efficient Inference, NeurIPS 2019, "
        "arXiv:1904.04971"
    )

    def __init__(
        self,
        spec: ConvSpec,
        *,
        experts: Annotated[Literal[4, 8], "kernels to weigh and add"] = 4,
    ) -> None:
        super().__init__(spec, experts, partial(nn.init.kaiming_uniform_, a=sqrt(5)), experts=experts)
        self.routing = nn.Linear(spec.c_in, experts)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        weights_NE = torch.sigmoid(self.routing(pooled(x_NCHW)))
        return convolve_each(x_NCHW, self.mixed(weights_NE), self.spec)
