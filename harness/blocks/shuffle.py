"""Shuffled grouped convolution: behind it, channels change places so that the next one's groups see all of them.

    y = shuffle(bn(W * x)),   G = count g groups        g the groups of the convolution that it stands for
    channel j G + i of y is channel i c_out / G + j of bn(W * x),   i < G, j < c_out / G

The shuffle has no parameters: it writes the channels as a (G, c_out / G) matrix and transposes it. Its inverse is the
shuffle with c_out / G groups. It stays behind the fused convolution.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)); W (c_out, c_in / G, k, k).
Paper: Zhang et al., ShuffleNet, CVPR 2018, arXiv:1707.01083, section 3.1.
"""

from __future__ import annotations

from torch import nn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.grouped import Count, Grouped


@BLOCKS.register("shuffle")
class Shuffle(Grouped):
    paper = (
        "Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018, "
        "arXiv:1707.01083, section 3.1"
    )

    def __init__(self, spec: ConvSpec, *, count: Count = 8) -> None:
        super().__init__(spec, count=count)
        self.after = nn.ChannelShuffle(self.deployed.groups)
