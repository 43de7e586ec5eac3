"""Coordinate attention: a pixel rescaled by what its row and its column hold on average.

    u = bn(W * x),   r_i = mean of row i of u,   c_j = mean of column j of u               (c_out,) each
    y_ij = u_ij * sigmoid(R f(r_i)) * sigmoid(C f(c_j)),   f(v) = hard_swish(bn_h(V v))

V (h, c_out), R and C (c_out, h); bn_h takes its statistics over all rows and columns together. No biases, and
h = c_out / 24, rounded to a multiple of 8, at least 8: both as timm has them; the authors' code was not read.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Hou et al., Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, arXiv:2103.02907; timm's
CoordAttn.
"""

from __future__ import annotations

from timm.layers import create_attn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.attended import Attended


@BLOCKS.register("coord")
class Coord(Attended):
    paper = "Hou et al., Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, arXiv:2103.02907"

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        self.after = create_attn("coord", spec.c_out)
