"""BAM: one mask for channels and pixels together, added to what it rescales.

    u = bn(W * x),   y = u * (1 + sigmoid(c(u) x s(u)))          combine product, the authors' code
                     y = u * (1 + sigmoid(c(u) + s(u)))          combine sum, the paper
    c(u) = U relu(norm(V mean(u) + v)) + e                       (N, c_out, 1, 1)
    s(u) = p . r + q,   r = relu(bn(3x3 of relu(bn(3x3 of relu(bn(1x1 of u))))))      (N, 1, H', W')

V (h, c_out), U (c_out, h), h = c_out // 16; the 1x1 reduces to h channels, both 3x3 keep them, are dilated
by 4 and padded by 4; the three have biases. p of h values. As in the authors' code, not as in the paper, neither branch
ends in a batch norm. Their mean is over a square window with the map's height: the true one here.
h is at least 4, where theirs is less below 64 channels (and 0 below 16): the scale of a single channel is void behind
the next batch norm, and a layer norm makes a constant of one value and a mere sign of two.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Park et al., BAM, BMVC 2018, arXiv:1807.06514. The authors put one behind each of ResNet's first three stages.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended, added_gated
from harness.blocks.parts.per_sample import Norm, pooled, vector_norm


@BLOCKS.register("bam")
class BAM(Attended):
    paper = "Park et al., BAM: Bottleneck Attention Module, BMVC 2018, arXiv:1807.06514, section 3"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        combine: Annotated[
            Literal["product", "sum"], "of the channels' mask and the pixels': as the authors' code, or the paper"
        ] = "product",
        attention_norm: Annotated[Norm, "of the channels' hidden vector; batch cannot train on one sample"] = "batch",
    ) -> None:
        super().__init__(spec, combine=combine, attention_norm=attention_norm)
        self.after = Bottleneck(spec.c_out, combine == "sum", attention_norm)


class Bottleneck(nn.Module):
    """x * (1 + sigmoid(channel . spatial)), or of their sum."""

    def __init__(self, channels: int, add: bool, norm: Norm) -> None:
        super().__init__()
        self.add = add
        hidden = max(4, channels // 16)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), vector_norm(norm, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.spatial = nn.Sequential(
            *_unit(channels, hidden, 1), *_unit(hidden, hidden, 3), *_unit(hidden, hidden, 3), nn.Conv2d(hidden, 1, 1)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        channel = self.channel(pooled(x_NCHW))[:, :, None, None]
        spatial = self.spatial(x_NCHW)
        return added_gated(x_NCHW, channel + spatial if self.add else channel * spatial)


def _unit(c_in: int, c_out: int, size: int) -> tuple[nn.Module, ...]:
    distance = 4 if size > 1 else 1
    conv = nn.Conv2d(c_in, c_out, size, padding=distance * (size // 2), dilation=distance)
    return conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
