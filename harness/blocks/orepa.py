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

    P[o, h, w] = cos(pi (h + 1/2) (o + 1) / k)          for o < O / 2
                 cos(pi (w + 1/2) (o + 1 - O / 2) / k)  for the others

v is (6, O), in this order (the authors have 1x1 after 1x1-kxk). Dilation belongs to the k x k taps. The online
kernel is composed anew in eval too: a parameter's `.data` can change without a trace, so no cache of it is safe.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.composition import (
    CHAIN,
    MULTIPLIER,
    ORIGIN,
    POINTS,
    SEPARABLE,
    Weights,
    compose,
    mixing,
    no_autocast,
    plain,
)

PAPER = "Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 3"
WHERE = Annotated[
    Literal["offline", "online"], "branches on features, or composed into one kernel in every step (the paper)"
]
SCALING = Annotated[
    Literal["vector", "scalar", "none"], "a learned factor per branch and output channel, per branch, or none"
]


class LinearBranches(nn.Module):
    """The sum of OREPA's branches before the norm: one linear function, on features or as a kernel.

    `point` False leaves out the 1x1 (branch 3). `slope` is the leaky slope a of the Kaiming-uniform initialisation.
    """

    def __init__(self, spec: ConvSpec, *, scaling: str, point: bool = True, slope: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        k, inputs = spec.kernel_size, spec.c_in // spec.groups
        width = spec.c_in if spec.groups <= 4 else 2 * spec.c_in
        self.origin = _weight(spec.c_out, inputs, k, slope, taps_last=True)
        self.first = nn.Parameter(torch.zeros(width, inputs, 1, 1))
        self.second = _weight(spec.c_out, width // spec.groups, k, slope, taps_last=True)
        self.depthwise = _weight(MULTIPLIER * spec.c_in, 1, k, slope)
        self.pointwise = _weight(spec.c_out, MULTIPLIER * inputs, 1, slope)
        self.points = nn.ParameterList([_weight(spec.c_out, inputs, 1, slope) for _ in range(3 if point else 2)])
        self.scales = _scales(scaling, spec.c_out, point)
        self.register_buffer("basis", basis(spec, like=self.origin)[:, :, : len(self.points)], persistent=False)
        self.basis: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Make the basis anew where the parameters went: a float32 1/9 cast to float64 stays a float32 1/9."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.basis = basis(self.spec, like=self.origin)[:, :, : len(self.points)]
        return self

    def weights(self) -> Weights:
        """The parameters as the composition takes them, scales as (terms, O)."""
        rows, c_out = len(self.points) + 3, self.spec.c_out
        scales = self.origin.new_ones(1, 1) if self.scales is None else self.scales
        return Weights(
            scales.expand(rows, c_out),
            self.origin,
            self.first,
            self.second,
            self.depthwise,
            self.pointwise,
            self.basis,
            tuple(self.points),
        )

    def kernel(self, *, fast: bool = True) -> Tensor:
        """W (O, C/g, k, k). Composed outside autocast: in bfloat16 it would be 1.6e-3 off before it is used."""
        with no_autocast(self.origin.device):
            return (compose if fast else plain)(self.weights(), self.spec.groups)

    def online(self, x_NCHW: Tensor) -> Tensor:
        """One convolution by the composed kernel."""
        return self._conv(x_NCHW, self.kernel(), self.spec.groups)

    def offline(self, x_NCHW: Tensor) -> Tensor:
        """Each branch a real operation on the feature map, its scale too."""
        spec, weights = self.spec, self.weights()
        k, groups, v = spec.kernel_size, spec.groups, weights.scales[:, :, None, None]
        y_NCHW = v[ORIGIN] * self._conv(x_NCHW, self.origin.contiguous(), groups)
        for column, (scale, point) in enumerate(zip(v[POINTS], self.points, strict=True)):
            taps = self.basis[:, :, column].reshape(-1, 1, k, k)
            y_NCHW = y_NCHW + scale * self._conv(F.conv2d(x_NCHW, point, groups=groups), taps, spec.c_out)
        mixed = F.conv2d(x_NCHW, mixing(self.first, groups), groups=groups)
        y_NCHW = y_NCHW + v[CHAIN] * self._conv(mixed, self.second.contiguous(), groups)
        fanned = self._conv(x_NCHW, self.depthwise, spec.c_in)
        return y_NCHW + v[SEPARABLE] * F.conv2d(fanned, self.pointwise, groups=groups)

    def _conv(self, x_NCHW: Tensor, weight_OIHW: Tensor, groups: int) -> Tensor:
        spec = self.spec
        return F.conv2d(x_NCHW, weight_OIHW, None, spec.stride, spec.padding, spec.dilation, groups)


@BLOCKS.register("orepa")
class OREPA(FusableBlock):
    family = "re-parameterized"
    paper = PAPER

    def __init__(self, spec: ConvSpec, *, reparam: WHERE = "online", scaling: SCALING = "vector") -> None:
        super().__init__(spec, reparam=reparam, scaling=scaling)
        self.branches = LinearBranches(spec, scaling=scaling)
        self.bn = nn.BatchNorm2d(spec.c_out)
        self.reparam = reparam

    def forward(self, x_NCHW: Tensor) -> Tensor:
        summed = self.branches.online if self.reparam == "online" else self.branches.offline
        return self.bn(summed(x_NCHW))  # type: ignore[no-any-return]

    def kernel(self) -> Kernel:
        return algebra.fold(self.branches.kernel(fast=False), self.bn)


def basis(spec: ConvSpec, like: Tensor) -> Tensor:
    """The fixed k x k patterns that point weights are spread over: average, prior, centre; (O, k * k, 3)."""
    k, c_out = spec.kernel_size, spec.c_out
    made = {"device": like.device, "dtype": torch.float64 if like.device.type in ("cpu", "meta") else torch.float32}
    channel, tap = torch.arange(c_out, **made), torch.arange(k, **made)  # type: ignore[call-overload]
    down = channel < c_out / 2  # not rounded: an odd O gives half-integer frequencies across
    frequency = torch.where(down, channel + 1, channel + 1 - c_out / 2)
    wave = torch.cos(math.pi / k * frequency[:, None] * (tap + 0.5))
    prior = torch.where(down[:, None, None], wave[:, :, None], wave[:, None, :]).expand(-1, k, k)
    average = torch.full_like(prior, 1 / k**2)
    centre = torch.zeros_like(prior)
    centre[:, k // 2, k // 2] = 1
    return torch.stack([average, prior, centre], dim=3).flatten(1, 2).to(like.dtype)


def _weight(c_out: int, inputs: int, kernel_size: int, slope: float, taps_last: bool = False) -> nn.Parameter:
    weight = torch.empty(c_out, inputs, kernel_size, kernel_size)
    if taps_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    nn.init.kaiming_uniform_(weight, a=slope)
    return nn.Parameter(weight)


def _scales(scaling: str, c_out: int, point: bool) -> nn.Parameter | None:
    if scaling == "none":
        return None
    first = torch.tensor([0.25, 0.25, 0.0, 1.0, 0.5, 0.5] if point else [0.25, 0.25, 0.0, 0.5, 0.5])
    return nn.Parameter(first[:, None].repeat(1, c_out if scaling == "vector" else 1))
