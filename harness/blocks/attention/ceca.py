"""CECA, circular efficient channel attention: ECA whose last channel is the first one's neighbour.

    u = bn(W * x),   y = u * sigmoid(w * mean(u)),   w of t taps along the channels, which go round in a circle

t as in ECA. Channels have no first and last, so none should have fewer neighbours than the others.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Source: timm's CecaModule, a variant of Wang et al., ECA-Net, CVPR 2020, arXiv:1910.03151, without a paper of its own.
"""

from __future__ import annotations

from timm.layers import create_attn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended


@BLOCKS.register("ceca")
class CECA(Attended):
    paper = "timm's variant, with circular padding, of Wang et al., ECA-Net, CVPR 2020, arXiv:1910.03151"

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        self.after = create_attn("ceca", spec.c_out)
