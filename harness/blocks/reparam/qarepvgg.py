"""QARepVGG: RepVGG whose branches leave the range of weights and activations alone, for INT8 after fusing.

    train   y = bn'( bn(W_k * x) + W_1 * x + x )
    fused   y = W * x + b,   fold'( fold(W_k) + embed(W_1) + embed(I) )

Only the k x k branch has a batch norm of its own; the x branch exists only when c_in == c_out and stride == 1.
Dilation belongs to the k x k branch alone. The 1x1 has no bias, as in the authors' code.

Squeeze-and-excitation is left out: the authors have it in front of bn', which then cannot be folded into the
convolution, although their own conversion does.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Chu et al., Make RepVGG Greater Again, AAAI 2024, arXiv:2212.01593.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, Parallel, Point, Skip


@BLOCKS.register("qarepvgg")
class QARepVGG(FusableBlock):
    paper = "Chu et al., Make RepVGG Greater Again: A Quantization-aware Approach, AAAI 2024, arXiv:2212.01593"
    sister = "orepa_vgg"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: one has a batch norm of its own"] = "offline",
    ) -> None:
        super().__init__(spec, reparam=reparam)
        branches: dict[str, nn.Module] = {"k x k": ConvBN(spec), "1x1": Point(spec.resized(1))}
        if spec.keeps_shape:
            branches["identity"] = Skip(spec)
        self.branches = Parallel(spec.kernel_size, branches)
        self.bn = nn.BatchNorm2d(spec.c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self.branches(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold_biased(self.branches.kernel(), self.bn)
