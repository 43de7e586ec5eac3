"""SE, squeeze-and-excitation: channels rescaled by what the whole map holds on average.

    u = bn(W * x),   y = u * sigmoid(U relu(V mean(u) + v) + e)

V (h, c_out), U (c_out, h). The original has h = c_out / 16 and counts no v and e; timm, the default here, rounds h to
a multiple of 8, at least 8, and has both: `divisor` 1 and `bias` False are the original's.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, arXiv:1709.01507, section 3; timm's SEModule.
"""

from __future__ import annotations

from typing import Annotated, Literal

from timm.layers import create_attn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended


@BLOCKS.register("se")
class SE(Attended):
    paper = "Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, arXiv:1709.01507, section 3"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        divisor: Annotated[
            Literal[8, 1], "the hidden width, a 16th of the channels, is rounded to a multiple of it"
        ] = 8,
        bias: Annotated[bool, "biases of the two linear layers"] = True,
    ) -> None:
        super().__init__(spec, divisor=divisor, bias=bias)
        self.after = create_attn("se", spec.c_out, rd_divisor=divisor, bias=bias)
