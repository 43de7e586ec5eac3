"""ExpandNets' FC: a linear layer trained as three, r times as wide in between.

    train   y = F_3 (F_2 (F_1 x + b_1) + b_2) + b_3    offline: the three factors on the features (the paper)
            y = W x + b,   W = F_3 F_2 F_1             online: multiplied as matrices, one layer
    fused   y = W x + b

F_1 (r C, C/g), F_2 (r O, r C/g), F_3 (O, r O/g). A linear layer is a 1x1 convolution on a 1x1 map; on a larger one this
is a 1x1 layer expanded. There is no batch norm, but on demand.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Guo et al., ExpandNets, NeurIPS 2020, arXiv:1811.10495.
"""

from __future__ import annotations

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.expanded import BIAS, NORM, RATE, REPARAM, ExpandedBlock


@BLOCKS.register("expand_fc")
class ExpandFC(ExpandedBlock):
    kernel_sizes = (1,)

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: REPARAM = "offline",
        rate: RATE = 4,
        bias: BIAS = True,
        norm: NORM = False,
    ) -> None:
        super().__init__(spec, reparam=reparam, rate=rate, bias=bias, norm=norm)
        widths = spec.c_in, spec.c_in * rate, spec.c_out * rate, spec.c_out
        self._expand(widths, (1, 1, 1), bias=bias, norm=norm)
