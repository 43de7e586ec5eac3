"""SK, selective kernel: two receptive fields, and every channel of every sample chooses between them.

    u_1 = relu(bn_1(W_1 * x)),   u_2 = relu(bn_2(W_2 * x)),   W_2 dilated twice as much as W_1
    y = a_1 * u_1 + a_2 * u_2,   [a_1, a_2] = softmax over the two of S relu(norm(V mean(u_1 + u_2)))

W_1, W_2 (c_out, c_in / groups, 3, 3): 3x3 and what stands for 5x5; V (h, c_out), S (2 c_out, h); h = c_out / 16,
rounded to a multiple of `divisor`, at least that. With `split_input` W_1 sees the first half of x's channels and W_2
the second. Divisor 32 without splitting is how timm makes the paper's network (skresnext50_32x4d), the default here;
8 with splitting is the default of timm's module.

The batch norms are the paths' own and there is none behind the sum, nor a convolution that it could fold into. Paths
and attention as timm's SelectiveKernel, which is not called: it pads by the stride, and copies both maps to stack them.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)), never negative.
Paper: Li et al., Selective Kernel Networks, CVPR 2019, arXiv:1903.06586, section 3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from timm.layers import make_divisible
from torch import Tensor, nn

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.parts.branches import ConvBN
from harness.blocks.parts.per_sample import Norm, vector_norm


@BLOCKS.register("sk")
class SK(Block):
    paper = "Li et al., Selective Kernel Networks, CVPR 2019, arXiv:1903.06586, section 3"
    kernel_sizes = (3,)

    def __init__(
        self,
        spec: ConvSpec,
        *,
        split_input: Annotated[
            bool, "half of the input's channels for each path, all of them for both otherwise"
        ] = False,
        divisor: Annotated[Literal[32, 8], "the hidden width, a 16th of the channels, is a multiple of it"] = 32,
        attention_norm: Annotated[Norm, "of the hidden vector; batch cannot train on one sample"] = "batch",
    ) -> None:
        super().__init__(spec, split_input=split_input, divisor=divisor, attention_norm=attention_norm)
        if split_input:
            self._refuse_remainder(2 * spec.groups, "half of the channels for each path, in groups")
        self.split_input = split_input
        narrow = replace(spec, c_in=spec.c_in // 2) if split_input else spec
        self.paths = nn.ModuleList(
            nn.Sequential(ConvBN(path), nn.ReLU(inplace=True))
            for path in (narrow, replace(narrow, dilation=2 * spec.dilation))
        )
        hidden = make_divisible(spec.c_out / 16, divisor)
        self.attention = Selection(spec.c_out, hidden, attention_norm)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        inputs = x_NCHW.chunk(2, 1) if self.split_input else (x_NCHW, x_NCHW)
        first, second = (path(part) for path, part in zip(self.paths, inputs, strict=True))
        a_first, a_second = self.attention(first, second)
        y_NCHW: Tensor = first * a_first + second * a_second
        return y_NCHW


class Selection(nn.Module):
    """Two maps (N, C, H, W) -> what each counts for, (N, C, 1, 1) twice: they add up to one."""

    def __init__(self, channels: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm = vector_norm(norm, hidden)
        self.select = nn.Conv2d(hidden, 2 * channels, 1, bias=False)

    def forward(self, first_NCHW: Tensor, second_NCHW: Tensor) -> tuple[Tensor, ...]:
        mean = first_NCHW.mean((2, 3), keepdim=True) + second_NCHW.mean((2, 3), keepdim=True)
        hidden = torch.relu(self.norm(self.reduce(mean).flatten(1)))[:, :, None, None]
        logits: Tensor = self.select(hidden).reshape(-1, 2, *mean.shape[1:])
        shares = logits.softmax(1).to(first_NCHW.dtype)  # on cuda autocast's softmax answers in float32
        return shares.unbind(1)
