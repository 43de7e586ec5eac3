"""GC, global context: channels rescaled by a mean over the map that the map itself weights.

    u = bn(W * x),   c = sum_p a_p u_p,   a = softmax over the pixels of (q . u_p + r)
    y = u * sigmoid(U relu(LN(V c + v)) + e)

q (c_out,), V (h, c_out), U (c_out, h), LN over the h values, eps 1e-6. r is in timm's code and does nothing: the same
for every pixel, the softmax takes it out, so its gradient is zero.
h = c_out / 8, rounded, but at least 4, where timm has fewer below 28 channels: LN makes a constant of one value and a
mere sign of two, and the whole attention would be dead.

This is timm's default, which multiplies; its other form (gca), which adds U(...) to u instead, is not offered.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Cao et al., GCNet, ICCV Workshops 2019, arXiv:1904.11492; timm's GlobalContext.
"""

from __future__ import annotations

from timm.layers import create_attn, make_divisible

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended


@BLOCKS.register("gc")
class GC(Attended):
    paper = "Cao et al., GCNet: Non-local Networks Meet Squeeze-Excitation, ICCVW 2019, arXiv:1904.11492"

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        hidden = max(4, make_divisible(spec.c_out / 8, 1))
        self.after = create_attn("gc", spec.c_out, rd_channels=hidden)
