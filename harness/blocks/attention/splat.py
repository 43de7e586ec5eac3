"""Split attention (ResNeSt): `radix` maps of grouped convolutions, and every channel of every sample mixes them.

    [u_1 .. u_R] = relu(bn(W * x)),   W (R c_out, c_in / R, k, k) in R groups, so u_r sees the r-th part of x alone
    y = sum_r a_r * u_r,   a = softmax over r of S relu(norm(V mean(sum_r u_r) + v)) + s;  a sigmoid where R is 1

V (h, c_out), S (R c_out, h); h = R c_in / 4, rounded to a multiple of 8, at least 32: by the input's channels.
`attention_norm`: timm's ResNeSt has a batch norm there; its module by itself has neither norm.

The batch norm is the one behind W, none is behind the sum, nor a convolution that it could fold into. Cardinality,
groups beside the radix, is not offered. Parameters as timm's SplitAttn, which is not called: its norm of the vector
fails on a batch of one by torch's own error, and it writes the maps' sum and their products where a mean and a sum do.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)), never negative.
Paper: Zhang et al., ResNeSt: Split-Attention Networks, CVPR Workshops 2022, arXiv:2004.08955, section 3.
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


@BLOCKS.register("splat")
class Splat(Block):
    paper = "Zhang et al., ResNeSt: Split-Attention Networks, CVPRW 2022, arXiv:2004.08955, section 3"
    groups = "dense"
    channel_multiple = 2

    def __init__(
        self,
        spec: ConvSpec,
        *,
        radix: Annotated[Literal[1, 2, 4], "maps to mix"] = 2,
        attention_norm: Annotated[Norm, "of the hidden vector; batch cannot train on one sample"] = "batch",
    ) -> None:
        super().__init__(spec, radix=radix, attention_norm=attention_norm)
        self._refuse_remainder(radix, "the radix")
        self.radix = radix
        self.conv = ConvBN(replace(spec, c_out=radix * spec.c_out, groups=radix))
        hidden = make_divisible(spec.c_in * radix / 4, 8, min_value=32)
        self.reduce = nn.Conv2d(spec.c_out, hidden, 1)
        self.norm = vector_norm(attention_norm, hidden)
        self.select = nn.Conv2d(hidden, radix * spec.c_out, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        maps_NDHW = torch.relu(self.conv(x_NCHW))
        parts = zip(maps_NDHW.chunk(self.radix, 1), self._attention(maps_NDHW), strict=True)
        first, *others = (part * attention for part, attention in parts)
        return sum(others, first)

    def _attention(self, maps_NDHW: Tensor) -> tuple[Tensor, ...]:
        """(N, R C, H, W) -> what each part counts for, (N, C, 1, 1) R times."""
        mean = maps_NDHW.mean((2, 3), keepdim=True).reshape(-1, self.radix, self.reduce.in_channels, 1, 1).sum(1)
        hidden = torch.relu(self.norm(self.reduce(mean).flatten(1)))[:, :, None, None]
        logits = self.select(hidden).reshape(-1, self.radix, self.reduce.in_channels, 1, 1)
        shares = logits.softmax(1) if self.radix > 1 else logits.sigmoid()
        shares = shares.to(maps_NDHW.dtype)  # on cuda autocast's softmax answers in float32
        of_each: tuple[Tensor, ...] = shares.unbind(1)
        return of_each
