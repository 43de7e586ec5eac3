"""ECBSR's edge-oriented block: a 3x3, a wider chain and three fixed edge filters, all with biases and without norms.

    train   y = 3x3(x) + 3x3(1x1(x)) + edge_X(x) + edge_Y(x) + edge_L(x) [+ x]    offline: five branches (the paper)
            y = W * x + b                                                         online: composed in every step
    fused   y = W * x + b

    edge_M(x) = s (M * 1x1(x)) + b,   s, b (O,);  M depthwise and fixed:

          1  0 -1            1  2  1            0  1  0
    X =   2  0 -2      Y =   0  0  0      L =   1 -4  1
          1  0 -1           -1 -2 -1            0  1  0

The chain is 2 O wide. The maps behind the 1x1 convolutions are padded with their biases, so the sum is one convolution
at the rim too; the masks add up to zero, so the bias in front of one comes to nothing. s and b start at 0.001 times a
normal number, the rest as torch does. There is no batch norm, but on demand: behind the sum. x is added where
`identity` is on, c_in == c_out and the stride is 1.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Zhang et al., Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices, ACM MM 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.branches import Parallel, Skip
from harness.blocks.parts.composed import Chain, ComposedBlock, norm_behind

MASKS = {
    "sobel x": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "sobel y": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
}


@BLOCKS.register("ecb")
class ECB(ComposedBlock):
    paper = (
        "Zhang et al., Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices, ACM MM 2021"
    )
    kernel_sizes = (3,)

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[
            Literal["offline", "online"], "branches on features (the paper), or composed into one kernel in every step"
        ] = "offline",
        identity: Annotated[bool, "adds the input, where c_in == c_out and the stride is 1"] = False,
        norm: Annotated[bool, "a batch norm behind the sum"] = False,
    ) -> None:
        super().__init__(spec, reparam=reparam, identity=identity, norm=norm)
        c_in, c_out = spec.c_in, spec.c_out
        branches: dict[str, nn.Module] = {
            "3x3": Chain(spec, (c_in, c_out), (3,), bias=True),
            "1x1-3x3": Chain(spec, (c_in, 2 * c_out, c_out), (1, 3), bias=True),
            **{name: Edge(spec, name) for name in MASKS},
        }
        if identity and spec.keeps_shape:
            branches["identity"] = Skip(spec)
        self.linear = Parallel(3, branches)
        self.bn = norm_behind(norm, c_out)
        self.reparam = reparam


class Edge(nn.Module):
    """s (M * 1x1(x)) + b, M one of `MASKS`."""

    mask: Tensor

    def __init__(self, spec: ConvSpec, name: str) -> None:
        super().__init__()
        self.spec, self.name = spec, name
        self.point = nn.Conv2d(spec.c_in, spec.c_out, 1, padding=spec.padding, groups=spec.groups)
        self.scale = nn.Parameter(1e-3 * torch.randn(spec.c_out))
        self.bias = nn.Parameter(1e-3 * torch.randn(spec.c_out))
        self.register_buffer("mask", self.scale.new_tensor(MASKS[name]), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Make the mask anew where the parameters went: one that was on meta has no numbers to take along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mask = self.scale.new_tensor(MASKS[self.name])
        return self

    def forward(self, x_NCHW: Tensor) -> Tensor:
        s = self.spec
        taps = self.scale[:, None, None, None] * self.mask
        return F.conv2d(self.point(x_NCHW), taps, self.bias, s.stride, 0, s.dilation, s.c_out)

    def kernel(self) -> Kernel:
        weight = self.scale[:, None, None, None] * self.point.weight * self.mask
        assert self.point.bias is not None
        return Kernel(weight, self.bias + self.scale * self.mask.sum() * self.point.bias)
