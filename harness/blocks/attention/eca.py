"""ECA, efficient channel attention: a channel is rescaled by its own average and its neighbours'.

    u = bn(W * x),   y = u * sigmoid(w * mean(u)),   w of t taps along the channels, zeros beyond the first and last

t = int(|log2 c_out + 1| / 2), the next odd number where that is even, at least 3: 3 taps for 64 channels, 5 for 256.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Wang et al., ECA-Net, CVPR 2020, arXiv:1910.03151, section 3; timm's EcaModule.
"""

from __future__ import annotations

from timm.layers import create_attn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended


@BLOCKS.register("eca")
class ECA(Attended):
    paper = "Wang et al., ECA-Net: Efficient Channel Attention, CVPR 2020, arXiv:1910.03151, section 3"

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        self.after = create_attn("eca", spec.c_out)
