"""Scaled filters: one static kernel, each of its filters times a factor that the sample decides.

    y_n = bn((s(x_n) W) * x_n),   s(x) = 1 + tanh(U mean(x) + u)        `gate: tanh`, 0..2
                                  s(x) = 2 sigmoid(U mean(x) + u)       `gate: sigmoid`, 0..2

s (c_out,) is 1 for every sample at first: U and u start at zero. Nobody has published it: it stands here as an example
of a block with kernels per sample in one file.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)); W (c_out, c_in / groups, k, k),
U (c_out, c_in).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.per_sample import PerSampleBlock, Scale, convolve_each, pooled


@BLOCKS.register("filter_scale")
class FilterScale(PerSampleBlock):
    paper = "none: an example of a block in one file"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        gate: Annotated[Literal["tanh", "sigmoid"], "what bounds the factors"] = "tanh",
    ) -> None:
        super().__init__(spec, gate=gate)
        self.gate = gate
        self.weight = nn.Parameter(
            torch.empty(spec.c_out, spec.c_in // spec.groups, spec.kernel_size, spec.kernel_size)
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        self.decide = nn.Linear(spec.c_in, spec.c_out)
        nn.init.zeros_(self.decide.weight)
        nn.init.zeros_(self.decide.bias)
        self.scale = Scale()

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        logits_NO = self.decide(pooled(x_NCHW))
        factor_NO = 1 + torch.tanh(logits_NO) if self.gate == "tanh" else 2 * torch.sigmoid(logits_NO)
        kernels_NOIHW: Tensor = self.scale(self.weight, factor_NO.to(self.weight.dtype)[:, :, None, None, None])
        return convolve_each(x_NCHW, kernels_NOIHW, self.spec)
