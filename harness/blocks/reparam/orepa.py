"""OREPA: six branches without norms, composed into one kernel in every step, one batch norm behind it.

    train   y = bn(W * x),   W = sum_j v_j W_j         online: composed as kernels (composition.py), one convolution
            y = bn(sum_j v_j (W_j * x))                offline: each branch on the feature map
    fused   y = W' * x + b,   W' = fold(W)

    j  branch      W_j                                                                 v_j at first
    0  origin      W0 (O, C/g, k, k)                                                   0.25
    1  average     wa (O, C/g), 1 / k^2 at every tap                                   0.25
    2  prior       wp (O, C/g), frequency P[o] (k, k)                                  0
    3  1x1         wi (O, C/g) at the centre                                           1
    4  1x1-kxk     I + W1 (T, C/g), then W2 (O, T/g, k, k); T = C, or 2C for g > 4     0.5
    5  separable   D (8C, 1, k, k), then P (O, 8C/g)                                   0.5

v is (6, O). The branches themselves, and the taps P, are in parts/linear_branches.py; each can be switched off.
Dilation belongs to the k x k taps. In eval the online kernel is composed once and kept until a parameter changes
(cached.py).

The option `composition` says what an online step keeps for backward beside the kernel itself: `lean` keeps the
parameters, `plain` keeps whole what autograd needs for the scales' gradients, as the authors' code does: a k x k
kernel for each of the branches 1 to 5, and I + W1.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.linear_branches import (
    AVERAGE,
    CHAIN,
    COMPONENTS,
    COMPOSITION,
    NORM,
    ORIGIN,
    PAPER,
    POINT,
    PRIOR,
    REPARAM,
    SCALING,
    SEPARABLE,
    LinearBranches,
)


@BLOCKS.register("orepa")
class OREPA(FusableBlock):
    paper = PAPER
    at_least_one = tuple(COMPONENTS)

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: REPARAM = "online",
        scaling: SCALING = "vector",
        composition: COMPOSITION = "lean",
        norm: NORM = True,
        origin: ORIGIN = True,
        average: AVERAGE = True,
        prior: PRIOR = True,
        point: POINT = True,
        chain: CHAIN = True,
        separable: SEPARABLE = True,
    ) -> None:
        switches = {
            "origin": origin,
            "average": average,
            "prior": prior,
            "point": point,
            "chain": chain,
            "separable": separable,
        }
        super().__init__(spec, reparam=reparam, scaling=scaling, composition=composition, norm=norm, **switches)
        used = [name for name, on in switches.items() if on]
        self.branches = LinearBranches(spec, scaling=scaling, composition=composition, used=used)
        self.bn = nn.BatchNorm2d(spec.c_out) if norm else nn.Identity()
        self.reparam = reparam

    def forward(self, x_NCHW: Tensor) -> Tensor:
        summed = self.branches.online if self.reparam == "online" else self.branches.offline
        y_NCHW: Tensor = self.bn(summed(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold(self.branches.kernel("plain"), self.bn)
