"""SESR's collapsible linear block: a k x k convolution trained as k x k to p channels, then 1x1.

    train   y = W * x + b,   W = F_2 F_1 [+ I], b = F_2 b_1 + b_2    online: collapsed in every step (the paper)
            y = F_2 * (F_1 * x + b_1) + b_2 [+ x]                    offline: the paper's expanded form
    fused   y = W * x + b

F_1 (p, C, k, k), F_2 (O, p, 1, 1). There is no batch norm, but on demand: behind the sum. Factors start Glorot-uniform,
bound sqrt(6 / (fan_in + fan_out)) with both fans times k k, biases at 0, as in Keras.

The option `composition` says how the collapsed kernel is made: `product` multiplies the factors as matrices, with
O p C k^2 multiply-accumulates; `delta`, the authors' code, sends an image for each input channel, (2 k - 1)^2 pixels
with a one in the middle, through both factors, with C k^2 (k^2 C p + p O). Both compute the same kernel.

In the authors' code two things depend on the form; here both forms are one function:
* The bias. Their collapsed class sends it through the delta images too, so that F_2 b_1 + b_2 ends up at every tap of
  the kernel, and the convolution has none. Here it is the convolution's bias, as in their expanded class.
* The residual. It is there where c_in == c_out (and the stride is 1), and elsewhere `residual` changes nothing. Their
  collapsed class adds it to *every* such block, so to the tail of an x4 network of 16 channels too, their expanded
  class to the body alone: the two are different networks. Here a network says for each layer whether it has one.

Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Bhardwaj et al., Collapsible Linear Blocks for Super-Efficient Super Resolution, MLSys 2022, arXiv:2103.09404.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.branches import Parallel, Skip
from harness.blocks.parts.composed import Chain, ComposedBlock, norm_behind


@BLOCKS.register("clb")
class CLB(ComposedBlock):
    paper = (
        "Bhardwaj et al., Collapsible Linear Blocks for Super-Efficient Super Resolution, MLSys 2022, arXiv:2103.09404"
    )
    groups = "dense"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[
            Literal["offline", "online"],
            "the factors on features, or collapsed into one kernel in every step (the paper)",
        ] = "online",
        width: Annotated[Literal[16, 32, 64, 128, 256], "channels between the factors"] = 256,
        residual: Annotated[bool, "adds the input, where c_in == c_out and the stride is 1"] = False,
        bias: Annotated[bool, "a bias in each factor"] = True,
        norm: Annotated[bool, "a batch norm behind the sum"] = False,
        composition: Annotated[
            Literal["product", "delta"],
            "how the factors are collapsed: as matrices, or by what they make of an image with a one in the middle "
            "(the paper's code)",
        ] = "product",
    ) -> None:
        super().__init__(
            spec, reparam=reparam, width=width, residual=residual, bias=bias, norm=norm, composition=composition
        )
        factors = {"product": Chain, "delta": Probed}[composition](
            spec, (spec.c_in, width, spec.c_out), (spec.kernel_size, 1), bias
        )
        for name, parameter in factors.named_parameters():
            (nn.init.zeros_ if name.endswith("bias") else nn.init.xavier_uniform_)(parameter)
        branches: dict[str, nn.Module] = {"factors": factors}
        if residual and spec.keeps_shape:
            branches["identity"] = Skip(spec)
        self.linear = Parallel(spec.kernel_size, branches)
        self.bn = norm_behind(norm, spec.c_out)
        self.reparam = reparam


class Probed(Chain):
    """A chain whose kernel is read off what it makes of one image per input channel."""

    def kernel(self) -> Kernel:
        first, second = self._kernels()
        k = first[0].shape[-1]
        images = algebra.embed(algebra.identity(first[0].shape[1], 1, first[0]), 2 * k - 1)
        answers_IOHW = F.conv2d(F.conv2d(images, first[0]), second[0])
        weight = answers_IOHW.flip(2, 3).transpose(0, 1).contiguous()
        if first[1] is None or second[1] is None:
            return Kernel(weight, weight.new_zeros(weight.shape[0]))
        return Kernel(weight, algebra.carry(first[1], second[0], 1) + second[1])
