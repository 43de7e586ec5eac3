"""DenseNet's layers: each reads all maps made so far and adds a few; a transition then mixes them to c_out.

    x_i = G_i * relu(bn(B_i * relu(bn([x, x_1, ..., x_{i-1}]))))      B_i 1x1 -> 4 growth, G_i k x k -> growth
    y   = bn(T * pool(relu(bn([x, x_1, ..., x_layers]))))             T 1x1 -> c_out

The pool averages stride x stride pixels (none at stride 1; those that there are, at a rim with fewer). DenseNet pools
behind T: that is the same, as both are linear and neither has a bias, but costs stride^2 times T's work. The last batch
norm is the block's own, in DenseNet the next layer's first, and the ReLU behind it is left to the network. All G_i
keep the map's size; dilation is theirs. A margin is around x, zeros or a crop, and in the batch statistics.

The paper's nets have 6 to 64 layers of growth 32 between transitions; here two by default, in the place of one
convolution: weights grow with layers^2, and so does the memory for backward, as every layer keeps its concatenation.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Huang et al., Densely Connected Convolutional Networks, CVPR 2017, arXiv:1608.06993, section 3 (DenseNet-BC).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.parts.stages import RELU, point, shortcut

WIDENING = 4
"""Channels in front of a layer's k x k, over those that it makes: `bn_size` in the authors' code."""


@BLOCKS.register("dense")
class Dense(Block):
    paper = "Huang et al., Densely Connected Convolutional Networks, CVPR 2017, arXiv:1608.06993, section 3"
    groups = "dense"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        layers: Annotated[Literal[1, 2, 4], "how many layers add their maps"] = 2,
        growth: Annotated[Literal[16, 32], "the channels that each layer adds"] = 32,
    ) -> None:
        super().__init__(spec, layers=layers, growth=growth)
        widths = [spec.c_in + i * growth for i in range(layers + 1)]
        self.layers = nn.ModuleList([DenseLayer(spec, width, growth) for width in widths[:-1]])
        self.transition = nn.Sequential(*norm_act(widths[-1]), _pool(spec.stride), point(widths[-1], spec.c_out))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        maps_NCHW = shortcut(x_NCHW, self.spec)
        for layer in self.layers:
            maps_NCHW = torch.cat([maps_NCHW, layer(maps_NCHW)], 1)
        y_NCHW: Tensor = self.transition(maps_NCHW)
        return y_NCHW


class DenseLayer(nn.Sequential):
    """G * relu(bn(B * relu(bn(x)))): `width` channels in, `growth` out, the map's size kept."""

    def __init__(self, spec: ConvSpec, width: int, growth: int) -> None:
        padding = spec.dilation * (spec.kernel_size // 2)
        square = nn.Conv2d(
            WIDENING * growth, growth, spec.kernel_size, padding=padding, dilation=spec.dilation, bias=False
        )
        super().__init__(*norm_act(width), point(width, WIDENING * growth), RELU(), square)


def norm_act(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels), RELU()


def _pool(stride: int) -> nn.Module:
    """Means over stride x stride; ceil(side / stride) of them, and the last over the pixels that are left."""
    return nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
