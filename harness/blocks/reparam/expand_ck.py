"""ExpandNets' CK: a k x k convolution trained as 3x3 in a row, r times as wide in between.

    train   y = bn(F_n * (... (F_1 * pad(x))))      offline: n = (k - 1) / 2 factors on the feature map (the paper)
            y = bn(W * x),   W = stack of the F_i   online: composed as kernels, one convolution
    fused   y = W' * x + b,   W' = fold(W)

    k = 5   C -> r C -> O
    k = 7   C -> r C -> r O -> O

Larger kernels, not in the paper, go on with r O. Groups, biases and the first layer's input as in expand_cl.py. `pad`
puts all the zeros in front of F_1: with some of them in front of F_2 the rim would be another function, biases or
not. The last factor has the stride. A 3x3 has nothing to expand.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Guo et al., ExpandNets, NeurIPS 2020, arXiv:1811.10495.
"""

from __future__ import annotations

from harness.blocks.base import BLOCKS, KERNEL_SIZES, ConvSpec
from harness.blocks.parts.composed import Chain, ComposedBlock, norm_behind
from harness.blocks.reparam.expand_cl import BIAS, EXPAND_INPUT, NORM, PAPER, RATE, REPARAM


@BLOCKS.register("expand_ck")
class ExpandCK(ComposedBlock):
    paper = PAPER
    kernel_sizes = KERNEL_SIZES[2:]

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: REPARAM = "offline",
        rate: RATE = 4,
        expand_input: EXPAND_INPUT = True,
        bias: BIAS = False,
        norm: NORM = True,
    ) -> None:
        super().__init__(spec, reparam=reparam, rate=rate, expand_input=expand_input, bias=bias, norm=norm)
        factors = spec.kernel_size // 2
        first = spec.c_in * (rate if expand_input else 1)
        widths = spec.c_in, first, *[spec.c_out * rate] * (factors - 2), spec.c_out
        self.linear = Chain(spec, widths, (3,) * factors, bias)
        self.bn = norm_behind(norm, spec.c_out)
        self.reparam = reparam
