"""RepVGG: three branches while training, one convolution once fused.

    train   y = bn_k(W_k * x) + bn_1(W_1 * x) + bn_0(x)
    fused   y = W * x + b,   W = fold(W_k) + embed(fold(W_1)) + embed(fold(I))

The bn_0 branch exists only when c_in == c_out and stride == 1. Dilation belongs to the k x k branch alone.

`se` puts squeeze-and-excitation behind the sum, in front of the activation that the block does not have (RepVGG-D2se):
y * sigmoid(U relu(V mean(y) + v) + u), the mean over the whole map, V (O // 16, O), U (O, O // 16). Not linear: it
stays behind the fused convolution.

`custom_l2` is the weight decay that the authors can do without ordinary decay of the two convolutions: on the
centre that the fused kernel will have, where the branches meet, and on W_k around it.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Ding et al., RepVGG, CVPR 2021, arXiv:2101.03697, section 3; `custom_l2` and `se` as in the authors' code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, IdentityBN, Parallel
from harness.blocks.parts.squeeze_excitation import SE, squeeze_excitation


@BLOCKS.register("repvgg")
class RepVGG(FusableBlock):
    paper = "Ding et al., RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, arXiv:2101.03697, section 3"
    sister = "orepa_vgg"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
        se: SE = False,
    ) -> None:
        super().__init__(spec, reparam=reparam, se=se)
        branches: dict[str, nn.Module] = {"k x k": ConvBN(spec), "1x1": ConvBN(spec.resized(1))}
        if spec.keeps_shape:
            branches["identity"] = IdentityBN(spec)
        self.branches = Parallel(spec.kernel_size, branches)
        if se:
            self.after = squeeze_excitation(spec.c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.after(self.branches(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branches.kernel()

    def custom_l2(self) -> Tensor:
        """What takes the place of sum(W_k^2) + sum(W_1^2) in the weight decay: a scalar, without the factor decay / 2.

            sum(W_k^2) - sum(C^2) + sum((C t_k + W_1 t_1)^2 / (t_k^2 + t_1^2)),   C the centre tap of W_k

        t = gamma / sqrt(variance + eps) by running statistics, for each output channel, a constant here.
        """
        square, point = self._convolutions()
        t_square, t_point = (algebra.norm_scale(each.bn).detach()[:, None, None, None] for each in (square, point))
        middle = slice(self.spec.kernel_size // 2, self.spec.kernel_size // 2 + 1)
        centre = square.conv.weight[:, :, middle, middle]
        fused = centre * t_square + point.conv.weight * t_point
        around = square.conv.weight.square().sum() - centre.square().sum()
        return around + (fused.square() / (t_square**2 + t_point**2)).sum()

    def custom_l2_weights(self) -> tuple[Tensor, Tensor]:
        """W_k and W_1, which get no ordinary weight decay where `custom_l2` is used."""
        square, point = self._convolutions()
        return square.conv.weight, point.conv.weight

    def _convolutions(self) -> tuple[ConvBN, ConvBN]:
        square, point = self.branches[0], self.branches[1]
        assert isinstance(square, ConvBN)
        assert isinstance(point, ConvBN)
        return square, point
