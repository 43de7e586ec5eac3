"""DO-Conv: the kernel is a product of W and, for each input channel, a small matrix D over the taps.

    train   y = bn(K * x),   K[o, i] = W[o, i] (I + D[i])^T        online: composed in every step (the paper)
            y = bn(W * ((I + D) * pad(x)))                          offline: a depthwise k x k, s outputs a channel, 1x1
    fused   y = K' * x + b,   K' = fold(K)

W (O, C/g, s), s = multiplier * k^2; D (C, k^2, s) starts at zero. I (k^2, s) is the identity, side by side `multiplier`
times, a constant: at the start K == W for multiplier 1, and the sum of W's two slices for 2, at twice the variance.
W is initialised as torch does, with fan-in s C/g. A 1x1 has no D: it is a plain convolution.

The option `layout` says which D a filter meets where there are groups. `textbook`: that of the channel it reads. The
authors' PyTorch code reshapes W (O, C/g, s) to (O/g, C, s) without a permutation: `reference`, where filter o meets
the D of channel (o mod g) C/g + i instead. The two are the same for g = 1 and for depthwise, else another function,
as good an over-parameterization. Offline, `reference` takes g passes, one for each D that a channel meets.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Cao et al., DO-Conv, IEEE TIP 2022, arXiv:2006.12030; as in the authors' code.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.composed import ComposedBlock


@BLOCKS.register("doconv")
class DOConv(ComposedBlock):
    paper = "Cao et al., DO-Conv: Depthwise Over-parameterized Convolutional Layer, IEEE TIP 2022, arXiv:2006.12030"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[
            Literal["offline", "online"], "D and W on features, or composed into one kernel in every step (the paper)"
        ] = "online",
        layout: Annotated[
            Literal["textbook", "reference"],
            "which D a grouped filter meets: its input channel's, or that of the authors' reshaped weight",
        ] = "textbook",
        multiplier: Annotated[Literal[1, 2], "outputs of D for each input channel, in k * k"] = 1,
    ) -> None:
        super().__init__(spec, reparam=reparam, layout=layout, multiplier=multiplier)
        self.linear = OverParameterized(spec, layout, multiplier)
        self.bn = nn.BatchNorm2d(spec.c_out)
        self.reparam = reparam


class OverParameterized(nn.Module):
    """W, and D where the kernel has more than one tap."""

    depthwise: nn.Parameter | None

    def __init__(self, spec: ConvSpec, layout: str, multiplier: int) -> None:
        super().__init__()
        self.spec, self.layout = spec, layout
        taps = spec.kernel_size**2
        outputs = multiplier * taps if taps > 1 else 1
        self.weight = nn.Parameter(torch.empty(spec.c_out, spec.c_in // spec.groups, outputs))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.register_parameter("depthwise", None)
        if taps > 1:
            self.depthwise = nn.Parameter(torch.zeros(spec.c_in, taps, outputs))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        s = self.spec
        if self.depthwise is None:
            return F.conv2d(x_NCHW, self.weight.unsqueeze(3), None, s.stride, s.padding, groups=s.groups)
        factors_CSK = self._factors(self.depthwise)
        if self.layout == "textbook" or s.groups == 1:
            return self._spread_and_mix(x_NCHW, factors_CSK)
        met = [factor.repeat(s.groups, 1, 1) for factor in factors_CSK.chunk(s.groups)]
        answers = [self._spread_and_mix(x_NCHW, factor)[:, r :: s.groups] for r, factor in enumerate(met)]
        return torch.stack(answers, 2).flatten(1, 2)

    def kernel(self) -> Kernel:
        s, k = self.spec, self.spec.kernel_size
        product = self.weight if self.depthwise is None else self._product(self._factors(self.depthwise))
        return Kernel(product.reshape(s.c_out, -1, k, k), self.weight.new_zeros(s.c_out))

    def _factors(self, depthwise_CKS: Tensor) -> Tensor:
        """(I + D)^T, (C, s, k^2)."""
        _, taps, outputs = depthwise_CKS.shape
        return depthwise_CKS.transpose(1, 2) + algebra.identity(taps, 1, depthwise_CKS, outputs).flatten(1)

    def _spread_and_mix(self, x_NCHW: Tensor, factors_CSK: Tensor) -> Tensor:
        s, k = self.spec, self.spec.kernel_size
        spread = F.conv2d(x_NCHW, factors_CSK.reshape(-1, 1, k, k), None, s.stride, s.padding, s.dilation, s.c_in)
        return F.conv2d(spread, self.weight.flatten(1)[:, :, None, None], groups=s.groups)

    def _product(self, factors_CSK: Tensor) -> Tensor:
        """K (O, C/g, k^2): for each D, the filters that meet it times its factors."""
        g, (c_out, inputs, outputs) = self.spec.groups, self.weight.shape
        if self.layout == "textbook":
            weight_GOIS = self.weight.reshape(g, -1, inputs, outputs)
        else:
            weight_GOIS = self.weight.reshape(-1, g, inputs, outputs).transpose(0, 1)
        weight_COS = weight_GOIS.transpose(1, 2).reshape(g * inputs, -1, outputs)
        product_GOIK = torch.bmm(weight_COS, factors_CSK).reshape(g, inputs, c_out // g, -1).transpose(1, 2)
        if self.layout == "reference":
            product_GOIK = product_GOIK.transpose(0, 1)
        return product_GOIK.reshape(c_out, inputs, -1)
