"""OREPA in RepVGG's place: three branches on features, the k x k one composed from OREPA's terms.

    train   y = bn_k(W * x) + bn_1(W_1 * x) + bn_0(x),   W = sum_j v_j W_j   (orepa.py, without its 1x1)
    fused   y = W' * x + b,   W' = fold(W) + embed(fold(W_1)) + embed(fold(I))

`reparam` and `composition` say how W is evaluated; its components can be switched off as in orepa.py. The three
branches have batch norms and stay on features. The bn_0 branch exists only when c_in == c_out and stride == 1.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 4.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, IdentityBN, Parallel
from harness.blocks.parts.linear_branches import (
    AVERAGE,
    CHAIN,
    COMPOSITION,
    ORIGIN,
    PRIOR,
    REPARAM,
    SCALING,
    SEPARABLE,
    LinearBranches,
)


class ComposedBN(nn.Module):
    """y = bn(W * x) with OREPA's W."""

    def __init__(self, spec: ConvSpec, reparam: str, scaling: str, composition: str, used: Collection[str]) -> None:
        super().__init__()
        self.branches = LinearBranches(spec, scaling=scaling, composition=composition, used=used, slope=1.0)
        self.bn = nn.BatchNorm2d(spec.c_out)
        self.reparam = reparam

    def forward(self, x_NCHW: Tensor) -> Tensor:
        summed = self.branches.online if self.reparam == "online" else self.branches.offline
        y_NCHW: Tensor = self.bn(summed(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold(self.branches.kernel("plain"), self.bn)


@BLOCKS.register("orepa_vgg")
class OREPAVGG(FusableBlock):
    paper = "Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 4"
    at_least_one = ("origin", "average", "prior", "chain", "separable")

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: REPARAM = "online",
        scaling: SCALING = "vector",
        composition: COMPOSITION = "lean",
        origin: ORIGIN = True,
        average: AVERAGE = True,
        prior: PRIOR = True,
        chain: CHAIN = True,
        separable: SEPARABLE = True,
    ) -> None:
        switches = {"origin": origin, "average": average, "prior": prior, "chain": chain, "separable": separable}
        super().__init__(spec, reparam=reparam, scaling=scaling, composition=composition, **switches)
        used = [name for name, on in switches.items() if on]
        composed = ComposedBN(spec, reparam, scaling, composition, used)
        branches: dict[str, nn.Module] = {"k x k": composed, "1x1": ConvBN(spec.resized(1))}
        if spec.keeps_shape:
            branches["identity"] = IdentityBN(spec)
        self.branches = Parallel(spec.kernel_size, branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branches(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branches.kernel()
