"""ESE, effective squeeze-and-excitation: one linear layer as wide as the map, so that nothing is squeezed out.

    u = bn(W * x),   y = u * hard_sigmoid(U mean(u) + e),   hard_sigmoid(z) = clip(z / 6 + 1 / 2, 0, 1)

U (c_out, c_out).
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Lee and Park, CenterMask, CVPR 2020, arXiv:1911.06667; timm's EffectiveSEModule.
"""

from __future__ import annotations

from timm.layers import create_attn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended


@BLOCKS.register("ese")
class ESE(Attended):
    paper = "Lee and Park, CenterMask: Real-Time Anchor-Free Instance Segmentation, CVPR 2020, arXiv:1911.06667"

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        self.after = create_attn("ese", spec.c_out)
