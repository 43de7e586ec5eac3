"""DiracConv: an identity inside the kernel takes the place of a shortcut around it.

    train   y = bn(W' * x),   W'[o] = alpha[o] I[o] + beta[o] W[o] / |W[o]|      online: one convolution (the paper)
            y = bn(alpha x + beta ((W / |W|) * x))                                offline: both on the feature map
    fused   y = W'' * x + b,   W'' = fold(W')

|W[o]| is the filter's norm over its inputs and taps, at least 1e-12. I copies channel o to output o as far as both
exist: with c_in < c_out the further outputs have no identity, with c_in > c_out the further inputs go into none.
Groups (not in the paper) do so each for itself. alpha starts at 1, beta at 0.1, W Kaiming-normal as in the authors'
networks (their module leaves it to torch; only its direction counts), the norm's gamma uniform between 0 and 1.
Stride 1: a strided map has nothing to be the identity of; the authors' networks pool.
Shapes: x (N, C, H, W) -> y (N, O, H, W).
Paper: Zagoruyko and Komodakis, DiracNets, arXiv:1706.00388, as in the authors' version 2.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.branches import widen
from harness.blocks.parts.composed import ComposedBlock

ALPHA, BETA = 1.0, 0.1
"""At the start a filter is the identity and something of norm 0.1 beside it."""

FLOOR = 1e-12
"""The smallest norm that a filter is divided by, as the authors have it: a filter of zeros stays one."""


@BLOCKS.register("dirac")
class Dirac(ComposedBlock):
    paper = (
        "Zagoruyko and Komodakis, DiracNets: Training Very Deep Neural Networks Without Skip-Connections, "
        "arXiv:1706.00388"
    )
    strides = (1,)

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[
            Literal["offline", "online"],
            "identity and filters on features, or composed into one kernel in every step (the paper)",
        ] = "online",
    ) -> None:
        super().__init__(spec, reparam=reparam)
        self.linear = IdentityAndFilters(spec)
        self.bn = nn.BatchNorm2d(spec.c_out)
        nn.init.uniform_(self.bn.weight)
        self.reparam = reparam


class IdentityAndFilters(nn.Module):
    """alpha x + beta (W / |W|) * x."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.spec = spec
        k = spec.kernel_size
        self.weight = nn.Parameter(torch.empty(spec.c_out, spec.c_in // spec.groups, k, k))
        nn.init.kaiming_normal_(self.weight)
        self.alpha = nn.Parameter(torch.full((spec.c_out,), ALPHA))
        self.beta = nn.Parameter(torch.full((spec.c_out,), BETA))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        s = self.spec
        filters = self.weight * self._lengths()
        filtered = F.conv2d(x_NCHW, filters, None, 1, s.padding, s.dilation, s.groups)
        return torch.addcmul(filtered, self.alpha[:, None, None], self._copied(x_NCHW))

    def kernel(self) -> Kernel:
        s = self.spec
        own = self.alpha[:, None, None, None] * algebra.dirac(s.c_in, s.c_out, s.groups, self.weight)
        weight = torch.addcmul(algebra.embed(own, s.kernel_size), self.weight, self._lengths())
        return Kernel(weight, weight.new_zeros(s.c_out))

    def _lengths(self) -> Tensor:
        """beta / |W|, (O, 1, 1, 1)."""
        norm_O: Tensor = torch.linalg.vector_norm(self.weight.flatten(1), dim=1)  # over one axis: three are slower
        return (self.beta / norm_O.clamp_min(FLOOR))[:, None, None, None]

    def _copied(self, x_NCHW: Tensor) -> Tensor:
        """I * x: the first channels of each group, zeros behind them where it has more outputs."""
        s = self.spec
        x_NCHW = widen(x_NCHW, s.margin, s.margin)
        if s.c_in == s.c_out:
            return x_NCHW
        more = (s.c_out - s.c_in) // s.groups
        by_group = x_NCHW.reshape(x_NCHW.shape[0], s.groups, -1, *x_NCHW.shape[2:])
        return F.pad(by_group, (0, 0, 0, 0, 0, more)).flatten(1, 2)
