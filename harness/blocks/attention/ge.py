"""GE, gather-excite: a map rescaled by what surrounds each of its pixels, as far as an extent, or by all of it.

    u = bn(W * x),   y = u * sigmoid(nearest(gather(u)))

    learned none       (GE-theta-)  gather = the mean of 2 e - 1 pixels each way around every e-th, e the extent
    learned depthwise  (GE-theta)   gather = log2 e depthwise 3x3, stride 2, each with bn, a ReLU between two
    learned mlp        (GE-theta+)  as depthwise, then U relu(V . + v) + w

V (h, c_out), U (c_out, h), h = c_out / 16, rounded, at least 1.
The mean counts no padding. `nearest` brings the gathered map back to u's size, pixel i from floor(i * gathered / size).
Extent 0 is the whole map: its mean, broadcast. GE-theta gathers that by a depthwise kernel as large as the map, which
a block does not know and so refuses; with `mlp` the mean stands in for it, and the block is an SE. The default extent
is the largest that all three can have.

Only timm's GatherExcite was read, whose settings these are; its 1.0.31 can be constructed for `none` alone, anything
with parameters is a TypeError. How the settings go with the paper's three names, and whether the authors' Caffe code
resamples like that, is unverified.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Hu et al., Gather-Excite, NeurIPS 2018, arXiv:1810.12348.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from timm.layers import make_divisible
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended, PooledBatchNorm
from harness.errors import Unsupported


@BLOCKS.register("ge")
class GE(Attended):
    paper = "Hu et al., Gather-Excite: Exploiting Feature Context in CNNs, NeurIPS 2018, arXiv:1810.12348"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        extent: Annotated[Literal[0, 2, 4, 8], "pixels between what is gathered; 0 gathers the whole map"] = 8,
        learned: Annotated[
            Literal["none", "depthwise", "mlp"],
            "nothing, the gathering, or that and two linear layers (with extent 0 these alone)",
        ] = "none",
    ) -> None:
        super().__init__(spec, extent=extent, learned=learned)
        if learned == "depthwise" and not extent:
            problem = "block ge: a depthwise kernel that gathers the whole map must know its size, a block does not"
            raise Unsupported(problem, remedy="use extent 2, 4 or 8, or learned: none or mlp")
        self.after = GatherExcite(spec.c_out, extent, learned)


class GatherExcite(nn.Module):
    """x * sigmoid(nearest(excite(gather(x))))."""

    def __init__(self, channels: int, extent: int, learned: str) -> None:
        super().__init__()
        self.gather = depthwise(channels, extent) if extent and learned != "none" else Mean(extent)
        self.excite = mlp(channels) if learned == "mlp" else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(self.gather(x_NCHW)))  # copies of a sigmoid are sigmoids of copies
        if gate.shape[2:].numel() > 1:  # one pixel broadcasts
            gate = F.interpolate(gate, x_NCHW.shape[2:])
        return x_NCHW * gate


class Mean(nn.Module):
    """The mean of the whole map, or around every `extent`-th pixel, without the padding."""

    def __init__(self, extent: int) -> None:
        super().__init__()
        self.extent = extent

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.extent:
            return x_NCHW.mean((2, 3), keepdim=True)
        return F.avg_pool2d(x_NCHW, 2 * self.extent - 1, self.extent, self.extent - 1, count_include_pad=False)


def depthwise(channels: int, extent: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    while extent > 1:
        layers.append(nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False))
        layers.append(PooledBatchNorm(channels))
        extent //= 2
        if extent > 1:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def mlp(channels: int) -> nn.Sequential:
    hidden = make_divisible(channels / 16, 1)
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1))
