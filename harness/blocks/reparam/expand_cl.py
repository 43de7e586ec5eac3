"""ExpandNets' CL: a k x k convolution trained as 1x1, k x k, 1x1, r times as wide in between.

    train   y = bn(F_3 * (F_2 * (F_1 * pad(x))))    offline: the three factors on the feature map (the paper)
            y = bn(W * x),   W = F_3 F_2 F_1        online: multiplied as kernels, one convolution
    fused   y = W' * x + b,   W' = fold(W)

F_1 (r C, C/g, 1, 1), F_2 (r O, r C/g, k, k), F_3 (O, r O/g, 1, 1), each with a bias where asked for: the authors'
CIFAR networks have them, their ImageNet networks do not. Their CIFAR networks leave the first layer's input as
narrow as it is: F_1 (C, C/g, 1, 1). Depthwise is the case g = C = O. `pad` puts all the zeros in front of F_1; F_2
has the stride.

The paper's variant with an activation between the factors, an ablation, is no convolution and cannot be fused: there
is no such option.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Guo et al., ExpandNets, NeurIPS 2020, arXiv:1811.10495.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.blocks.base import BLOCKS
from harness.blocks.declared import KERNEL_SIZES
from harness.blocks.parts.expanded import ExpandedConv


@BLOCKS.register("expand_cl")
class ExpandCL(ExpandedConv):
    kernel_sizes = KERNEL_SIZES[1:]

    def row(self, first: int, later: int) -> tuple[Sequence[int], Sequence[int]]:
        return (first, later), (1, self.spec.kernel_size, 1)
