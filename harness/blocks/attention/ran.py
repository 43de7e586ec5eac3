"""RAN, residual attention: what a small hourglass makes of the map says how much of it is added once more.

    u = bn(W * x),   y = (1 + M(u)) * u
    M(u) = sigmoid(U up(relu(bn(V * pool(u)))) + e)

pool: maximum of 3x3, stride 2, padding 1; V (h, c_out, 3, 3), h = c_out // 16, at least 4; up: bilinear, to u's size;
U (c_out, h).

Unverified: no repository was read, only (1 + mask) * trunk is from the reference. The paper's masks are many times
deeper, with residual units on the way down and up, and span several blocks of a network; this is the smallest that
goes down and up once.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Wang et al., Residual Attention Network for Image Classification, CVPR 2017, arXiv:1704.06904.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended, PooledBatchNorm, added_gated


@BLOCKS.register("ran")
class RAN(Attended):
    paper = "Wang et al., Residual Attention Network for Image Classification, CVPR 2017, arXiv:1704.06904"

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        self.after = ResidualAttention(spec.c_out)


class ResidualAttention(nn.Module):
    """(1 + sigmoid(out(up(down(x))))) * x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(4, channels // 16)
        self.down = nn.Sequential(
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            PooledBatchNorm(hidden),
            nn.ReLU(inplace=True),
        )
        self.out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        seen = F.interpolate(self.down(x_NCHW), x_NCHW.shape[2:], mode="bilinear", align_corners=False)
        return added_gated(x_NCHW, self.out(seen))
