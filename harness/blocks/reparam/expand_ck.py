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

from collections.abc import Sequence

from harness.blocks.base import BLOCKS
from harness.blocks.declared import KERNEL_SIZES
from harness.blocks.parts.expanded import ExpandedConv


@BLOCKS.register("expand_ck")
class ExpandCK(ExpandedConv):
    kernel_sizes = KERNEL_SIZES[2:]

    def row(self, first: int, later: int) -> tuple[Sequence[int], Sequence[int]]:
        factors = self.spec.kernel_size // 2
        return (first, *[later] * (factors - 2)), (3,) * factors
