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

from typing import Annotated, Literal

from harness.blocks.base import BLOCKS, KERNEL_SIZES, ConvSpec
from harness.blocks.parts.composed import Chain, ComposedBlock, norm_behind

PAPER = (
    "Guo et al., ExpandNets: Linear Over-parameterization to Train Compact Convolutional Networks, NeurIPS 2020, "
    "arXiv:1811.10495"
)
REPARAM = Annotated[
    Literal["offline", "online"], "the factors on features (the paper), or multiplied into one kernel in every step"
]
RATE = Annotated[Literal[2, 4, 8], "how many times as wide the map is between the factors"]
EXPAND_INPUT = Annotated[
    bool, "whether the first factor widens the input; the first layer of the authors' CIFAR networks does not"
]
BIAS = Annotated[bool, "a bias in each factor"]
NORM = Annotated[bool, "a batch norm behind the last factor"]


@BLOCKS.register("expand_cl")
class ExpandCL(ComposedBlock):
    paper = PAPER
    kernel_sizes = KERNEL_SIZES[1:]

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
        widths = spec.c_in, spec.c_in * (rate if expand_input else 1), spec.c_out * rate, spec.c_out
        self.linear = Chain(spec, widths, (1, spec.kernel_size, 1), bias)
        self.bn = norm_behind(norm, spec.c_out)
        self.reparam = reparam
