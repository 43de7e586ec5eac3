"""DCD, dynamic convolution decomposition: a static kernel scaled by sample, and a small dynamic path beside it.

    y = bn(P (bn_2(Phi z) + z) + s ⊙ (W_0 * x)),   z = bn_1(Q x)
    v = pool(x) V,   v' = v ⊙ hs(v U),   Phi = v' A (d, d),   s = hs(v' B) (O),   hs(t) = relu6(t + 3) / 3, in 0..2

Q (d, I) is a 1x1 with the convolution's stride, P (O, d) a 1x1, V (I u, q), U (q, q), A (q, d d), B (q, O), no biases.
In effect W(x) = diag(s) W_0 + P (Phi + I) Q at the centre tap, but no kernel is put together. `rule` says how wide:

    basic       pool to 2x2 (u = 4),   d = floor(sqrt(4 I))      ResNet18's 3x3
    bottleneck  pool to 1x1 (u = 1),   d = floor(sqrt(I))        ResNet50's 1x1 and 3x3
    mobile      I < O: pool to 2x2 and r = 8, else 1x1 and r = 2;   d = min(u I // r, O // r), r doubled while
                d d > 2 u I, and d >= 4 in the end               MobileNetV2's expansion and projection

    q = max(max(u I, d d) // squeeze, 4)

Parameters: k k I O + I d + d O + 4 d + u I q + q q + q d d + q O, and bn. The networks keep stem and shortcuts static
(MobileNetV2: depthwise layers, last 1x1 and blocks without expansion too) and have `DCDLinear` as classifier.

A fresh block in eval: with statistics that were never collected the path grows with the square of x (z and Phi both
with x), so a network of L such layers with degree 2^L, and an untrained ResNet18 overflows to NaN. A block by itself
does not. Before an untrained network is evaluated, run one training batch with every norm's `momentum` at 1 or None;
at 0.1 three batches were too few. In training the norms hold the path in bounds.

Beyond the authors' code: any stride, padding, dilation and map size; q >= 4 in the bottleneck rule too, where ResNet50
never goes below. Initialisation is theirs: convolutions normal with variance 2 / (k k O); linear layers as torch makes
them, or normal with deviation 0.01 in the mobile rule. Batch norms of maps: nothing to choose for a batch of one.
Shapes: x (N, I, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Li et al., Revisiting Dynamic Convolution via Matrix Decomposition, ICLR 2021, arXiv:2103.08756; widths as in
the authors' code.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.branches import Point
from harness.blocks.parts.per_sample import KernelWork, PerSampleBlock
from harness.errors import Unsupported

Rule = Literal["basic", "bottleneck", "mobile"]


class DCDLinear(nn.Module):
    """In place of a classifier's nn.Linear: y = P (bn_2(Phi z) + z) + s ⊙ (W_0 x + b),   z = bn_1(Q x).

    The vector itself is what the attention squeezes, d = q = 32; x (N, I) -> (N, O). Linear layers start as torch's
    do; those of MobileNetV2 start normal with deviation 0.01, which is the network's matter.
    Parameters: I O + O + 64 I + 64 O + 128 + 1,024 + 32,768.
    """

    width = 32

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.q = nn.Linear(in_features, self.width, bias=False)
        self.p = nn.Linear(self.width, out_features, bias=False)
        self.bn1 = nn.BatchNorm1d(self.width)
        self.bn2 = nn.BatchNorm1d(self.width)
        self.attention = Attention(in_features, self.width, self.width, out_features)

    def forward(self, x_NC: Tensor) -> Tensor:
        if self.training and x_NC.shape[0] == 1:
            problem = "a DCD classifier's batch norms cannot be trained on a batch of 1: a single value has no variance"
            raise Unsupported(problem, remedy="use a batch of 2 or more, or an ordinary linear layer as classifier")
        phi_NDD, scale_NO = self.attention(x_NC)
        z_ND = self.bn1(self.q(x_NC))
        path_ND = _mixed(phi_NDD, z_ND[:, :, None], self.bn2).squeeze(2)
        return torch.addcmul(self.p(path_ND), self.linear(x_NC), scale_NO)


@BLOCKS.register("dcd")
class DCD(PerSampleBlock):
    paper = "Li et al., Revisiting Dynamic Convolution via Matrix Decomposition, ICLR 2021, arXiv:2103.08756"
    groups = "dense"
    linear_form = DCDLinear

    def __init__(
        self,
        spec: ConvSpec,
        *,
        rule: Annotated[Rule, "whose widths: ResNet18's, ResNet50's or MobileNetV2's"] = "basic",
        squeeze: Annotated[
            Literal[16, 8],
            "how far the attention narrows; the authors' MobileNetV2 defaults to 8, its width 1.0 has 16",
        ] = 16,
    ) -> None:
        super().__init__(spec, rule=rule, squeeze=squeeze)
        self.pool, width = _widths(spec.c_in, spec.c_out, rule)
        vector = self.pool**2 * spec.c_in
        narrow = max(max(vector, width**2) // squeeze, 4)
        ends = spec.c_in, spec.c_out, spec.kernel_size, spec.stride, spec.padding, spec.dilation
        self.conv = nn.Conv2d(*ends, bias=False)
        self.q = Point(replace(spec, c_out=width))
        self.p = nn.Conv2d(width, spec.c_out, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm1d(width)
        self.attention = Attention(vector, narrow, width, spec.c_out)
        for conv in (self.conv, self.q.conv, self.p):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        if rule == "mobile":
            for linear in self.attention.linears():
                nn.init.normal_(linear.weight, std=0.01)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        phi_NDD, scale_NO = self.attention(F.adaptive_avg_pool2d(x_NCHW, self.pool).flatten(1))
        z_NDHW = self.bn1(self.q(x_NCHW))
        path_NDL = _mixed(phi_NDD, z_NDHW.flatten(2), self.bn2)
        return torch.addcmul(self.p(path_NDL.reshape(z_NDHW.shape)), self.conv(x_NCHW), scale_NO[:, :, None, None])


class Attention(nn.Module):
    """A vector (N, V) -> Phi (N, d, d) and s (N, O): `narrow` is q, `width` d."""

    def __init__(self, vector: int, narrow: int, width: int, c_out: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(vector, narrow, bias=False)
        self.gate = nn.Linear(narrow, narrow, bias=False)
        self.phi = Phi(narrow, width)
        self.scale = nn.Linear(narrow, c_out, bias=False)

    def forward(self, vector_NV: Tensor) -> tuple[Tensor, Tensor]:
        squeezed_NQ = self.squeeze(vector_NV)
        squeezed_NQ = squeezed_NQ * _hard_sigmoid(self.gate(squeezed_NQ))
        return self.phi(squeezed_NQ), _hard_sigmoid(self.scale(squeezed_NQ))

    def linears(self) -> tuple[nn.Linear, ...]:
        return self.squeeze, self.gate, self.phi.linear, self.scale


class Phi(KernelWork):
    """The kernel of the path's inner 1x1, for each sample its own: (N, q) -> (N, d, d)."""

    def __init__(self, narrow: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(narrow, width**2, bias=False)

    def forward(self, squeezed_NQ: Tensor) -> Tensor:
        phi_NDD: Tensor = self.linear(squeezed_NQ).reshape(-1, self.width, self.width)
        return phi_NDD


def _mixed(phi_NDD: Tensor, z_NDL: Tensor, norm: nn.Module) -> Tensor:
    """bn(Phi z) + z: with the identity for stability, as the authors say."""
    path_NDL: Tensor = norm(torch.bmm(phi_NDD, z_NDL)) + z_NDL
    return path_NDL


def _hard_sigmoid(x: Tensor) -> Tensor:
    """From 0 to 2, and 1 at 0: divided by 3, not by 6."""
    return F.relu6(x + 3) / 3


def _widths(c_in: int, c_out: int, rule: Rule) -> tuple[int, int]:
    """To how many pixels a side the map is pooled, and d."""
    if rule == "basic":
        return 2, isqrt(4 * c_in)
    if rule == "bottleneck":
        return 1, isqrt(c_in)
    side, reduction = (2, 8) if c_in < c_out else (1, 2)
    vector = side**2 * c_in
    while (width := min(vector, c_out) // reduction) ** 2 > 2 * vector:
        reduction *= 2
    return side, max(width, 4)
