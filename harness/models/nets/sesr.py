"""SESR: super-resolution of the luma channel by a short chain of convolutions.

    f_0 = head(x - 0.5)                                  5x5, 1 -> f, no activation
    f_i = prelu(conv_i(f_(i-1)))      i = 1 ... m        3x3, f -> f
    y   = clip(shuffle(tail(f_m + f_0) + x), 0, 1)       5x5, f -> s^2; x is added to every channel

The layers are plain convolutions with a bias: the network as it is deployed. The paper trains it with block `clb` in
every layer and, in the m layers of the body alone, an identity beside the block, which folds into the 3x3:

    block: clb,  where: sesr-paper

Shapes: x (N, 1, H, W) in [0, 1] -> y (N, 1, s H, s W). No batch norm, no classes.
Paper: Bhardwaj et al., Collapsible Linear Blocks for Super-Efficient Super Resolution, MLSys 2022, arXiv:2103.09404.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import product

from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.nets.own import OwnNet, register
from harness.records import Json

NETS = {"m3": (3, 16), "m5": (5, 16), "m7": (7, 16), "m11": (11, 16), "xl": (11, 32)}
"""m and f of the published networks."""

SCALES = (2, 4)


class SESRSlot(nn.Sequential):
    """One layer of the body: 3x3 and a PReLU with a slope per channel, zero at first as in Keras."""

    def __init__(self, width: int) -> None:
        conv = nn.Conv2d(width, width, 3, padding=1)
        super().__init__(OrderedDict(conv=conv, act=nn.PReLU(width, init=0.0)))


class SESR(OwnNet):
    """The network `net` of `NETS` for one of `SCALES`."""

    stem_names = ("head",)
    in_chans = 1
    has_classes = False

    def __init__(self, net: str, scale: int) -> None:
        super().__init__()
        depth, width = NETS[net]
        self.scale = scale
        self.head = nn.Conv2d(1, width, 5, padding=2)
        self.body = nn.Sequential(*(SESRSlot(width) for _ in range(depth)))
        self.tail = nn.Conv2d(width, scale**2, 5, padding=2)
        # the tail of x4 nets keeps its width too, where f is 16, and has no identity
        self.slot_options: Mapping[str, Mapping[str, Json]] = {
            f"body.{i}.conv": {"residual": True} for i in range(depth)
        }

    def forward(self, x_NCHW: Tensor) -> Tensor:
        first = self.head(x_NCHW - 0.5)
        y_NCHW = self.tail(self.through(self.body, first) + first) + x_NCHW
        while y_NCHW.shape[1] > 1:  # for x4 by two, twice
            y_NCHW = depth_to_space(y_NCHW)
        image_NCHW: Tensor = y_NCHW.clamp(0, 1)
        return image_NCHW


def depth_to_space(x_NCHW: Tensor) -> Tensor:
    """TensorFlow's order: (N, 4 C, H, W) -> (N, C, 2 H, 2 W), channel (2 dy + dx) C + c -> channel c at (dy, dx).

    torch's pixel_shuffle takes them from channel 4 c + 2 dy + dx.
    """
    n, channels, height, width = x_NCHW.shape
    grouped = x_NCHW.reshape(n, 4, channels // 4, height, width).transpose(1, 2)
    return F.pixel_shuffle(grouped.reshape(n, channels, height, width), 2)


for _net, _scale in product(NETS, SCALES):
    register(f"sesr_{_net}_x{_scale}", SESR, _net, _scale)
