"""SRM, style-based recalibration: a channel rescaled by its own mean and standard deviation.

    u = bn(W * x),   y = u * sigmoid(norm(a * mean(u) + b * std(u)))          a, b (c_out,)

The deviation is the population's, sqrt(var + 1e-5): that of one pixel is a number, and that of a constant map has a
gradient. Re-implementations differ there (sample or population), and the authors' code was not read. a and b start at
zero, as the official layer is said to have them. `norm` is a batch norm over the batch's vectors.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Lee et al., SRM, ICCV 2019, arXiv:1903.10829.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended, gated
from harness.blocks.parts.per_sample import Norm, vector_norm


@BLOCKS.register("srm")
class SRM(Attended):
    paper = "Lee et al., SRM: A Style-based Recalibration Module for Convolutional Neural Networks, ICCV 2019"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        attention_norm: Annotated[Norm, "of what rescales the channels; batch cannot train on one sample"] = "batch",
    ) -> None:
        super().__init__(spec, attention_norm=attention_norm)
        self.after = StyleRecalibration(spec.c_out, attention_norm)


class StyleRecalibration(nn.Module):
    """x * sigmoid(norm(weight[:, 0] mean(x) + weight[:, 1] std(x)))."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 2))
        self.norm = vector_norm(norm, channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x_NCHW, (2, 3), correction=0)
        by_mean, by_deviation = self.weight.unbind(1)
        style = self.norm(mean * by_mean + torch.sqrt(variance + 1e-5) * by_deviation)
        return gated(x_NCHW, style[:, :, None, None])
