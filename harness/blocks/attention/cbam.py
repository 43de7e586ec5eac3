"""CBAM: channels rescaled by their means and maxima, then pixels by the channels' mean and maximum.

    u = bn(W * x),   c = u * sigmoid(M(mean(u)) + M(max(u))),   M(v) = U relu(V v)
    y = c * sigmoid(bn_1(K * [mean over channels of c, max over channels of c]))

V (h, c_out), U (c_out, h), h = c_out / 16, rounded, at least 1; K 7x7, two planes to one, bn_1 of one channel.
`bias`: M(v) = U relu(V v + d) + e, as in the authors' code; timm has none by default. The authors put the maximum
before the mean: the same but for the order of K's planes.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Woo et al., CBAM, ECCV 2018, arXiv:1807.06521; timm's CbamModule.
"""

from __future__ import annotations

from typing import Annotated

from timm.layers import create_attn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended


@BLOCKS.register("cbam")
class CBAM(Attended):
    paper = "Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018, arXiv:1807.06521, section 3"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        bias: Annotated[bool, "biases of the two linear layers, as the authors' code has them"] = False,
    ) -> None:
        super().__init__(spec, bias=bias)
        self.after = create_attn("cbam", spec.c_out, mlp_bias=bias)
