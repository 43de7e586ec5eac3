"""Shuffled grouped convolution: behind it, channels change places so that the next one's groups see all of them.

    y = shuffle(bn(W * x)),   G = count g groups        g the groups of the convolution that it stands for
    channel j G + i of y is channel i c_out / G + j of bn(W * x),   i < G, j < c_out / G

The shuffle has no parameters: it writes the channels as a (G, c_out / G) matrix and transposes it. Its inverse is the
shuffle with c_out / G groups. It stays behind the fused convolution.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)); W (c_out, c_in / G, k, k).
Paper: Zhang et al., ShuffleNet, CVPR 2018, arXiv:1707.01083, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.structural.grouped import Count, Grouped


@BLOCKS.register("shuffle")
class Shuffle(Grouped):
    paper = (
        "Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018, "
        "arXiv:1707.01083, section 3.1"
    )

    def __init__(self, spec: ConvSpec, *, count: Count = 8) -> None:
        super().__init__(spec, count=count)
        self.after = ChannelShuffle(self.deployed.groups)


class ChannelShuffle(nn.Module):
    """As nn.ChannelShuffle, which on fake tensors is another operator than on real ones: memory would be told wrongly.

    Maps that are channels_last stay so.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x_NCHW: Tensor) -> Tensor:
        batch, channels, rows, columns = x_NCHW.shape
        matrix = self.groups, channels // self.groups
        if x_NCHW.is_contiguous(memory_format=torch.channels_last) and not x_NCHW.is_contiguous():
            x_NHWC = x_NCHW.permute(0, 2, 3, 1).reshape(batch, rows, columns, *matrix)
            return x_NHWC.transpose(3, 4).reshape(batch, rows, columns, channels).permute(0, 3, 1, 2)
        return x_NCHW.reshape(batch, *matrix, rows, columns).transpose(1, 2).reshape(x_NCHW.shape)
